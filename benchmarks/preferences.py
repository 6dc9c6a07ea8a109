"""Steps of NPO and DPO on all weights in bfloat16: `python -m benchmarks.preferences`. On a 7B model it takes 125 GiB of GPU memory.

The plain way holds the reference as a second model, passes every sample through it in every step, and unembeds every position. Ours
computes the reference's log-probabilities once per sample, which three epochs use; a third of a run's samples is in the time. Lengths of
prompts have a long tail, as those of questions and of chat have; a step is some passes, the plain way's of as many samples each, in the
order of the data, ours dealt by length.
"""

import shutil
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Bench, main
from benchmarks.questions import make_prompts, tailed_lengths
from resurface.artifacts import write_table
from resurface.data.tables import read_domain_table
from resurface.data.testbed import write_domain
from resurface.models import load_model, load_tokenizer, pad_right
from resurface.settings.data import TestbedSettings
from resurface.settings.dpo import DPOSettings
from resurface.settings.npo import NPOSettings
from resurface.trainer_runs import Saving, run_trainer
from resurface.unlearning import dpo, npo
from resurface.unlearning.training import Run

DOMAIN = "xenotoxicology"
TOKENS = 90
LENGTH = 512  # the plain way has no room for longer ones
EPOCHS = 3
Loss = Callable[[Any, Any, Any], torch.Tensor]


