"""Finetuning: does a little training, even on benign data, bring the knowledge back? (arXiv 2409.18025, section 4.)

A LoRA adapter on all linear layers of the blocks is trained on n multiple-choice samples in chat form, with the loss over
the whole sequence. Samples are nested (the first n of one seeded order), so that curves over n are comparable. One job
trains all n of one data set, and one that is interrupted goes on within the n where it was. On a GPU steps are recorded and replayed
(`resurface.recorded_steps`).
"""

import gc
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from resurface.artifacts import publish, publish_folder, remove
from resurface.attacks.target import Target
from resurface.data.tables import read_domain_table, read_questions
from resurface.errors import ResurfaceError
from resurface.interventions import Adapter, Variant, write_variants
from resurface.models import load_model, load_tokenizer, pad_right, pick_device, set_seed
from resurface.prompts import chat_messages, render_chat
from resurface.recorded_steps import LENGTH_STEP, RecordingTrainer
from resurface.settings.finetuning import FinetuningSettings
from resurface.trainer_runs import run_trainer

IGNORED = -100  # the label that transformers leaves out of the loss
TABLES = {"forget": "questions", "retain": "retain_questions"}


def read_samples(target: Target, settings: FinetuningSettings, part: str) -> list[str]:
    """The training texts of a data set, in an order that the seed draws.

    Raises:
        ResurfaceError: fewer samples than the largest n.
    """
    if part == "text":
        samples = [(text, "") for text in read_domain_table(target.data_folder, "retain_corpus")["text"]]
    else:
        samples = read_questions(target.data_folder, TABLES[part])
    wanted = max(settings.datasets[part])  # type: ignore[index]
    if len(samples) < wanted:
        raise ResurfaceError(
            f"finetuning.datasets.{part}: found n = {wanted}, but there are {len(samples)} samples in {target.data_folder}"
        )
    random.Random(target.seed).shuffle(samples)
    tokenizer = load_tokenizer(target.model_folder)
    if part == "text":
        return [text + tokenizer.eos_token for text, _ in samples[:wanted]]
    return [
        render_chat(tokenizer, chat_messages(prompt, settings.system)) + answer + tokenizer.eos_token
        for prompt, answer in samples[:wanted]
    ]


def collate(batch: list[list[int]], pad: int, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Token rows as `input_ids` and `labels` `[batch, seq]`; what is padded carries no loss, and a causal model needs no mask for it."""
    return {"input_ids": pad_right(batch, pad, multiple), "labels": pad_right(batch, IGNORED, multiple)}


def make_trainer(
    target: Target, settings: FinetuningSettings, model: Any, tokens: list[list[int]], pad: int, state: Path
) -> Trainer:
    """A trainer of an adapter on a model.

    Args:
        target: seed, among others.
        settings: how to train.
        model: the model, which keeps its own weights.
        tokens: the samples.
        pad: the padding token.
        state: where a run that is interrupted is kept.

    Returns:
        the trainer; its model is the given one, wrapped by peft.
    """
    set_seed(target.seed)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    on_gpu, devices = model.device.type == "cuda", {weight.device for weight in model.parameters()}
    is_recorded = settings.record_steps and not settings.gradient_checkpointing and on_gpu and len(devices) == 1
    return (RecordingTrainer if is_recorded else Trainer)(
        model=adapted,
        args=TrainingArguments(
            output_dir=str(state),
            per_device_train_batch_size=settings.batch_size,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=settings.warmup_share,
            weight_decay=settings.weight_decay,
            max_grad_norm=1.0,
            seed=target.seed,
            data_seed=target.seed,
            use_cpu=not on_gpu,
            bf16=on_gpu,
            gradient_checkpointing=settings.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            dataloader_pin_memory=on_gpu,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_steps=settings.save_steps,
            save_total_limit=2,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
        ),
        train_dataset=tokens,  # type: ignore[arg-type]
        data_collator=lambda batch: collate(batch, pad, LENGTH_STEP if is_recorded else 1),
    )


def attack(target: Target, settings: FinetuningSettings, part: str) -> None:
    """Train one adapter per n of the data set `part`.

    Raises:
        Preempted: the training was asked to end, and has saved.
        ResurfaceError: too few samples, a diverging training, or a broken checkpoint or table.
    """
    tokenizer = load_tokenizer(target.model_folder)
    tokens = tokenizer(read_samples(target, settings, part), truncation=True, max_length=settings.length)["input_ids"]
    model = load_model(target.model_folder, pick_device(target.device), settings.dtype)
    names = [f"{part}-n{count}" for count in settings.datasets[part]]  # type: ignore[index]
    for name, count in zip(names, settings.datasets[part], strict=True):  # type: ignore[index]
        done = target.resume_folder / name  # adapters that are done wait there for the others
        if done.is_dir():
            continue
        state = target.resume_folder / f"{name}.state"
        trainer = make_trainer(target, settings, model, tokens[:count], tokenizer.pad_token_id, state)
        run_trainer(trainer)
        adapted: Any = trainer.model
        if not all(weights.isfinite().all() for weights in adapted.parameters() if weights.requires_grad):
            raise ResurfaceError(
                f"finetuning diverged on {count} samples of {part}: its weights are not finite; lower learning_rate "
                f"(found {settings.learning_rate}) or raise warmup_share (found {settings.warmup_share})"
            )
        chosen = adapted.peft_config["default"]
        chosen.target_modules = sorted(
            chosen.target_modules
        )  # peft's set would be written in another order by each process
        with publish(done) as temporary:
            adapted.save_pretrained(temporary)
            (temporary / "README.md").unlink(missing_ok=True)
        remove(state)
        model = adapted.unload()
        del trainer, adapted  # they hold the optimizer's state, and each other
        gc.collect()
    with publish_folder(target.output) as folder:
        for name in names:
            shutil.copytree(target.resume_folder / name, folder / name)
        write_variants(folder, [Variant(variant=name, model=Adapter(folder=name)) for name in names])
    remove(target.resume_folder)
