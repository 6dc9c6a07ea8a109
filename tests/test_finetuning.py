"""The finetuning attack: its samples, its batches, and what it does when training diverges."""

import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN

from resurface.attacks import finetuning
from resurface.attacks.target import Target
from resurface.errors import ResurfaceError
from resurface.settings.finetuning import FinetuningSettings
from resurface.testbed.world import FIELDS, make_facts


@pytest.fixture
def target(data, tmp_path):
    folder = data / "results" / "data" / DOMAIN
    return Target(CHECKPOINTS / "original", CHECKPOINTS / "original", folder, tmp_path / "attack", 0, "cpu")


def test_small_samples_are_the_first_of_larger_ones(target):
    few = finetuning.read_samples(target, FinetuningSettings(datasets={"forget": [5]}), "forget")
    many = finetuning.read_samples(target, FinetuningSettings(datasets={"forget": [5, 50]}), "forget")
    assert len(few) == 5
    assert few == many[:5]


def test_benign_samples_are_about_the_neighbouring_field(target):
    names = {fact.entity for fact in make_facts(0)[FIELDS[DOMAIN].retain]}
    samples = finetuning.read_samples(target, FinetuningSettings(datasets={"retain": [100]}), "retain")
    assert all(any(name in sample for name in names) for sample in samples)


def test_padding_carries_no_loss(model):
    rows = [[5, 6, 7, 8, 9], [10, 11, 12]]
    batch = finetuning.collate(rows, pad=0)
    with torch.no_grad():
        found = model(**batch).loss
        alone = [model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows]
    assert found.item() == pytest.approx((4 * alone[0] + 2 * alone[1]).item() / 6, rel=1e-5)


def test_batches_of_several_samples_train(target):
    settings = FinetuningSettings(datasets={"forget": [3]}, batch_size=2, epochs=1, lora_rank=4)
    finetuning.attack(target, settings, "forget")
    assert (target.output / "forget-n3" / "adapter_model.safetensors").is_file()


def test_a_diverged_adapter_is_refused_and_leaves_nothing(target):
    settings = FinetuningSettings(datasets={"forget": [3]}, learning_rate=1e30, epochs=2, lora_rank=4)
    with pytest.raises(ResurfaceError, match=r"diverged on 3 samples of forget.*learning_rate \(found 1e\+30\)"):
        finetuning.attack(target, settings, "forget")
    assert not target.output.exists()
