"""NPO or DPO (SHORT_METHOD) on a machine whose memory is short from some step on (SHORT_FROM), if a pass has more than one sample."""

import os

import torch

from resurface.unlearning import dpo, npo
from resurface.unlearning.training import Run

MODULE, TRAINER = {"npo": (npo, npo.NPOTrainer), "dpo": (dpo, dpo.PairsTrainer)}[os.environ["SHORT_METHOD"]]
compute = TRAINER.compute_loss


def short_of_memory(trainer, *arguments, **options):
    is_late = trainer.state.global_step >= int(os.environ["SHORT_FROM"])
    if is_late and trainer.args.per_device_train_batch_size > 1:
        raise torch.OutOfMemoryError("out of memory")
    return compute(trainer, *arguments, **options)


def unlearn(run: Run, settings) -> None:
    TRAINER.compute_loss = short_of_memory
    MODULE.unlearn(run, settings)
