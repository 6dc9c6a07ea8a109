"""The finetuning attack, a question a step as in the paper: `python -m benchmarks.finetuning`.

The plain way is peft's adapter in a bare loop. Both read the same questions, and everything is run once before, because a new length costs
more. Beside it eight questions a step: an eighth of the updates, so neither the paper's setting nor the default.
"""

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths, make_prompts
from resurface.attacks.finetuning import train_adapter
from resurface.attacks.target import Target
from resurface.models import set_seed
from resurface.settings.finetuning import FinetuningSettings

TOKENS = 112


def train_plainly(model: Any, rows: list[list[int]], settings: FinetuningSettings) -> Any:
    """One question a step, in the order given."""
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
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate)
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # a loop that logs its losses waits for each
    return adapted


def measure(bench: Bench) -> None:
    """The bare loop, ours at growing numbers of questions, and eight a step."""
    model, tokenizer = bench.load()
    sizes, batch_size = bench.choose([2, 4, 8], [16, 32, 64]), bench.choose(2, 8)
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

    def train(count: int, chosen: FinetuningSettings) -> Any:
        shutil.rmtree(state, ignore_errors=True)
        return train_adapter(target, chosen, model, rows[:count], tokenizer.pad_token_id, state).unload()

    batched = settings.model_copy(update={"batch_size": batch_size})
    for chosen in (settings, batched):
        train(sizes[-1], chosen)
    bench.take_time(
        "a bare loop",
        "question",
        sizes[-1],
        lambda: train_plainly(model, rows, settings).unload(),
        sum(lengths),
        passes=2,
        is_plain=True,
    )
    for size in sizes:
        bench.take_time("resurface", "question", size, partial(train, size, settings), sum(lengths[:size]), passes=2)
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
