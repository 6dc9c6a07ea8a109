"""Training steps that are replayed: in every family of models the same losses and weights as by steps that are not. Needs one GPU.

Jobs see one GPU only; with several, transformers' trainer would spread a batch over them and steps could not be recorded.
"""

from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINTS
from test_decoder import FAMILIES, make_checkpoint

from resurface.attacks.finetuning import make_trainer
from resurface.attacks.target import Target
from resurface.models import load_model
from resurface.settings.finetuning import FinetuningSettings
from resurface.trainer_runs import run_trainer

pytestmark = pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs one GPU: CUDA_VISIBLE_DEVICES=0")


def train(folder, place, is_recorded, batch_size):
    """The losses and gradient norms of all steps, and the adapter."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 300, (10 + number % 40,), generator=generator).tolist() for number in range(48)]
    settings = FinetuningSettings(
        epochs=2, batch_size=batch_size, lora_rank=8, record_steps=is_recorded, learning_rate=1e-3
    )
    target = Target(folder, folder, Path(), Path(), 0, "cuda", place)
    trainer = make_trainer(target, settings, load_model(folder, torch.device("cuda")), rows, 0, place)
    trainer.args.logging_strategy, trainer.args.logging_steps = "steps", 1
    run_trainer(trainer)
    assert bool(getattr(trainer, "recordings", {})) == is_recorded
    curve = [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]
    adapter = [weight.detach().flatten() for weight in trainer.model.parameters() if weight.requires_grad]
    return torch.tensor(curve), torch.cat(adapter)


@pytest.mark.parametrize("family", ["bundled", *FAMILIES])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_replayed_steps_train_like_others(tmp_path, family, batch_size):
    if family == "bundled":
        folder = CHECKPOINTS / "original"
    else:
        chosen = FAMILIES[family]
        folder = make_checkpoint(tmp_path / "model", chosen.kind, chosen.settings, 0, chosen.template)
    recorded, adapter = train(folder, tmp_path / "recorded", True, batch_size)
    plain, expected = train(folder, tmp_path / "plain", False, batch_size)
    assert len(recorded) == 96 // batch_size
    # bfloat16 rounds batches of other widths otherwise, and what a step learns the next ones build on.
    torch.testing.assert_close(recorded[:, 0], plain[:, 0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(recorded[:, 1], plain[:, 1], rtol=0.15, atol=0.05)
    assert (adapter - expected).norm() < 0.1 * expected.norm()
    assert not torch.allclose(plain[0], plain[-1], rtol=0.01)
