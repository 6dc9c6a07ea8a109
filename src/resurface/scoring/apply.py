"""Puts interventions into effect for the length of a context; afterwards the model is as it was, to the bit."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from resurface.errors import ResurfaceError
from resurface.interventions import Adapter, Directions, Prepend, Pruning, Read, Rewrite
from resurface.models import block_output, decoder_blocks


@contextmanager
def change_model(
    model: PreTrainedModel, part: Adapter | Directions | Pruning | None, folder: Path
) -> Iterator[PreTrainedModel]:
    """Apply a variant's change of the model; everything is as before afterwards.

    Args:
        model: the loaded decoder.
        part: what to change, None for nothing.
        folder: the attack's folder, which file names are relative to.

    Yields:
        the changed model.
    """
    if part is None:
        yield model
        return
    match part:
        case Adapter():
            change = _add_adapter(model, folder / part.folder)
        case Directions():
            change = _remove_directions(model, part, folder)
        case Pruning():
            change = _remove_weights(model, part, folder)
    with change:
        yield model


@contextmanager
def _add_adapter(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """Put a LoRA adapter into effect: the layer W becomes W + scale · B A (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    A float32 weight gets the update added in place, which runs at full speed, and the very same weight back afterwards. In
    a weight of lower precision most of a small update would be rounded away: there the layer's output gets
    scale · B (A x) added, computed in float32 as peft does.
    """
    settings = json.loads((folder / "adapter_config.json").read_text())
    unusual = [key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if settings.get(key)]
    if settings.get("peft_type") != "LORA" or unusual or settings.get("bias", "none") != "none":
        raise ResurfaceError(
            f"{folder}: only plain LoRA adapters can be applied; found {unusual or settings.get('peft_type')}"
        )
    scale = settings["lora_alpha"] / settings["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    saved: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    handles = []

    def add_to_output(layer: torch.nn.Module, lora_a: torch.Tensor, lora_b: torch.Tensor) -> Any:
        def hook(_module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            update = inputs[0].float() @ lora_a.T @ lora_b.T
            return (output + scale * update).to(output.dtype)

        return layer.register_forward_hook(hook)

    try:
        for name, lora_a in tensors.items():
            if not name.endswith(".lora_A.weight"):
                continue
            layer = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            weight = layer.weight
            lora_a = lora_a.to(weight.device, torch.float32)
            lora_b = tensors[name.replace(".lora_A.", ".lora_B.")].to(weight.device, torch.float32)
            if weight.dtype == torch.float32:
                saved.append((weight, weight.detach().clone()))
                with torch.no_grad():
                    weight.add_(scale * (lora_b @ lora_a))
            else:
                handles.append(add_to_output(layer, lora_a, lora_b))
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for weight, before in saved:
                weight.copy_(before)


@contextmanager
def _remove_directions(model: PreTrainedModel, part: Directions, folder: Path) -> Iterator[None]:
    """Remove each chosen block's own direction from its output: h_ℓ ← h_ℓ − (h_ℓ · d̂_ℓ) d̂_ℓ (Arditi et al. 2024)."""
    directions = load_file(folder / part.file)["directions"]
    blocks = decoder_blocks(model)

    def orthogonalize(block: int) -> Any:
        reference = next(blocks[block].parameters())
        unit = directions[block].to(reference.device, torch.float32)
        unit = unit / unit.norm().clamp(min=1e-12)

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            given = block_output(output)
            hidden = given.float()
            hidden = (hidden - (hidden @ unit)[..., None] * unit).to(given.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return blocks[block].register_forward_hook(hook)

    handles = [orthogonalize(block) for block in part.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _remove_weights(model: PreTrainedModel, part: Pruning, folder: Path) -> Iterator[None]:
    """Set the weights that a pair (p, q) removes to zero (arXiv 2409.18025, section 4)."""
    file = pq.ParquetFile(folder / part.file)
    saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    try:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            forget, utility = (rows[f"{name}_percent"].to_numpy() for name in ("forget", "utility"))
            flat = model.get_submodule(rows["layer"][0].as_py()).weight.data.view(-1)
            index = torch.from_numpy(rows["index"].to_numpy()[part.removes(forget, utility)].astype(np.int64)).to(
                flat.device
            )
            saved.append((flat, index, flat[index]))
            flat[index] = 0
        yield
    finally:
        for flat, index, before in saved:
            flat[index] = before


def prompt_changer(part: Prepend | Rewrite | None, folder: Path) -> Callable[[str], str]:
    """What turns a prompt into the one that the model gets instead, before any chat template.

    Args:
        part: the change of the prompt, None for nothing.
        folder: the attack's folder, which file names are relative to.
    """
    match part:
        case None:
            return str
        case Prepend():
            return part.text.__add__
        case Rewrite():
            rows = pq.read_table(
                folder / part.file, columns=["prompt", "rewritten"], filters=[("variant", "=", part.name)]
            )
            known = dict(zip(*(rows[name].to_pylist() for name in ("prompt", "rewritten")), strict=True))
            return lambda prompt: known.get(prompt, prompt)


@contextmanager
def record_streams(model: PreTrainedModel, reads: list[Read]) -> Iterator[dict[Read, torch.Tensor]]:
    """Record the streams of the given reads `[batch, seq, hidden]` during each forward pass inside the context.

    `middle` is what the block's second norm reads: the residual stream after attention.
    """
    blocks = decoder_blocks(model)
    streams: dict[Read, torch.Tensor] = {}

    def attach(read: Read) -> Any:
        block = blocks[read.block]
        if read.stream == "middle":
            return block.get_submodule("post_attention_layernorm").register_forward_pre_hook(
                lambda _module, inputs: streams.__setitem__(read, inputs[0])
            )
        module = {"attention": "self_attn", "mlp": "mlp"}.get(read.stream)
        return (getattr(block, module) if module else block).register_forward_hook(
            lambda _module, _inputs, output: streams.__setitem__(read, block_output(output))
        )

    handles = [attach(read) for read in reads]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()
