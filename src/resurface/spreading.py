"""One model over several GPUs, for scoring and attacks of what one GPU has no room for.

The blocks alone are spread, in order, and compute one GPU after the other. Embeddings, final norm and head stay on the first
GPU, and each block fetches what it reads from there and brings back what it writes. So whoever records, changes or goes on from
hidden states finds them in one place, as in a model on one GPU; only what looks into a block has to ask where that is. The price
is two copies per block and pass, small beside what a block computes.
"""

from collections.abc import Sequence

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers import PreTrainedModel

from resurface.decoder import decoder_blocks


def block_devices(blocks: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each block: equal parts, in order."""
    return [devices[block * len(devices) // blocks] for block in range(blocks)]


def spread_blocks(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Spread a model's blocks over devices; everything else goes to the first one.

    Args:
        model: a decoder, wherever it is; no device ever holds more than its part.
        devices: at least one.
    """
    decoder, blocks = model.get_decoder(), decoder_blocks(model)
    decoder.layers = nn.ModuleList()
    model.to(devices[0])
    decoder.layers = blocks
    chosen = block_devices(len(blocks), devices)
    for block, device in zip(blocks, chosen, strict=True):
        block.to(device)
        add_hook_to_module(block, AlignDevicesHook(execution_device=device, io_same_device=True))
    names = {module: name for name, module in model.named_modules()}
    # By this attribute the Trainer and accelerate know that such a model stays where it is.
    placed = {names[block]: device for block, device in zip(blocks, chosen, strict=True)}
    model.hf_device_map = {"": devices[0], **placed}
