"""Puts interventions into effect for the length of a context; afterwards the model is as it was, to the bit.

An intervention may be a stranger's, so all that it says is held against the model first: an index beyond a weight would end
the process, a negative one would change another place, and a part that fits nothing would leave an attack half applied.
"""

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from resurface.artifacts import naming_unreadable, path_inside, read_json_object, read_table
from resurface.checkpoints import check_weights
from resurface.decoder import block_input, block_output, decoder_blocks, find_additions
from resurface.errors import ResurfaceError
from resurface.interventions import STEP, Adapter, Directions, Prepend, Pruning, Read, Rewrite
from resurface.models import check_blocks

# What of peft's settings would make an adapter something else than W + scale · B A.
UNUSUAL = (
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "alora_invocation_tokens",
)
PERCENTS = "list<element: double>"
MASK_COLUMNS = {"layer": "string", "q": PERCENTS, "p": PERCENTS, "removed": "binary", "steps": "binary"}
MOST_PERCENTS = STEP - 1
MOST_OVERHEAD = 100_000  # bytes of a row group beside its mask


@dataclass(frozen=True)
class Mask:
    """What a file of masks (`attacks.pruning.write_masks`) says of one layer, on the layer's device.

    Attributes:
        weight: the layer's weights, flat.
        q, p: the percents that `steps` count, rising.
        removed: of each weight a bit that says whether any pair removes it, eight to a byte.
        steps: of each weight that any pair removes, from which `q` on and up to which `p`.
    """

    weight: torch.Tensor
    q: list[float]
    p: list[float]
    removed: torch.Tensor
    steps: torch.Tensor


Masks = dict[Path, list[Mask]]


@contextmanager
def change_model(
    model: PreTrainedModel, part: Adapter | Directions | Pruning | None, folder: Path, masks: Masks | None = None
) -> Iterator[PreTrainedModel]:
    """Apply a variant's change of the model; everything is as before afterwards.

    Args:
        model: the loaded decoder.
        part: what to change, None for nothing.
        folder: the attack's folder, which file names are relative to.
        masks: the last file of masks that was read is kept there, for the next variant that is of the same file.

    Yields:
        the changed model.

    Raises:
        ResurfaceError: a file that the part names is missing, damaged, elsewhere, or does not fit the model.
    """
    if part is None:
        yield model
        return
    match part:
        case Adapter():
            change = _add_adapter(model, path_inside(folder, part.folder))
        case Directions():
            change = _remove_directions(model, part, folder)
        case Pruning():
            change = _remove_weights(model, part, folder, {} if masks is None else masks)
    with change:
        yield model


