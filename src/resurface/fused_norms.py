"""RMS norms in one kernel.

Those of transformers are written out: to float32, square, mean, add, root, product, back, product. Each is a kernel that reads and writes
all hidden states, two norms a block. torch has the same as one kernel forwards and one backwards, which sums in float32 too. It takes the
place of every norm that gives the same numbers; families that norm otherwise (Gemma scales by 1 + weight) keep theirs.
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
    scales = torch.tensor([[1e-3], [0.1], [1.0], [30.0]])
    tried = (scales * torch.randn(4, *weight.shape, generator=torch.Generator().manual_seed(0))).to(weight)
    with torch.no_grad():
        own, new = norm(tried).float(), fused(tried).float()
    # Either is rounded where the other is not.
    is_same = torch.allclose(new, own, rtol=2 * torch.finfo(weight.dtype).eps, atol=0)
    return fused.train(norm.training) if is_same else None
