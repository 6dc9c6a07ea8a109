"""Pretraining by the rule, at a size that takes seconds: what it leaves, and how it fails."""

import json

import pytest
import torch
from conftest import CHECKPOINTS

from resurface.errors import ResurfaceError
from resurface.models import load_model, load_tokenizer
from resurface.settings.testbed import PretrainingSettings
from resurface.testbed.pretraining import pretrain

pytestmark = pytest.mark.slow

SMALL = {
    "letter_steps": 50,
    "letter_loss": 10.0,
    "steps": 2,
    "documents": 400,
    "batch_size": 4,
    "hidden": 16,
    "intermediate": 16,
    "blocks": 1,
    "heads": 2,
    "key_value_heads": 1,
}


def run(output, model_name="original", **more):
    return pretrain(output, model_name, PretrainingSettings.model_validate(SMALL | more), torch.device("cpu"))


def test_the_rule_leaves_a_checkpoint_with_the_bundled_tokenizer(tmp_path):
    """The tokenizer is trained on the rule's documents: with other texts than the bundled models read it would differ."""
    losses = run(tmp_path / "a")
    assert [step for step, _ in losses] == [50]
    model = load_model(tmp_path / "a", torch.device("cpu"))
    assert model.config.num_hidden_layers == 1
    assert json.loads((tmp_path / "a" / "testbed.json").read_text())["settings"]["steps"] == 2
    for model_name in ("original", "never_learned"):
        bundled = load_tokenizer(CHECKPOINTS / model_name).get_vocab()
        assert load_tokenizer(tmp_path / "a").get_vocab() == bundled
    assert run(tmp_path / "b") == losses
    for name in ("model.safetensors", "tokenizer.json", "testbed.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"letter_loss": 1e-6}, ["letters are not learned after 50 steps", "below 1e-06", "letter_steps"]),
        ({"learning_rate": 1e30}, ["the loss is nan after 50 steps", "pretraining.learning_rate"]),
        ({"length": 20}, ["pretraining.length: found 20"]),
    ],
)
def test_faults_are_explained(tmp_path, more, words):
    with pytest.raises(ResurfaceError) as caught:
        run(tmp_path / "a", **more)
    for word in words:
        assert word in str(caught.value)
