"""What a job does, as far as its cost goes: passes over a model, weights that are updated, bytes that are kept.

A pass of n tokens through the linear layers of all blocks, of N weights, is 2·N·n FLOP; the way back is as much again for the
gradient by activations, and as much again for the gradient by weights. It takes as long as the largest of three: the arithmetic at
the machine's rate, the reading of all weights, and the least time of each block.
"""

from dataclasses import dataclass, field

from resurface.planning.machines import Machine
from resurface.planning.shapes import Shape

GIB = 2**30
ROW_SECONDS = 1e-5  # of a score table, for summary and worst case together
ADAM_BYTES = 28  # that an AdamW step moves per weight: weight, gradient and two moments, in float32, read and written


@dataclass(frozen=True)
class Pass:
    """Passes of one kind.

    Attributes:
        tokens: of all of them together.
        count: how many.
        depth: share of the blocks that they go through.
        forwards: how many forward passes one costs: 1; with the gradient by activations 2, by weights too 3.
    """

    tokens: float
    count: float
    depth: float = 1.0
    forwards: float = 1.0


@dataclass(frozen=True)
class Work:
    """What one job does.

    Attributes:
        passes: over models.
        updated: weights that an optimizer updates, over all steps together.
        rows: of tables that are summarized.
        memory: bytes of the device's memory at the peak.
        loaded: bytes of checkpoints that are read and written.
        checkpoint: bytes of a checkpoint that it leaves.
        interventions: bytes of interventions that it leaves.
        tables: bytes of tables that it leaves.
        state: bytes that it keeps to resume from, while it runs.
        downloaded: bytes that it downloads into a cache.
        changing: variants that it leaves that change weights.
        tokens: API tokens, read and written.
        gpus: how many share the work out; it has as many CPU cores otherwise.
        spread: over how many GPUs its models' blocks are spread, of which one computes at a time.
        is_known: whether anything is known of its cost.
    """

    passes: list[Pass] = field(default_factory=list)
    updated: float = 0.0
    rows: float = 0.0
    memory: float = 0.0
    loaded: float = 0.0
    checkpoint: float = 0.0
    interventions: float = 0.0
    tables: float = 0.0
    state: float = 0.0
    downloaded: float = 0.0
    changing: int = 0
    tokens: float = 0.0
    gpus: int = 1
    spread: int = 1
    is_known: bool = True

    @property
    def disk(self) -> float:
        """Bytes that the job leaves."""
        return self.checkpoint + self.interventions + self.tables


def pass_seconds(part: Pass, shape: Shape, machine: Machine) -> float:
    """Seconds that passes take on a machine."""
    rate = machine.forward if part.forwards == 1 else machine.training
    weights = shape.block_weights * part.depth
    arithmetic = 2 * weights * part.tokens / rate
    reading = part.count * weights * weight_bytes(machine.is_gpu) / machine.bandwidth
    blocks = part.count * shape.blocks * part.depth * machine.block_seconds
    return part.forwards * max(arithmetic, reading, blocks)


def work_seconds(work: Work, shape: Shape, machine: Machine) -> float:
    """Seconds that a job takes on a machine, from its start to its end."""
    computing = sum(pass_seconds(part, shape, machine) for part in work.passes)
    updating = work.updated * ADAM_BYTES / machine.bandwidth
    return (
        machine.start_seconds
        + (computing + updating) / work.gpus
        + work.loaded / machine.load
        + work.rows * ROW_SECONDS
    )


def weight_bytes(is_gpu: bool) -> int:
    """Bytes of a weight of a model that is loaded for inference: bfloat16 on a GPU, float32 on a CPU."""
    return 2 if is_gpu else 4


def activation_bytes(shape: Shape, is_gpu: bool) -> float:
    """Bytes that a forward pass keeps per token and block for the way back: the inputs of all layers, and what the gates need."""
    return weight_bytes(is_gpu) * (10 * shape.hidden + 4 * shape.intermediate)
