"""The finetuning attack, a question a step as in the paper: `python -m benchmarks.finetuning`.

The plain way is peft's adapter in a bare loop. Both read the same questions in the same order. Beside it eight questions a step: an eighth of
the updates, so neither the paper's setting nor the default.
"""

import math
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import get_linear_schedule_with_warmup

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths, make_prompts
from resurface.attacks.finetuning import IGNORED, make_trainer
from resurface.attacks.target import Target
from resurface.models import set_seed
from resurface.settings.finetuning import FinetuningSettings
from resurface.trainer_runs import run_trainer

TOKENS = 112


def train_plainly(model: Any, batches: list[dict[str, torch.Tensor]], settings: FinetuningSettings) -> list[float]:
    """A step for each batch, in the order given.

    Returns:
        the loss of each step.
    """
    set_seed(0)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=int(settings.lora_alpha),
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    adapted.train()
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = len(batches)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(steps * settings.warmup_share), steps)
    losses = []
    for batch in batches:
        kept = int((batch["labels"] != IGNORED).sum())
        tokens = batch["input_ids"][:, :kept].to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    adapted.unload()
    return losses


def measure(bench: Bench) -> None:
    """The bare loop, ours at growing numbers of questions, and eight a step."""
    model, tokenizer = bench.load()
    sizes, batch_size = bench.choose([2, 4, 8], [32, 64, 128]), bench.choose(2, 8)
    settings = FinetuningSettings(epochs=1, lora_rank=bench.choose(4, 128))
    rows = tokenizer(make_prompts(tokenizer, even_lengths(sizes[-1], bench.choose(80, TOKENS))))["input_ids"]
    random.Random(0).shuffle(rows)
    lengths = [len(row) for row in rows]
    state = bench.folder.parent / "resume"
    target = Target(
        model_folder=bench.folder,
        original_folder=bench.folder,
        data_folder=Path(),
        output=Path(),
        resume_folder=state,
        seed=0,
        device=str(bench.device),
    )

    def make(count: int, chosen: FinetuningSettings) -> Any:
        shutil.rmtree(state, ignore_errors=True)
        return make_trainer(target, chosen, model, rows[:count], tokenizer.pad_token_id, state)

    def train(count: int, chosen: FinetuningSettings) -> None:
        trainer = make(count, chosen)
        run_trainer(trainer)
        trainer.model.unload()

    trainer = make(sizes[-1], settings)
    trainer.args.logging_strategy, trainer.args.logging_steps = "steps", 1
    batches = list(trainer.get_train_dataloader())
    run_trainer(trainer)
    trainer.model.unload()
    ours = torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])
    del trainer
    batched = settings.model_copy(update={"batch_size": batch_size})
    train(sizes[0], batched)
    theirs = bench.take_time(
        "a bare loop",
        "question",
        sizes[-1],
        partial(train_plainly, model, batches, settings),
        sum(lengths),
        passes=2,
        is_plain=True,
    )
    for size in sizes:
        bench.take_time("resurface", "question", size, partial(train, size, settings), sum(lengths[:size]), passes=2)
    bench.note(largest_difference=float((ours - torch.tensor(theirs)).abs().max()))
    bench.take_time(
        f"resurface, {batch_size} a step",
        "question",
        sizes[-1],
        partial(train, sizes[-1], batched),
        sum(lengths),
        passes=2,
    )


if __name__ == "__main__":
    main("finetuning", measure)
