"""What the three methods share: loading what is trained, a `Trainer` run that can be resumed, and the checkpoint it leaves.

Resume state lives in a folder outside the declared outputs, named by a hash of everything that determines the run, and goes
once the run is done.

A run may be one of several processes with a GPU each, which share the weights out (FSDP2; `resurface.unlearning.launch`).
"""

import os
import shutil
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from resurface.artifacts import publish_folder
from resurface.data.tables import read_domain_table
from resurface.decoder import decoder_blocks
from resurface.errors import ResurfaceError
from resurface.fused_norms import fuse_norms
from resurface.models import check_blocks, linear_names, load_model, load_tokenizer, set_seed
from resurface.settings.training import TrainingSettings
from resurface.trainer_runs import run_trainer

SHARD_SIZE = "1GB"  # files are hashed in parallel


@dataclass(frozen=True)
class Run:
    """Where one unlearning run reads and writes.

    Attributes:
        model_folder: the original's checkpoint.
        data_folder: the domain's tables (`resurface.data.tables`).
        output: the checkpoint folder to write.
        resume_folder: where interrupted state lives.
        seed: of data order, initialization and everything else.
        device: where to compute.
    """

    model_folder: Path
    data_folder: Path
    output: Path
    resume_folder: Path
    seed: int
    device: torch.device


class StopAtNaN(TrainerCallback):
    """Ends a diverged run with an error that says what to do."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Check each logged loss and gradient norm."""
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not torch.isfinite(torch.tensor(float(value))):
                raise ResurfaceError(
                    f"training diverged: {name} is {value} at step {state.global_step}; lower learning_rate "
                    f"(found {args.learning_rate}) or raise warmup_steps (found {args.warmup_steps})"
                )


class PartsTrainer(Trainer):
    """A `Trainer` that logs the parts of a loss beside their sum.

    The loss of a step is the mean over its passes and processes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # else the loss of a step would be a sum over its passes
        self.parts: dict[str, list[torch.Tensor]] = {}

    def note_parts(self, **parts: torch.Tensor) -> None:
        """Keep the parts of a pass's loss until the step is logged."""
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(value.detach())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean parts to what is logged of a step."""
        if "loss" in logs:
            for name, values in self.parts.items():
                logs = logs | {name: self.accelerator.reduce(torch.stack(values).mean(), "mean").item()}
            self.parts = {}
        super().log(logs, *args, **kwargs)


def is_shared_out() -> bool:
    """Whether the model is shared out over the processes of this run (FSDP), as who launched them says."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def count_processes() -> int:
    """How many processes share this run, as who launched them says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def load_trainable(run: Run, settings: TrainingSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Seed everything and load the original in the precision to train in, ready to be trained."""
    set_seed(run.seed)
    # Of several processes each puts its share on its GPU later.
    device = run.device if count_processes() == 1 else torch.device("cpu")
    model = load_model(run.model_folder, device, settings.dtype)
    if device != run.device:
        fuse_norms(model)  # as on a GPU, where they will compute
    model.config.use_cache = False
    return model, load_tokenizer(run.model_folder)


def choose_trained(model: PreTrainedModel, settings: TrainingSettings, modules: str = "all-linear") -> Any:
    """Leave trainable what the settings say: `trained_blocks`, and within them the weights themselves or a LoRA update.

    Args:
        model: the model to train.
        settings: `trained_blocks`, `adapter` and the LoRA settings.
        modules: name of the linear modules to train within the blocks, or `all-linear`: everything.

    Returns:
        the model, wrapped by peft if `adapter: lora`.

    Raises:
        ResurfaceError: a block that the model does not have.
    """
    if settings.trained_blocks is not None:
        check_blocks(settings.trained_blocks, model, "trained_blocks")
    if settings.adapter == "lora":
        from peft import LoraConfig, get_peft_model

        return get_peft_model(
            model,
            LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
                target_modules=linear_names(model, settings.trained_blocks, modules),
                task_type="CAUSAL_LM",
            ),
        )
    if settings.trained_blocks is not None or modules != "all-linear":
        model.requires_grad_(False)
        for number, block in enumerate(decoder_blocks(model)):
            if settings.trained_blocks is None or number in settings.trained_blocks:
                (block if modules == "all-linear" else block.get_submodule(modules)).requires_grad_(True)
    return model


def share_of(settings: TrainingSettings, processes: int) -> tuple[int, int]:
    """Samples of each kind that a process adds to a step, and how many of them a pass has room for."""
    share = settings.batch_size // processes
    return share, min(settings.device_batch_size or share, share)


