"""RMS norms in one kernel.

Those of transformers are written out: to float32, square, mean, add, root, product, back, product. Each is a kernel that reads and writes
all hidden states, two norms a block. torch has the same as one kernel forwards and one backwards, which sums in float32 too. It takes the
place of every norm that gives the same numbers in the same precision; families that norm otherwise keep theirs (Gemma scales by 1 + weight;
OLMo 2, where weights are in float32, narrows what it gives).
"""

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional


class FusedRMSNorm(nn.RMSNorm):
    """torch's RMSNorm in the wider precision of input and weight.

    Autocast leaves it alone: since torch 2.12 it would widen everything to float32 first, and gain nothing by it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The norm over the last dimension: x / √(mean x² + ε) · weight."""
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return functional.rms_norm(x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps)


def fuse_norms(model: nn.Module) -> int:
    """Put a `FusedRMSNorm` in the place of each of a model's norms that computes the same. Weights stay the very same parameters.

    Returns:
        how many norms were replaced.
    """
    norms = [
        (parent, name, fuse(module))
        for parent in model.modules()
        for name, module in parent.named_children()
        if "RMSNorm" in type(module).__name__
    ]
    fused = [(parent, name, norm) for parent, name, norm in norms if norm is not None]
    for parent, name, norm in fused:
        setattr(parent, name, norm)
    return len(fused)


def fuse(norm: nn.Module) -> FusedRMSNorm | None:
    """A fused norm that computes what a module does with a single input, if there is one."""
    weights = dict(norm.named_parameters())
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if list(weights) != ["weight"] or len(inspect.signature(norm.forward).parameters) != 1 or epsilon is None:
        return None
    weight = weights["weight"]
    fused = FusedRMSNorm(weight.shape, eps=epsilon, device="meta")
    fused.weight = weight
    if weight.dim() != 1 or not all(is_same(norm, fused, dtype) for dtype in (torch.float32, torch.bfloat16)):
        return None
    return fused.train(norm.training)


@torch.no_grad()
def is_same(norm: nn.Module, fused: FusedRMSNorm, dtype: torch.dtype) -> bool:
    """Whether both make the same of inputs in a precision, small and large ones, but for rounding; and in the same precision."""
    scales = torch.tensor([[1e-3], [0.1], [1.0], [30.0]])
    tried = scales * torch.randn(4, len(fused.weight), generator=torch.Generator().manual_seed(0))
    tried = tried.to(fused.weight.device, dtype)
    own, new = norm(tried), fused(tried)
    # Either is rounded where the other is not.
    narrower = max(torch.finfo(dtype).eps, torch.finfo(fused.weight.dtype).eps)
    return own.dtype == new.dtype and torch.allclose(new.float(), own.float(), rtol=2 * narrower, atol=0)
