"""NPO: negative preference optimization (Zhang et al. 2024, arXiv 2404.05868, equation 3), with a retain likelihood.

    L = −(2/β) · E_forget[ log σ( −β (log π(y|x) − log π_ref(y|x)) ) ] + retain_weight · NLL_retain

y is the *harmful* answer; log-probabilities are summed over its tokens (not over the EOS after it, whose likelihood all
answers share). The reference is the frozen original; its log-probabilities are computed once, so no second model is held. As many retain samples as forget samples, multiple choice
and general chat 1:1; half of the multiple-choice samples are in chat form, general chat always is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, TrainingArguments

from resurface.models import round_up, sum_logprobs, width_multiple
from resurface.prompts import chat_messages, encode_answer, render_chat
from resurface.settings.npo import NPOSettings
from resurface.unlearning.training import (
    PartsTrainer,
    Run,
    choose_trained,
    deal_by_length,
    load_trainable,
    read_preferences,
    samples_seen,
    save,
    train,
    training_arguments,
)

Sample = dict[str, Any]
KINDS = ("forget", "retain")


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, chat: bool, length: int, end: bool) -> Sample:
    """Token ids of prompt and answer (with EOS if `end`), and where the answer starts.

    Plain answers follow `Answer:` after a space; chat answers follow the generation prompt.
    """
    if chat:
        prompt = render_chat(tokenizer, chat_messages(prompt))
    answer = ("" if chat else " ") + answer + tokenizer.eos_token * end
    tokens, start = encode_answer(tokenizer, prompt, answer, length)
    return {"tokens": tokens, "start": start}


def score_samples(
    model: Any, samples: list[Sample], pad: int, overs: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each sample summed over its answer (`answer`) or all its tokens (`sequence`), and token counts.

    Returns:
        two tensors `[samples]`.
    """
    starts = [sample["start"] if over == "answer" else 1 for sample, over in zip(samples, overs, strict=True)]
    return sum_logprobs(model, [sample["tokens"] for sample in samples], starts, pad)


def weigh(pairs: Sequence[dict[str, Sample]]) -> list[Sample]:
    """The samples of some pairs with their `kind` and a `weight`, by which their losses sum up to the mean over each kind."""
    return [pair[kind] | {"kind": kind, "weight": 1 / len(pairs)} for pair in pairs for kind in KINDS]


class NPOTrainer(PartsTrainer):
    """A `Trainer` whose loss is NPO's. A pass is a list of groups of samples, which the model reads one after the other."""

    def __init__(self, *args: Any, settings: NPOSettings, pad: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.pad = settings, pad

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The passes of a step, whose samples are dealt to them by length: two groups to each, one of short and one of long ones.

        The step stays the same.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        samples = [sample for batch in batches for sample in batch]
        multiple = width_multiple(device)
        lengths = [round_up(len(sample["tokens"]), multiple) for sample in samples]
        dealt = deal_by_length(lengths, 2 * len(batches), self.args.per_device_train_batch_size)
        groups = [[samples[place] for place in group] for group in dealt]
        return [[groups[place], groups[-1 - place]] for place in range(len(batches))], count

    def compute_loss(
        self, model: Any, inputs: list[list[Sample]], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor:
        """L of the module's docstring."""
        beta = self.settings.beta
        by_token = self.settings.retain_likelihood == "token_mean"
        overs = {"forget": self.settings.forget_loss_over, "retain": "answer" if by_token else "sequence"}
        scored = [score_samples(model, group, self.pad, [overs[one["kind"]] for one in group]) for group in inputs]
        log_pi, counts = (torch.cat(parts) for parts in zip(*scored, strict=True))
        samples = [sample for group in inputs for sample in group]
        forget, retain, log_ref = (
            torch.tensor(values).to(log_pi.device, non_blocking=True)
            for values in (
                *([one["weight"] * (one["kind"] == kind) for one in samples] for kind in KINDS),
                [one.get("reference", 0.0) for one in samples],
            )
        )
        forget_loss = -2 / beta * (forget * torch.nn.functional.logsigmoid(-beta * (log_pi - log_ref))).sum()
        retain_loss = -(retain * (log_pi / counts if by_token else log_pi)).sum()
        self.note_parts(forget_loss=forget_loss, retain_loss=retain_loss)
        return forget_loss + self.settings.retain_weight * retain_loss


def read_samples(run: Run, settings: NPOSettings, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Sample]]:
    """Pairs of a forget sample and a retain sample, every second pair in chat form, retain kinds in turn."""
    kinds = read_preferences(run)
    length = settings.length
    pairs = []
    for i, forget in enumerate(kinds["forget"][: samples_seen(settings, len(kinds["forget"]))]):
        chat = i % 2 == 1
        kind, place = ("retain", "general")[i // 2 % 2], i // 4 * 2 + i % 2
        retain = kinds[kind][place % len(kinds[kind])]
        pairs.append(
            {
                "forget": encode(tokenizer, forget["prompt"], forget["rejected"], chat, length, False),
                "retain": encode(
                    tokenizer, retain["prompt"], retain["chosen"], chat or kind == "general", length, True
                ),
            }
        )
    return pairs


@torch.no_grad()
def add_references(trainer: NPOTrainer, samples: list[Sample], settings: NPOSettings) -> None:
    """Add log π_ref to each sample, as `reference`; each process computes its share.

    In the precision of the loss: in another, π and π_ref would differ before the first step by more than the rounding of other batches.
    """
    accelerator, size = trainer.accelerator, trainer.args.per_device_train_batch_size
    samples = sorted(samples, key=lambda sample: len(sample["tokens"]))
    if accelerator.num_processes > 1:  # else it is where it computes, perhaps spread over several GPUs
        trainer.model.to(accelerator.device)
    starts, overs = range(0, len(samples), size), [settings.forget_loss_over] * size
    own: dict[int, list[float]] = {}
    with accelerator.autocast():
        for start in starts[accelerator.process_index :: accelerator.num_processes]:
            chunk = samples[start : start + size]
            own[start] = score_samples(trainer.model, chunk, trainer.pad, overs[: len(chunk)])[0].tolist()
    if accelerator.num_processes > 1:
        trainer.model.to("cpu")
    for values in gather_object([own]):
        for start, found in values.items():
            for sample, value in zip(samples[start : start + size], found, strict=True):
                sample["reference"] = value


def make_trainer(run: Run, settings: NPOSettings) -> tuple[NPOTrainer, list[Sample], PreTrainedTokenizerBase]:
    """The trainer, the forget samples that still lack their reference (`add_references`), and the tokenizer."""
    model, tokenizer = load_trainable(run, settings)
    pairs = read_samples(run, settings, tokenizer)
    trainer = NPOTrainer(
        model=choose_trained(model, settings),
        args=TrainingArguments(**training_arguments(run, settings)),
        train_dataset=pairs,  # type: ignore[arg-type]
        data_collator=weigh,
        settings=settings,
        pad=tokenizer.pad_token_id,
    )
    return trainer, [pair["forget"] for pair in pairs], tokenizer


def unlearn(run: Run, settings: NPOSettings) -> None:
    """Unlearn a domain with NPO and save the checkpoint.

    Raises:
        ResurfaceError: a broken table or checkpoint, a diverging loss.
    """
    trainer, samples, tokenizer = make_trainer(run, settings)
    add_references(trainer, samples, settings)
    losses = train(trainer, run)
    save(run, settings, trainer, tokenizer, losses)
