"""Measures this machine for a plan: a matrix product, and passes of two blocks of the experiment's own shape.

Two blocks are enough, because all are alike, and fit where the whole model may not. What a job takes to start is taken over
from the named machine of the same kind.
"""

import time
from collections.abc import Callable

import torch
from transformers import MistralConfig, MistralForCausalLM

from resurface.models import pick_device
from resurface.planning.machines import Machine, named_machine
from resurface.planning.shapes import Shape

BLOCKS = 2
LEAST_SECONDS = 0.5  # of repetitions, after the first
ROW = 128  # tokens of a row, about those of a question


def time_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes: the fastest of half a second of calls, because what else the machine does slows others down."""

    def take_time() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    take_time()  # warms up
    times: list[float] = []
    while sum(times) < LEAST_SECONDS:
        times.append(take_time())
    return min(times)


def measure_products(device: torch.device, dtype: torch.dtype, size: int) -> tuple[float, float]:
    """The rate of a matrix product [FLOP/s], and that of copies, bytes read and written [bytes/s]."""
    factors = torch.randn(2, size, size, device=device, dtype=dtype)
    product = time_of(lambda: factors[0] @ factors[1], device)
    copied = factors.repeat(8, 1, 1)
    return 2 * size**3 / product, 2 * copied.nbytes / time_of(copied.clone, device)


def measure_machine(shape: Shape, device_name: str, batch_tokens: int) -> tuple[Machine, float]:
    """Measure the device for models of a shape.

    Args:
        shape: of the experiment's models.
        device_name: `auto`, `cpu`, `cuda`, …
        batch_tokens: tokens of a large pass.

    Returns:
        the machine, and the rate of a large matrix product [FLOP/s], which no pass comes up to.

    Raises:
        ResurfaceError: there is no such device.
    """
    device = pick_device(device_name)
    is_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if is_gpu else torch.float32
    product, bandwidth = measure_products(device, dtype, 8192 if is_gpu else 1024)
    torch.manual_seed(0)
    head = 128 if shape.hidden >= 1024 else 32
    heads, key_value_heads = (max(1, width // head) for width in (shape.attention, shape.key_values))
    config = MistralConfig(
        vocab_size=512,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=BLOCKS,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads if heads % key_value_heads == 0 else heads,
        head_dim=head,
    )
    with device:
        decoder = MistralForCausalLM(config).to(dtype).get_decoder()
    weights = BLOCKS * sum(
        module.weight.numel() for module in decoder.layers[0].modules() if isinstance(module, torch.nn.Linear)
    )
    rows = max(1, batch_tokens // ROW)
    tokens = torch.randint(512, (rows, ROW), device=device)

    def learn() -> None:
        decoder(input_ids=tokens, use_cache=False).last_hidden_state.float().square().mean().backward()
        decoder.zero_grad()

    training = 6 * weights * rows * ROW / time_of(learn, device)
    with torch.inference_mode():
        forward = 2 * weights * rows * ROW / time_of(lambda: decoder(input_ids=tokens, use_cache=False), device)
        block_seconds = time_of(lambda: decoder(input_ids=tokens[:1, :1], use_cache=False), device) / BLOCKS
    like = named_machine("h200" if is_gpu else "laptop")
    memory = torch.cuda.mem_get_info(device)[1] if is_gpu else like.memory
    name = torch.cuda.get_device_name(device) if is_gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    return like.model_copy(
        update={
            "source": f"measured: {name}",
            "forward": forward,
            "training": training,
            "bandwidth": bandwidth,
            "block_seconds": block_seconds,
            "memory": float(memory),
        }
    ), product
