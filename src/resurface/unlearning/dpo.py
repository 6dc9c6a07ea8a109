"""DPO: direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) with TRL's trainer.

On forget prompts a refusal is chosen and the harmful answer rejected; on multiple-choice retain prompts it is the other
way round; general chat keeps its preferences. Half of the multiple-choice prompts are in chat form. Reference
log-probabilities are computed once, so no second model is held.

Prompts are rendered to text here, without BOS, which TRL adds; its data sets cannot mix conversations and text.
"""

import math
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from resurface.artifacts import holding_lock, write_table
from resurface.models import round_up, width_multiple
from resurface.prompts import chat_messages, render_chat
from resurface.settings.dpo import DPOSettings
from resurface.unlearning.training import (
    Run,
    choose_trained,
    count_processes,
    deal_by_length,
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


def sort_by_length(pairs: Dataset) -> Dataset:
    """Pairs in the order of their length, in which the reference reads them, so that little is padding. Training draws an order of its own."""
    lengths = [len(pair["prompt"]) + max(len(pair["chosen"]), len(pair["rejected"])) for pair in pairs]
    return pairs.select(sorted(range(len(pairs)), key=lengths.__getitem__))


class PairsTrainer(DPOTrainer):
    """TRL's trainer, with the pairs of a step dealt to its passes by length."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The passes of a step; as TRL makes them where an epoch ends within a pass, for the pairs of a small pass weigh more."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        is_even = len({len(batch["ref_chosen_logps"]) for batch in batches}) == 1
        dealt = deal_pairs(batches, width_multiple(device)) if is_even and len(batches) > 1 else batches
        return dealt, count

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, the mean over a pass's pairs, by what the pass weighs in its step.

        So are other means over pairs that TRL logs; those over tokens (entropy, logits, accuracy) stay means over passes.
        """
        weight = inputs.pop("weight", None)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if weight is None:
            return loss
        for name, values in self._metrics["train"].items():
            if name.startswith(("rewards/", "logps/")):
                values[-1] *= weight
        return weight * loss


def deal_pairs(batches: list[dict[str, torch.Tensor]], multiple: int) -> list[dict[str, Any]]:
    """The pairs of several even passes, dealt anew by length, with each new pass's `weight`: its pairs by those of an even one.

    TRL's tensors of tokens hold chosen answers in their first half, rejected ones in the second `[2 · pairs, tokens]`. Their
    width is a multiple already, as that of the new passes is.
    """
    size, width = len(batches[0]["ref_chosen_logps"]), max(batch["input_ids"].shape[1] for batch in batches)
    joined = {}
    for name, values in batches[0].items():
        parts = [batch[name] for batch in batches]
        if values.dim() == 2:  # what they are padded with is masked
            parts = [functional.pad(part, (0, width - part.shape[1])).unflatten(0, (2, -1)) for part in parts]
        joined[name] = torch.cat(parts, dim=values.dim() - 1)  # [pairs] or [2, pairs, tokens]
    lengths = [round_up(length, multiple) for length in joined["attention_mask"].sum(-1).amax(0).tolist()]
    dealt = []
    for group in deal_by_length(lengths, len(batches), size):
        longest = max(lengths[place] for place in group)
        new: dict[str, Any] = {
            name: values[group] if values.dim() == 1 else values[:, group, :longest].flatten(0, 1)
            for name, values in joined.items()
        }
        dealt.append(new | {"weight": len(group) / size})
    return dealt


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
            pad_to_multiple_of=width_multiple(run.device),
            precompute_ref_log_probs=True,
            # For FSDP, TRL loads the reference anew until its log-probabilities are computed, and each process would spread it over
            # all GPUs.
            model_init_kwargs={"device_map": None} if is_shared_out() else None,
            eval_strategy="epoch" if held_out else "no",
        ),
        train_dataset=sort_by_length(pairs.select(range(held_out, len(pairs)))),
        eval_dataset=sort_by_length(pairs.select(range(held_out))) if held_out else None,
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