@contextmanager
def _add_adapter(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """Put a LoRA adapter into effect: the layer W becomes W + scale · B A (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    A float32 weight gets the update added in place, which runs at full speed, and the very same weight back afterwards. In
    a weight of lower precision most of a small update would be rounded away: there the layer's output gets
    scale · B (A x) added, computed in the weight's precision, as on a GPU while the adapter was trained (autocast).
    """
    settings = read_json_object(path_inside(folder, "adapter_config.json"))
    unusual = [key for key in UNUSUAL if settings.get(key)]
    if settings.get("peft_type") != "LORA" or unusual or settings.get("bias", "none") != "none":
        raise ResurfaceError(
            f"{folder}: only plain LoRA adapters can be applied; found {unusual or settings.get('peft_type')}"
        )
    rank, alpha = (settings.get(key) for key in ("r", "lora_alpha"))
    if not (type(rank) is int and rank > 0 and isinstance(alpha, int | float) and abs(alpha) < 1e9):
        raise ResurfaceError(
            f"{folder}/adapter_config.json: found r {rank!r} and lora_alpha {alpha!r}; expected numbers, r a positive one"
        )
    scale = alpha / rank
    updates = _read_updates(model, path_inside(folder, "adapter_model.safetensors"), rank)
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = []

    def add_to_output(layer: torch.nn.Module, lora_a: torch.Tensor, lora_b: torch.Tensor) -> Any:
        def hook(_module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            inner = inputs[0] @ lora_a.T
            output.view(-1, output.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), lora_b.T, alpha=scale)
            return output

        return layer.register_forward_hook(hook)

    try:
        for layer, lora_a, lora_b in updates:
            weight = layer.weight
            # In two steps: a GPU narrows what it was given in no time, the processor would take seconds for a large adapter.
            lora_a, lora_b = (factor.to(weight.device).to(weight.dtype) for factor in (lora_a, lora_b))
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


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a small safetensors file."""
    check_weights(path)
    with naming_unreadable(path, "safetensors"):
        return load_file(path)


def _linear_layer(model: PreTrainedModel, name: str, path: Path) -> torch.nn.Linear:
    """The linear layer that a file of an attack names."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, torch.nn.Linear):
        raise ResurfaceError(f"{path}: found the layer {name!r}; this model has no linear layer of that name")
    return layer


def _read_updates(
    model: PreTrainedModel, path: Path, rank: int
) -> list[tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]]:
    """The layers that an adapter changes, with A `[rank, in]` and B `[out, rank]` of each.

    Raises:
        ResurfaceError: a tensor is missing, is no part of a LoRA update, or has another shape.
    """
    tensors = _read_tensors(path)
    names = {name.replace(".lora_B.", ".lora_A.") for name in tensors}
    updates = []
    for name in sorted(names):
        if not name.endswith(".lora_A.weight"):
            raise ResurfaceError(f"{path}: found the tensor {name!r}; only plain LoRA adapters can be applied")
        layer = _linear_layer(model, name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"), path)
        lora_a, lora_b = (tensors.get(own) for own in (name, name.replace(".lora_A.", ".lora_B.")))
        needed = [[rank, layer.in_features], [layer.out_features, rank]]
        if lora_a is None or lora_b is None or [list(lora_a.shape), list(lora_b.shape)] != needed:
            found = " and ".join("none" if factor is None else str(list(factor.shape)) for factor in (lora_a, lora_b))
            raise ResurfaceError(
                f"{path}: found for {name!r} and its B {found}; needed are {needed[0]} and {needed[1]}"
            )
        updates.append((layer, lora_a, lora_b))
    return updates


@contextmanager
def _remove_directions(model: PreTrainedModel, part: Directions, folder: Path) -> Iterator[None]:
    """Remove each chosen block's own direction from its output: h_ℓ ← h_ℓ − (h_ℓ · d̂_ℓ) d̂_ℓ (Arditi et al. 2024)."""
    path = path_inside(folder, part.file)
    check_blocks(part.blocks, model, f"{folder}/variants.json: blocks")
    directions = _read_tensors(path).get("directions")
    blocks = decoder_blocks(model)
    needed = [len(blocks), model.get_input_embeddings().weight.shape[1]]
    if directions is None or list(directions.shape) != needed or not directions.is_floating_point():
        found = "none" if directions is None else f"{list(directions.shape)} of {directions.dtype}"
        raise ResurfaceError(f"{path}: found directions {found}; needed are numbers of shape {needed}")

    def orthogonalize(block: int) -> Any:
        unit = directions[block].to(model.device, torch.float32)
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
def _remove_weights(model: PreTrainedModel, part: Pruning, folder: Path, masks: Masks) -> Iterator[None]:
    """Set the weights that a pair (p, q) removes to zero (arXiv 2409.18025, section 4)."""
    path = path_inside(folder, part.file)
    if not path.is_file():
        raise ResurfaceError(f"{path}: no such file; expected the masks of a pruning attack")
    if path not in masks:
        masks.clear()
        largest = max(weight.numel() for weight in model.parameters())
        masks[path] = [_check_mask(model, row, path) for row in _read_masks(path, largest)]
    saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    try:
        for mask in masks[path]:
            is_removed = _choose_removed(mask, part)
            saved.append((mask.weight, is_removed, mask.weight[is_removed]))
            mask.weight.masked_fill_(is_removed, 0)
        yield
    finally:
        for weight, is_removed, before in reversed(saved):  # a layer may stand there twice
            weight.masked_scatter_(is_removed, before)


def _read_masks(path: Path, largest: int) -> Iterator[dict[str, Any]]:
    """The rows of a file of masks, one per layer; none is read that says more than a layer of `largest` weights can need."""
    with naming_unreadable(path, "parquet"):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        count = file.num_row_groups
    for group in range(count):
        with naming_unreadable(path, "parquet"):
            described = file.metadata.row_group(group)
            if described.num_rows != 1 or described.total_byte_size > 2 * largest + MOST_OVERHEAD:
                raise ResurfaceError(
                    f"{path}: row group {group} has {described.num_rows} rows and {described.total_byte_size:,} bytes; it must "
                    f"be one row about one layer, and this model's layers have at most {largest:,} weights"
                )
            rows = file.read_row_group(group)
            found = {field.name: str(field.type) for field in rows.schema}
            row = rows.to_pylist()[0]
        if found != MASK_COLUMNS or any(value is None for value in row.values()):
            raise ResurfaceError(f"{path}: found the columns {found}, perhaps with gaps; needed are {MASK_COLUMNS}")
        yield row


def _check_mask(model: PreTrainedModel, row: dict[str, Any], path: Path) -> Mask:
    """Hold a row of a file of masks against the layer that it names.

    Raises:
        ResurfaceError: the mask is one of another number of weights, or counts percents that it does not name.
    """
    weight = _linear_layer(model, row["layer"], path).weight.data.view(-1)
    for name in ("q", "p"):
        percents = row[name]
        if not 0 < len(percents) <= MOST_PERCENTS or None in percents or percents != sorted(percents):
            raise ResurfaceError(
                f"{path}: found for {row['layer']!r} the percents {name} {reprlib.repr(percents)}; needed are 1 to {MOST_PERCENTS} "
                "rising numbers"
            )
    removed, steps = (
        torch.frombuffer(bytearray(row[name]), dtype=torch.uint8).to(weight.device)
        if row[name]
        else torch.zeros(0, dtype=torch.uint8, device=weight.device)
        for name in ("removed", "steps")
    )
    mask = Mask(weight, row["q"], row["p"], removed, steps)
    fits = len(removed) == (len(weight) + 7) // 8
    bits = _unpack(removed if fits else removed[:0])
    if not fits or bits[len(weight) :].any() or bits.sum() != len(steps):
        raise ResurfaceError(
            f"{path}: found for {row['layer']!r} a mask of {len(removed):,} bytes and {len(steps):,} steps; it must have a bit for "
            f"each of the layer's {len(weight):,} weights, and a step for each bit that is set"
        )
    if not ((steps // STEP < len(mask.q)) & (steps % STEP <= len(mask.p))).all():
        raise ResurfaceError(
            f"{path}: found for {row['layer']!r} steps beyond the {len(mask.q)} percents q and {len(mask.p)} percents p that "
            "it names"
        )
    return mask


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    """The bits of bytes, the highest first, as `numpy.packbits` packs them `[8 · bytes]`."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed[:, None] >> shifts & 1).view(-1).bool()


def _choose_removed(mask: Mask, part: Pruning) -> torch.Tensor:
    """Of each weight of a layer, whether a pair removes it `[weights]`."""
    of_step = torch.from_numpy(part.removed_steps(mask.q, mask.p)).to(mask.steps.device)
    by_any = _unpack(mask.removed)[: len(mask.weight)]
    return torch.zeros_like(by_any).masked_scatter_(by_any, of_step[mask.steps.int()])


def prompt_changer(part: Prepend | Rewrite | None, folder: Path) -> Callable[[str], str]:
    """What turns a prompt into the one that the model gets instead, before any chat template.

    Args:
        part: the change of the prompt, None for nothing.
        folder: the attack's folder, which file names are relative to.

    Raises:
        ResurfaceError: the table of rewritten prompts is missing, damaged, elsewhere, or has no row of this name.
    """
    match part:
        case None:
            return str
        case Prepend():
            return part.text.__add__
        case Rewrite():
            path = path_inside(folder, part.file)
            table = read_table(path, ["variant", "prompt", "rewritten"])
            rows = table.loc[table["variant"] == part.name, ["prompt", "rewritten"]]
            if rows.empty or not all(isinstance(text, str) for text in rows.to_numpy().flat):
                raise ResurfaceError(
                    f"{path}: found no rewritten prompts of the name {part.name!r}, or some that are no text"
                )
            known = dict(zip(rows["prompt"], rows["rewritten"], strict=True))
            return lambda prompt: known.get(prompt, prompt)


@contextmanager
def record_streams(model: PreTrainedModel, reads: list[Read]) -> Iterator[dict[Read, torch.Tensor]]:
    """Record the streams of the given reads `[batch, seq, hidden]` during each forward pass inside the context.

    `attention` and `mlp` are what these add to the residual stream; `middle` is that stream after attention: the block's input
    and what attention adds, also where the MLP does not read it.

    Raises:
        ResurfaceError: a block that the model does not have, or what its parts add cannot be found.
    """
    check_blocks([read.block for read in reads], model, "read.block of a variant")
    blocks = decoder_blocks(model)
    streams: dict[Read, torch.Tensor] = {}
    inputs: dict[int, torch.Tensor] = {}
    additions = find_additions(model) if any(read.stream != "block" for read in reads) else []

    def keep_input(read: Read) -> Any:
        return blocks[read.block].register_forward_pre_hook(
            lambda _module, given, named: inputs.__setitem__(read.block, block_input(given, named)), with_kwargs=True
        )

    def keep_stream(read: Read) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = block_output(output).to(model.device)
            streams[read] = inputs.pop(read.block) + hidden if read.stream == "middle" else hidden

        if read.stream == "block":
            module: torch.nn.Module = blocks[read.block]
        else:
            module = additions[read.block].mlp if read.stream == "mlp" else additions[read.block].attention
        return module.register_forward_hook(hook)

    distinct = dict.fromkeys(reads)  # variants of different names may read the same place
    handles = [keep_stream(read) for read in distinct]
    handles += [keep_input(read) for read in distinct if read.stream == "middle"]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()
