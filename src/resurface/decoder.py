"""The places in a decoder that everything else works on: blocks, what attention and MLP add, final norm, head.

Families of models name and order these differently, so they are found: by what holds what and, where that does not tell,
by watching two tokens pass. And what was found is held against what the model computes, because a place that is missed by
one norm, or a logit without its scale, would give no error but wrong numbers. Nothing here knows a family by its name.

Every block reads the residual stream and adds to it what its attention and its MLP write, and that is all that must hold.
What is added is a part's output, or that of the norm which reads this output itself (Gemma 2 and 3, OLMo 2). The MLP may read
the stream after attention, or the same as attention does (`use_parallel_residual` of GPT-NeoX).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from resurface.checkpoints import ATTENTION, MLP
from resurface.errors import ResurfaceError

HEAD_TOLERANCE = 0.02  # of the logits' norm: far above bfloat16's rounding, far below any scale that a head may have


@dataclass(frozen=True)
class Additions:
    """The modules of a block whose outputs are what its attention and its MLP add to the residual stream."""

    attention: nn.Module
    mlp: nn.Module


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks, in order.

    Raises:
        ResurfaceError: they cannot be found.
    """
    blocks = getattr(model.get_decoder(), "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise _unknown(model, f"its decoder ({type(model.get_decoder()).__name__}) has no list `layers` of blocks")
    return blocks


def block_input(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The hidden states `[batch, seq, hidden]` that a block or a part of it is given, by place or by name; None if neither."""
    return inputs[0] if inputs else named.get("hidden_states")


def block_output(output: Any) -> Tensor:
    """The hidden states `[batch, seq, hidden]` in what a block or a part of it returns (a tensor, or a tuple that starts with it)."""
    return output[0] if isinstance(output, tuple) else output


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last block and the head.

    Raises:
        ResurfaceError: the decoder has none, or several.
    """
    norms = [module for module in model.get_decoder().children() if "norm" in type(module).__name__.lower()]
    if len(norms) != 1:
        raise _unknown(model, f"its decoder has {len(norms)} norms beside its blocks, where one final norm is expected")
    return norms[0]


def unembed(model: PreTrainedModel, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
    """Logits `[…, vocabulary]`, float32, of hidden states that have passed the final norm.

    Args:
        model: the decoder.
        hidden: `[…, hidden]`.
        head: the model's head in another precision, if not its own.
    """
    return cap_logits(model, (model.get_output_embeddings() if head is None else head)(hidden).float())


def cap_logits(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """What a model makes of its head's output: cap · tanh(logits / cap) where its configuration has a cap (Gemma 2)."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def name_mlp_output(model: PreTrainedModel) -> str:
    """Name, within each block, of the linear layer by which its MLP writes: `mlp.down_proj`, `mlp.dense_4h_to_h`.

    Raises:
        ResurfaceError: some block has no such layer (mixtures of experts).
    """
    names = set()
    for block in decoder_blocks(model):
        written = [
            name
            for name, module in block.get_submodule(_part(model, block, MLP)).named_children()
            if isinstance(module, nn.Linear) and module.out_features == model.config.hidden_size
        ]
        names.add(f"{_part(model, block, MLP)}.{written[-1]}" if written else None)
    name = names.pop()
    if name is None or names:
        raise _unknown(model, "not every block has one linear layer by which its MLP writes, as dense models do")
    return name


@torch.no_grad()
def find_additions(model: PreTrainedModel) -> list[Additions]:
    """Of each block, the modules whose outputs are what attention and MLP add to the residual stream.

    Two tokens pass through the model as it is; hooks that change a block's output are allowed for.

    Raises:
        ResurfaceError: a block has no such parts, or adds more than these.
    """
    blocks = decoder_blocks(model)
    passed: dict[nn.Module, tuple[Any, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        passed[module] = (block_input(inputs, named), block_output(output))

    handles = [
        module.register_forward_hook(keep, prepend=True, with_kwargs=True)
        for block in blocks
        for module in (block, *block.children())
    ]
    try:
        _run_two_tokens(model.get_decoder(), model)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for number, block in enumerate(blocks):
        attention, mlp = (
            _follow(block.get_submodule(_part(model, block, names)), passed) for names in (ATTENTION, MLP)
        )
        given, output = passed[block]
        added = (passed[attention][1], passed[mlp][1])  # of a model over several GPUs these are on the block's own
        summands = [tensor.to(output.device, torch.float32) for tensor in (given, *added)]
        apart = (output.float() - torch.stack(summands).sum(0)).norm()
        size = torch.stack(summands).norm()
        if apart > 4 * torch.finfo(output.dtype).eps * size:
            raise _unknown(
                model, f"block {number} puts out something else than its input and what attention and MLP add"
            )
        found.append(Additions(attention, mlp))
    return found


@torch.no_grad()
def check_places(model: PreTrainedModel) -> None:
    """Check that blocks, final norm and head are found, and that final norm and `unembed` give the model's own logits.

    Raises:
        ResurfaceError: they cannot be found, or the model computes its logits in a way that is not known here.
    """
    blocks, norm = decoder_blocks(model), final_norm(model)
    if model.get_output_embeddings() is None:
        raise _unknown(model, "it has no head that makes logits of hidden states")
    last: list[Tensor] = []
    handle = blocks[-1].register_forward_hook(lambda _module, _inputs, output: last.append(block_output(output)))
    try:
        logits = _run_two_tokens(model, model).logits.float()
    finally:
        handle.remove()
    if (unembed(model, norm(last[0])) - logits).norm() > HEAD_TOLERANCE * logits.norm():
        raise _unknown(
            model, "its logits are not those of its last block's output after final norm, head and soft cap (a scale?)"
        )


def _run_two_tokens(module: Any, model: PreTrainedModel) -> Any:
    """Output of a model or its decoder on two tokens."""
    return module(input_ids=torch.arange(2, device=model.device)[None], use_cache=False)


def _part(model: PreTrainedModel, block: nn.Module, names: tuple[str, ...]) -> str:
    """The one of these names that a block has a part of."""
    held = [name for name in names if isinstance(getattr(block, name, None), nn.Module)]
    if len(held) != 1:
        raise _unknown(
            model, f"a block ({type(block).__name__}) has {len(held)} parts named {' or '.join(names)}, not one"
        )
    return held[0]


def _follow(part: nn.Module, passed: dict[nn.Module, tuple[Any, Tensor]]) -> nn.Module:
    """The last module through which a part's output goes before it is added: the part itself, or a norm or dropout behind it.

    Args:
        part: a block's attention or MLP.
        passed: what each module read and put out, in the order in which they ran.
    """
    for module, (given, _) in passed.items():
        if given is passed[part][1] and module is not part:
            part = module
    return part


def _unknown(model: PreTrainedModel, fault: str) -> ResurfaceError:
    """The fault of a model whose places cannot be found."""
    return ResurfaceError(
        f"{model.config.name_or_path}: models of type {model.config.model_type} cannot be handled in this way: {fault}; "
        "docs/models.md lists those that can"
    )