def training_arguments(run: Run, settings: TrainingSettings) -> dict[str, Any]:
    """The keyword arguments of `TrainingArguments` (and TRL's configs) for a run.

    Raises:
        ResurfaceError: a step's samples cannot be shared out evenly, or the optimizer's library is missing.
    """
    if settings.optimizer.endswith("8bit") and find_spec("bitsandbytes") is None:
        raise ResurfaceError(
            f"optimizer: found {settings.optimizer!r}, which needs bitsandbytes: `pip install bitsandbytes`, or take "
            "adamw_torch_fused or adafactor"
        )
    on_gpu = run.device.type == "cuda"
    processes = count_processes()
    share, size = share_of(settings, processes)
    if not size or settings.batch_size % (size * processes):
        raise ResurfaceError(
            f"batch_size: found {settings.batch_size}, which {processes} processes with device_batch_size {size} do not share out "
            "evenly; make it a multiple of their product"
        )
    return {
        "output_dir": str(run.resume_folder),
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": share // size,
        "optim": settings.optimizer,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "seed": run.seed,
        "data_seed": run.seed,
        "use_cpu": not on_gpu,
        "bf16": settings.mixed_precision == "bf16" or (settings.mixed_precision == "auto" and on_gpu),
        # FSDP has its own, which the launcher asks for.
        "gradient_checkpointing": settings.gradient_checkpointing and not is_shared_out(),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "dataloader_pin_memory": on_gpu,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
    }


def cut_by_length(lengths: Sequence[int], groups: int, most: int) -> list[int]:
    """How to cut rows, in order of their length, into groups, each padded to its longest row, so that little is padding.

    Args:
        lengths: of the rows, ascending [tokens].
        groups: how many there are; each gets a row at least.
        most: padded tokens of a group at most. An equal cut must keep to it.

    Returns:
        how many rows each group takes. No others would have fewer padded tokens in all.
    """
    places = np.arange(len(lengths) + 1)
    rows = places[None, :] - places[:, None]
    padded = rows * np.array([0, *lengths])[None, :].astype(float)
    padded[(rows <= 0) | (padded > most)] = np.inf
    fewest, begins = np.where(places == 0, 0.0, np.inf), []
    for _ in range(groups):
        totals = fewest[:, None] + padded
        begins.append(totals.argmin(0))
        fewest = totals.min(0)
    end, sizes = len(lengths), list[int]()
    for begin in reversed(begins):
        sizes.append(end - int(begin[end]))
        end = int(begin[end])
    return sizes[::-1]


def deal_by_length(lengths: Sequence[int], groups: int, size: int) -> list[list[int]]:
    """Deal the rows of a step to groups by length, which pass the model one by one; all processes, which meet there, to groups of as many.

    Args:
        lengths: of this process's rows [tokens]; each process has as many.
        groups: how many there are.
        size: a group has no more padded tokens than so many of the longest rows.

    Returns:
        positions of each group's rows, those of the shortest first.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    everywhere = np.array(gather_object([[lengths[place] for place in order]])).max(axis=0).tolist()
    sizes = cut_by_length(everywhere, groups, size * everywhere[-1])
    ends = np.cumsum(sizes).tolist()
    return [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def read_preferences(run: Run) -> dict[str, list[dict[Hashable, Any]]]:
    """The domain's preference pairs by kind, in an order that the seed draws."""
    table = read_domain_table(run.data_folder, "preferences").sample(frac=1.0, random_state=run.seed)
    return {str(kind): rows.to_dict("records") for kind, rows in table.groupby("kind", sort=True)}


def samples_seen(settings: TrainingSettings, found: int) -> int:
    """How many of `found` samples a run can see at all: no reference log-probabilities are computed for the others."""
    return found if settings.max_steps is None else min(found, settings.max_steps * settings.batch_size)


def train(trainer: Trainer, run: Run) -> pd.DataFrame:
    """Run a trainer from where it was interrupted, or from the start.

    Returns:
        the loss curve: one row per optimizer step with what the trainer logged.

    Raises:
        Preempted: the run was asked to end, and has saved.
        ResurfaceError: the loss is not finite, or the disk is full.
    """
    trainer.add_callback(StopAtNaN())
    run_trainer(trainer)
    return tabulate_losses(trainer.state.log_history)


def tabulate_losses(history: list[dict[str, float]]) -> pd.DataFrame:
    """The logged losses as a table: `step`, `loss`, `learning_rate`, `grad_norm` and a method's own parts."""
    rows = [row for row in history if "loss" in row]
    # `num_tokens` counts from the start of the process, not of the run: a resumed run would differ by it.
    columns = ["step", "loss", *sorted({key for row in rows for key in row} - {"step", "loss", "epoch", "num_tokens"})]
    return pd.DataFrame(rows)[columns]


def gather_model(trainer: Trainer) -> PreTrainedModel | None:
    """The whole model on the CPU of the first process, from the parts that all of them hold; None in the others."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.accelerator.is_main_process:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(trainer.model.config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = trainer.model.generation_config
    return model


def save(
    run: Run, settings: TrainingSettings, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, losses: pd.DataFrame
) -> None:
    """Write the checkpoint (a LoRA update merged into the weights), the tokenizer and `losses.parquet`."""
    model: Any = gather_model(trainer) if trainer.is_fsdp_enabled else trainer.model
    if not trainer.accelerator.is_main_process:
        return
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model = model.to(getattr(torch, settings.saved_dtype))
    model.config.use_cache = True
    with publish_folder(run.output) as folder:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        tokenizer.save_pretrained(folder)
        losses.to_parquet(folder / "losses.parquet", index=False)
    shutil.rmtree(run.resume_folder, ignore_errors=True)
