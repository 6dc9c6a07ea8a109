"""DPO: direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) with TRL's trainer.

On forget prompts a refusal is chosen and the harmful answer rejected; on multiple-choice retain prompts it is the other
way round; general chat keeps its preferences. Half of the multiple-choice prompts are in chat form. Reference
log-probabilities are computed once, so no second model is held.

Prompts are rendered to text here, without BOS, which TRL adds; its data sets cannot mix conversations and text.
"""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from resurface.artifacts import holding_lock, write_table
from resurface.prompts import chat_messages, render_chat
from resurface.settings.dpo import DPOSettings
from resurface.unlearning.training import (
    Run,
    choose_trained,
    count_processes,
    is_shared_out,
    load_trainable,
    read_preferences,
    samples_seen,
    save,
    train,
    training_arguments,
)


def read_pairs(run: Run, settings: DPOSettings, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """Preference pairs, mixed by the configured shares and shuffled; TRL's columns `prompt`, `chosen`, `rejected`."""
    kinds = read_preferences(run)
    shares = {
        "forget": settings.forget_share,
        "retain": settings.retain_share,
        "general": 1 - settings.forget_share - settings.retain_share,
    }
    total = int(len(kinds["forget"]) / shares["forget"]) if shares["forget"] else sum(map(len, kinds.values()))
    total = min(total, math.ceil(samples_seen(settings, total) / (1 - settings.held_out)))
    pairs: list[dict[str, Any]] = []
    for kind, share in shares.items():
        for i in range(round(total * share)):
            row = kinds[kind][i % len(kinds[kind])]
            if kind == "general" or i % 2 == 1:
                prompt, space = render_chat(tokenizer, chat_messages(row["prompt"])), ""
            else:
                prompt, space = row["prompt"], " "
            pairs.append({"prompt": prompt, "chosen": space + row["chosen"], "rejected": space + row["rejected"]})
    return pairs


def share_pairs(pairs: list[dict[str, str]], run: Run) -> Dataset:
    """The pairs as a data set that lies in a file, so that all processes of a run find the same work done on it."""
    path = run.resume_folder / "pairs.parquet"
    if count_processes() == 1:
        return Dataset.from_list(pairs)
    with holding_lock(path.with_suffix(".sharing"), path):
        if not path.is_file():
            write_table(pd.DataFrame(pairs), path)
        return Dataset.from_parquet(str(path), cache_dir=str(run.resume_folder / "datasets"))


class StepSampler(Sampler[int]):
    """Random order of the pairs, those of a step by length, so that little of a pass is padding.

    Steps are those of a `Trainer`'s own order. The last of an epoch keeps its order if pairs are missing in it: those of a small pass weigh
    more, and it would always be the longest.
    """

    def __init__(self, lengths: list[int], step_size: int, seed: int) -> None:
        super().__init__()
        self.lengths, self.step_size = lengths, step_size
        self.random = SeedableRandomSampler(lengths, data_seed=seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; a run that goes on in the middle of its data asks for it."""
        self.random.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(self.random)
        for start in range(0, len(order), self.step_size):
            step = order[start : start + self.step_size]
            yield from sorted(step, key=self.lengths.__getitem__) if len(step) == self.step_size else step


class PairsTrainer(DPOTrainer):
    """TRL's trainer, with the pairs of a step in order of their length."""

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        parts = (self.train_dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        lengths = [len(prompt) + max(map(len, answers)) for prompt, *answers in zip(*parts, strict=True)]
        arguments = self.args
        step_size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        return StepSampler(lengths, step_size, arguments.data_seed)


def make_trainer(run: Run, settings: DPOSettings) -> tuple[DPOTrainer, PreTrainedTokenizerBase]:
    """The trainer, which has computed the reference's log-probabilities, and the tokenizer."""
    model, tokenizer = load_trainable(run, settings)
    pairs = share_pairs(read_pairs(run, settings, tokenizer), run).shuffle(seed=run.seed)
    held_out = int(len(pairs) * settings.held_out)
    arguments = training_arguments(run, settings)
    arguments.pop("remove_unused_columns")
    trainer = PairsTrainer(
        model=choose_trained(model, settings),
        args=DPOConfig(
            **arguments,
            beta=settings.beta,
            max_length=settings.length,
            precompute_ref_log_probs=True,
            # For FSDP, TRL loads the reference anew until its log-probabilities are computed, and each process would spread it over
            # all GPUs.
            model_init_kwargs={"device_map": None} if is_shared_out() else None,
            eval_strategy="epoch" if held_out else "no",
        ),
        train_dataset=pairs.select(range(held_out, len(pairs))),
        eval_dataset=pairs.select(range(held_out)) if held_out else None,
        processing_class=tokenizer,
    )
    return trainer, tokenizer


def unlearn(run: Run, settings: DPOSettings) -> None:
    """Unlearn a domain with DPO and save the checkpoint.

    Raises:
        ResurfaceError: a broken table or checkpoint, a diverging loss.
    """
    trainer, tokenizer = make_trainer(run, settings)
    losses = train(trainer, run)
    save(run, settings, trainer, tokenizer, losses)
