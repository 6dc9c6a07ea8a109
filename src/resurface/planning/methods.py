"""What unlearning costs: a function per method, of its name, from its settings and the size of the data."""

import math

from resurface.planning.sizes import ANSWER_TOKENS, CHAT_TOKENS, Facts
from resurface.planning.work import Pass, Work, activation_bytes
from resurface.settings.dpo import DPOSettings
from resurface.settings.npo import NPOSettings
from resurface.settings.rmu import RMUSettings
from resurface.settings.training import TrainingSettings

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
KEPT_STATES = 3  # of an interrupted training: two, and a third until the first is removed


def rmu(settings: RMUSettings, facts: Facts, domain: str) -> Work:
    """RMU: two passes up to a block with the way back to the trained ones, and one with the frozen weights."""
    data, shape = facts.domain(domain), facts.shape
    steps = count_steps(settings, data.texts)
    tokens = steps * settings.batch_size * min(settings.length, data.text + CHAT_TOKENS * settings.chat_share)
    trained = [*range(shape.blocks)] if settings.trained_blocks is None else settings.trained_blocks
    forward = (settings.block + 1) / shape.blocks
    back = max(0, settings.block + 1 - min(trained)) / shape.blocks
    passes = [
        Pass(3 * tokens, 3 * steps, forward),
        Pass(2 * tokens, 2 * steps, back, forwards=2),
    ]
    weights = len(trained) * shape.hidden * shape.intermediate
    kept = 2 * tokens / steps * activation_bytes(shape, facts.is_gpu) * back * shape.blocks
    return _training(settings, facts, passes, steps, weights, kept)


def npo(settings: NPOSettings, facts: Facts, domain: str) -> Work:
    """NPO: a forget and a retain sample each, and the reference's log-probabilities once."""
    data = facts.domain(domain)
    steps = count_steps(settings, data.forget_pairs)
    row = min(settings.length, data.prompt + ANSWER_TOKENS + CHAT_TOKENS / 2)
    seen = min(data.forget_pairs, steps * settings.batch_size)
    return train_whole(
        settings, facts, steps, row, samples=2, reference_rows=seen, gpus=facts.experiment.gpus_of("npo")
    )


def dpo(settings: DPOSettings, facts: Facts, domain: str) -> Work:
    """DPO: a chosen and a rejected answer each, and the reference's log-probabilities once."""
    data = facts.domain(domain)
    pairs = math.ceil(data.forget_pairs / settings.forget_share) if settings.forget_share else data.forget_pairs
    steps = count_steps(settings, round(pairs * (1 - settings.held_out)))
    row = min(settings.length, data.prompt + ANSWER_TOKENS + CHAT_TOKENS / 2)
    seen = min(pairs, steps * settings.batch_size)
    gpus = facts.experiment.gpus_of("dpo")
    return train_whole(settings, facts, steps, row, samples=2, reference_rows=2 * seen, gpus=gpus)


def count_steps(settings: TrainingSettings, samples: int) -> int:
    """Optimizer steps of a run."""
    return settings.max_steps or max(1, math.ceil(samples / settings.batch_size * settings.epochs))


def train_whole(
    settings: TrainingSettings,
    facts: Facts,
    steps: int,
    row: float,
    samples: int,
    reference_rows: float,
    gpus: int = 1,
) -> Work:
    """Training of the whole model, or of some blocks of it.

    Args:
        settings: of the training.
        facts: of the experiment.
        steps: optimizer steps.
        row: tokens of a row.
        samples: rows of each sample.
        reference_rows: rows that are read once before.
        gpus: that share the model out.
    """
    shape = facts.shape
    blocks = shape.blocks if settings.trained_blocks is None else len(settings.trained_blocks)
    weights = shape.parameters if settings.trained_blocks is None else shape.block_weights * blocks // shape.blocks
    tokens = steps * settings.batch_size * samples * row
    at_once = settings.device_batch_size or settings.batch_size
    is_computed_twice = settings.gradient_checkpointing
    passes = [
        Pass(
            tokens,
            steps * samples * math.ceil(settings.batch_size / at_once),
            forwards=4 if is_computed_twice else 3,
        ),
        Pass(reference_rows * row, reference_rows / settings.batch_size),
    ]
    kept = at_once * samples * row * (activation_bytes(shape, facts.is_gpu) * shape.blocks + 8 * shape.vocabulary)
    if is_computed_twice:
        kept = at_once * samples * row * (4 * shape.hidden * shape.blocks + 8 * shape.vocabulary)
    return _training(settings, facts, passes, steps, weights, kept, gpus)


def _training(
    settings: TrainingSettings,
    facts: Facts,
    passes: list[Pass],
    steps: int,
    weights: float,
    kept: float,
    gpus: int = 1,
) -> Work:
    """What all trainings share: the optimizer, its memory, the checkpoint and what an interrupted run goes on from.

    Args:
        settings: of the method.
        facts: of the experiment.
        passes: what is computed.
        steps: optimizer steps.
        weights: that are trained, if not by an adapter.
        kept: bytes of activations for the way back.
        gpus: that share the model out.
    """
    shape = facts.shape
    size = DTYPE_BYTES[settings.dtype]
    saved = DTYPE_BYTES[settings.saved_dtype]
    if settings.adapter == "lora":
        weights = shape.adapter_weights(settings.lora_rank)
    moments = {"adafactor": 0, "adamw_8bit": 2, "paged_adamw_8bit": 2}.get(settings.optimizer, 2 * size)
    state = weights * moments + (weights if settings.adapter == "lora" else shape.parameters) * size
    return Work(
        passes=passes,
        updated=steps * weights,
        memory=(shape.parameters * size + weights * (size + moments)) / gpus + kept,
        loaded=shape.parameters * (2 + saved),
        checkpoint=shape.parameters * saved,
        state=state * min(KEPT_STATES, steps // settings.save_steps),
        gpus=gpus,
    )
