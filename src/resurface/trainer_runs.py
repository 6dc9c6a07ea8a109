"""Runs of a `Trainer` that may be killed at any moment and then go on as if they had not been.

Its checkpoints (which hold pickles) lie in a folder for state. A checkpoint counts once a mark lies in it, which is written
after everything else has reached the disk: neither a kill nor a node that dies in between leaves half a one. At the last step
none is saved: what follows is the result, and a `Trainer` that resumes at its end takes one step too many.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from resurface.artifacts import flush, naming_full_disk
from resurface.preemption import Preempted, postponing_end

WHOLE = "whole"

log = logging.getLogger("resurface")


class Saving(TrainerCallback):
    """Decides when a run saves and ends, and marks whole checkpoints.

    Attributes:
        is_asked: whether the run shall end at its next step.
    """

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        self.is_asked = is_asked

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the epoch's order of the data.

        A `Trainer` that goes on in the middle of an epoch asks what skips the first batches, through which nothing reaches the sampler of
        one of several processes.
        """
        kwargs["train_dataloader"].set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop if the run is asked to end, but never save at the last step."""
        if state.global_step >= state.max_steps:
            control.should_save = False
        elif _is_true_anywhere(self.is_asked(), args.device):
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint that was written, by all processes."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            flush(checkpoint)
            (checkpoint / WHOLE).touch()


def _is_true_anywhere(own: bool, device: torch.device) -> bool:
    """Whether this is so in any process of the run: they must stop at the same step."""
    if not torch.distributed.is_initialized():
        return own
    flag = torch.tensor(int(own), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def find_last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint in a Trainer's folder, if there is one; those that were left half written are deleted."""
    whole = {}
    for path in folder.glob("checkpoint-*"):
        if (path / WHOLE).is_file():
            whole[int(path.name.removeprefix("checkpoint-"))] = path
        else:
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


def run_trainer(trainer: Trainer) -> None:
    """Run a trainer from where an earlier run with the same `output_dir` stopped, or from the start.

    Raises:
        Preempted: the run was asked to end, and has saved.
        ResurfaceError: the disk is full.
    """
    folder = Path(str(trainer.args.output_dir))
    trainer.remove_callback(PrinterCallback)
    with trainer.args.main_process_first(desc="looking for checkpoints"):
        last = find_last_checkpoint(folder)
    if last is not None:
        log.info("going on after step %s of an interrupted run", last.name.removeprefix("checkpoint-"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Autocast keeps a second copy of every weight for the length of a pass, in which each is used once.
    torch.set_autocast_cache_enabled(False)
    with naming_full_disk(folder), postponing_end() as is_asked:
        trainer.add_callback(Saving(is_asked))
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.state.global_step < trainer.state.max_steps:
        raise Preempted(f"step {trainer.state.global_step} is saved, and the next run goes on from there")