def sum_answers(model: Any, input_ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Log-probability of the tokens that count, summed over each row, with every position unembedded."""
    logprobs = model(input_ids).logits[:, :-1].float().log_softmax(-1)
    found = logprobs.gather(-1, input_ids[:, 1:, None])[..., 0]
    return (found * counts[:, 1:]).sum(1)


def npo_loss(policy: Any, reference: Any, inputs: list[dict[str, Any]]) -> torch.Tensor:
    """Equation 3 of arXiv 2404.05868 with a retain likelihood, over what the default settings say."""
    settings = NPOSettings()

    def prepare(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        samples = [sample for sample in inputs if sample["kind"] == kind]
        rows = [sample["tokens"] for sample in samples]
        counted = [[0] * sample["start"] + [1] * (len(sample["tokens"]) - sample["start"]) for sample in samples]
        return pad_right(rows, 0).to(policy.device), pad_right(counted, 0).to(policy.device)

    forget, retain = prepare("forget"), prepare("retain")
    with torch.no_grad():
        log_ref = sum_answers(reference, *forget)
    ratio = sum_answers(policy, *forget) - log_ref
    forget_loss = -2 / settings.beta * torch.nn.functional.logsigmoid(-settings.beta * ratio).mean()
    return forget_loss - settings.retain_weight * (sum_answers(policy, *retain) / retain[1].sum(1)).mean()


def dpo_loss(policy: Any, reference: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Equation 7 of arXiv 2305.18290; the first half of the rows are the chosen answers."""
    with torch.no_grad():
        log_ref = sum_answers(reference, inputs["input_ids"], inputs["completion_mask"])
    chosen, rejected = (sum_answers(policy, inputs["input_ids"], inputs["completion_mask"]) - log_ref).chunk(2)
    return -torch.nn.functional.logsigmoid(DPOSettings().beta * (chosen - rejected)).mean()


def train_plainly(policy: Any, reference: Any, steps: list[list[Any]], loss_of: Loss) -> list[tuple[float, float]]:
    """Steps of some passes each at a learning rate of zero, so that whoever trains the policy next begins where this began.

    Returns:
        the loss and the norm of its gradient, of each step.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, fused=True)
    found = []
    for batches in steps:
        total = 0.0
        for inputs in batches:
            with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.device.type == "cuda"):
                loss = loss_of(policy, reference, inputs) / len(batches)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append((total, norm.item()))
    return found


def write_data(folder: Path, tokenizer: Any, tokens: int) -> None:
    """A domain's tables, with preferences whose prompts have a median of so many tokens."""
    write_domain(DOMAIN, folder, TestbedSettings())
    path = folder / "preferences.parquet"
    table = read_domain_table(folder, path.stem)
    write_table(table.assign(prompt=make_prompts(tokenizer, tailed_lengths(len(table), tokens))), path)


def plain_steps(trainer: Any, count: int) -> list[list[Any]]:
    """The passes of the first steps, in the order that a `Trainer` draws."""
    passes = trainer.args.gradient_accumulation_steps
    batches = list(islice(trainer.get_train_dataloader(), count * passes))
    return [batches[start : start + passes] for start in range(0, len(batches), passes)]


def count_tokens(steps: list[list[Any]]) -> int:
    """Tokens of some steps, without padding."""
    batches = [batch for step in steps for batch in step]
    if "attention_mask" in batches[0]:
        return int(sum(batch["attention_mask"].sum() for batch in batches))
    return sum(len(sample["tokens"]) for batch in batches for sample in batch)


def count_passes(steps: list[list[Any]]) -> float:
    """Forward passes that a token of some steps costs at least: three to learn from it, and the reference's, once for each pair."""
    batches = [batch for step in steps for batch in step]
    if "attention_mask" in batches[0]:
        return 3 + 1 / EPOCHS
    forget = sum(len(sample["tokens"]) for batch in batches for sample in batch if sample["kind"] == "forget")
    return 3 + forget / count_tokens(steps) / EPOCHS


def measure(bench: Bench) -> None:
    """Steps of both methods, plain and ours at growing numbers."""
    sizes, batch_size = bench.choose([3, 6, 9], [6, 12, 24]), bench.choose(4, 24)
    data, resume = bench.folder.parent / "data", bench.folder.parent / "resume"
    if not data.is_dir():
        write_data(data, load_tokenizer(bench.folder), bench.choose(40, TOKENS))
    common = {"dtype": bench.choose("float32", "bfloat16"), "batch_size": batch_size, "max_steps": max(sizes)}
    common |= {"device_batch_size": bench.choose(2, 8), "length": LENGTH}
    run = Run(bench.folder, data, Path(), resume, 0, bench.device)

    def make_npo() -> tuple[Any, Callable[[int], None]]:
        trainer, samples, _ = npo.make_trainer(run, NPOSettings(**common))
        npo.add_references(trainer, samples, trainer.settings)

        def train(steps: int) -> None:
            npo.add_references(trainer, samples[: steps * batch_size // EPOCHS], trainer.settings)
            run_trainer(trainer)

        return trainer, train

    def make_dpo() -> tuple[Any, Callable[[int], None]]:
        trainer = dpo.make_trainer(run, DPOSettings(**common, held_out=0.0))[0]
        pairs = trainer.train_dataset.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])

        def train(steps: int) -> None:
            # What TRL does when a trainer is made, for as many pairs as these steps have new ones; they are in order of length.
            count = min(len(pairs), steps * batch_size // EPOCHS)
            seen = pairs.select([place * len(pairs) // count for place in range(count)])
            trainer._precompute_ref_logps(seen, "train", trainer.args.per_device_train_batch_size)
            run_trainer(trainer)

        return trainer, train

    for name, make, loss_of in (("NPO", make_npo, npo_loss), ("DPO", make_dpo, dpo_loss)):
        unit = f"step ({name})"
        trainer, train = make()
        steps = plain_steps(trainer, max(sizes))
        reference = load_model(bench.folder, bench.device, common["dtype"]).requires_grad_(False)
        train_plainly(trainer.model, reference, steps[:1], loss_of)
        plain = bench.take_time(
            "two models",
            unit,
            len(steps),
            partial(train_plainly, trainer.model, reference, steps, loss_of),
            count_tokens(steps),
            count_passes(steps),
            is_plain=True,
        )
        del reference
        for size in sizes:
            shutil.rmtree(resume, ignore_errors=True)
            trainer.args.max_steps = size
            trainer.optimizer = trainer.lr_scheduler = None
            trainer.remove_callback(Saving)
            own = steps[:size]
            bench.take_time("resurface", unit, size, partial(train, size), count_tokens(own), count_passes(own))
            if size == sizes[0]:
                first = next(row for row in trainer.state.log_history if "loss" in row)
                pairs = zip((first["loss"], first["grad_norm"]), plain[0], strict=True)
                bench.note(largest_difference=max(abs(ours - plain) / plain for ours, plain in pairs))
        del trainer, train
        shutil.rmtree(resume, ignore_errors=True)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main("preferences", measure)
