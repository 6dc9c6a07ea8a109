"""Fused norms give what a family's own give, forwards and backwards, and stand only where they do."""

from typing import Any

import pytest
import torch
from conftest import CHECKPOINTS
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from resurface import models
from resurface.decoder import final_norm
from resurface.fused_norms import FusedRMSNorm, fuse, fuse_norms
from resurface.models import load_model

FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {},
    "llama": {},
    "qwen3": {"head_dim": 16},
    "olmo2": {},
    "granite": {},
    "phi3": {"pad_token_id": 0},
    "gemma2": {"head_dim": 16},
    "gpt_neox": {},
}
KEEP_THEIRS = ("gemma2", "gpt_neox", "olmo2")


def make(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of random weights, those of its norms too."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads, **FAMILIES[family]))
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.add_(0.3 * torch.randn_like(weight))
    return model.to(dtype).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same_with_fused_norms(family):
    tokens = torch.tensor([[5, 6, 7, 8, 9], [9, 1, 1, 4, 3]])
    logits, gradients = [], []
    model = make(family)
    names = list(model.state_dict())
    written_out = [module for module in model.modules() if "RMSNorm" in type(module).__name__]
    for is_fused in (False, True):
        if is_fused:
            assert fuse_norms(model) == (0 if family in KEEP_THEIRS else len(written_out))
        model.zero_grad()
        output = model(input_ids=tokens, labels=tokens)
        output.loss.backward()
        logits.append(output.logits.detach())
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    assert list(model.state_dict()) == names
    assert torch.allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-3, atol=1e-6), name


def test_in_bfloat16_what_differs_is_rounding():
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    exact, model = make("mistral"), make("mistral", torch.bfloat16)
    with torch.no_grad():
        wanted = exact.to(torch.bfloat16).float()(tokens).logits
        own = (model(tokens).logits.float() - wanted).norm()
        assert fuse_norms(model) == 5
        fused = (model(tokens).logits.float() - wanted).norm()
    assert fused <= 1.2 * own


def test_the_wider_precision_counts_and_autocast_does_not():
    norm, x = FusedRMSNorm(8, eps=1e-6), torch.randn(3, 8)
    expected = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight).detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(norm(x), expected, rtol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.float32
    narrow = norm.to(torch.bfloat16)
    assert torch.allclose(narrow(x), expected, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(x.bfloat16()).dtype == torch.bfloat16


def test_a_norm_that_narrows_what_it_gives_stays_unless_all_is_narrow():
    """OLMo 2 multiplies in float32 and gives the input's precision; under autocast the next layer would get another."""
    assert fuse_norms(make("olmo2")) == 0
    assert fuse_norms(make("olmo2", torch.bfloat16)) == 9


class Gated(nn.Module):
    """A norm that may be given a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """The norm, times the gate."""
        normed = nn.functional.rms_norm(x, (8,), self.weight, self.eps)
        return normed if gate is None else normed * gate


def test_a_norm_with_a_gate_or_a_weight_of_two_dimensions_stays():
    assert fuse(Gated()) is None
    assert fuse(FusedRMSNorm(8, eps=1e-6)) is not None
    assert fuse(FusedRMSNorm((2, 8), eps=1e-6)) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_has_fused_norms_and_they_give_what_the_written_out_ones_give(dtype, monkeypatch):
    device, tokens = torch.device("cuda"), torch.tensor([[5, 6, 7, 8, 9], [9, 1, 1, 4, 3]], device="cuda")
    fused = load_model(CHECKPOINTS / "original", device, dtype)
    assert all(isinstance(module, FusedRMSNorm) for module in fused.modules() if "RMSNorm" in type(module).__name__)
    assert isinstance(final_norm(fused), FusedRMSNorm)
    monkeypatch.setattr(models, "fuse_norms", lambda model: 0)
    gradients = []
    for model in (load_model(CHECKPOINTS / "original", device, dtype), fused):
        model(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append({name: weight.grad.float() for name, weight in model.named_parameters()})
    tolerance = 1e-3 if dtype == "float32" else 0.05
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= tolerance * gradient.norm() + 1e-6, name
