"""NPO on a machine whose memory is short from the third step on, if a pass has more than one sample of each kind."""

import torch

from resurface.unlearning import npo
from resurface.unlearning.training import Run

compute = npo.NPOTrainer.compute_loss


def short_of_memory(trainer, model, inputs, *arguments, **options):
    if trainer.state.global_step >= 2 and len(inputs["forget"]) > 1:
        raise torch.OutOfMemoryError("out of memory")
    return compute(trainer, model, inputs, *arguments, **options)


def unlearn(run: Run, settings: npo.NPOSettings) -> None:
    npo.NPOTrainer.compute_loss = short_of_memory
    npo.unlearn(run, settings)
