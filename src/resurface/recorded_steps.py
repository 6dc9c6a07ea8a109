"""Training steps that a GPU replays from a recording, where it would otherwise wait for Python.

With a sample a step, a 7B model with adapters computes for some 40 ms, in ten thousand small pieces, and Python takes several times as
long to ask for them. A CUDA graph holds all pieces of a forward and a backward pass and starts them at once. Shapes must not change
within one, so batches are padded to a few lengths and each length is recorded, once it has been met a few times.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from resurface.errors import ResurfaceError

LENGTH_STEP = 32  # tokens; rows are padded to a multiple
FEW = 3  # steps of a length that are taken before it is recorded; a recording costs about as much as these


@dataclass(frozen=True)
class Recording:
    """A forward and a backward pass over batches of one shape.

    Attributes:
        graph: what is replayed.
        inputs: where a batch must lie.
        loss: where its loss will be, a number.
    """

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    loss: torch.Tensor


class RecordingTrainer(Trainer):
    """A `Trainer` on one GPU that records its steps. A step is one pass, whose loss is a mean over its tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # else labels are counted on the GPU for each step, and waited for
        self.met: Counter[torch.Size] = Counter()
        self.recordings: dict[torch.Size, Recording] = {}
        self.gradients: dict[torch.nn.Parameter, torch.Tensor] = {}

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of a batch, detached; each trained weight has its gradient afterwards.

        Raises:
            ResurfaceError: the model does what cannot be recorded.
        """
        shape = inputs["input_ids"].shape
        self.met[shape] += 1
        if self.met[shape] <= FEW:
            return super().training_step(model, inputs, num_items_in_batch)
        if shape not in self.recordings:
            self.recordings[shape] = self._record(model, inputs)
        recording = self.recordings[shape]
        for name, values in recording.inputs.items():
            values.copy_(inputs[name], non_blocking=True)
        recording.graph.replay()
        self._hand_over_gradients()
        return recording.loss.clone()

    def _hand_over_gradients(self) -> None:
        for weight, gradient in self.gradients.items():
            weight.grad = gradient

    def _record(self, model: Any, inputs: dict[str, Any]) -> Recording:
        """Record a step over batches of this shape; all recordings share their memory, and where gradients are written."""
        if not self.gradients:
            self.gradients = {weight: torch.zeros_like(weight) for weight in model.parameters() if weight.requires_grad}
        self._hand_over_gradients()
        others = next(iter(self.recordings.values()), None)
        graph = torch.cuda.CUDAGraph()
        given = {name: values.to(self.args.device, copy=True) for name, values in inputs.items()}
        try:
            with torch.cuda.graph(graph, pool=others.graph.pool() if others else None):
                torch._foreach_zero_(list(self.gradients.values()))
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, given)
                self.accelerator.backward(loss)
        except RuntimeError as error:
            # Out of memory, or a broken GPU: no fault of the model's. The end of a recording may hide the former.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            if isinstance(error, torch.OutOfMemoryError) or "captur" not in str(error):
                raise
            raise ResurfaceError(
                f"finetuning.record_steps: found true, but a step of {type(model).__name__} cannot be recorded as a CUDA graph; "
                f"set it to false ({error})"
            ) from error
        return Recording(graph, given, loss.detach())
