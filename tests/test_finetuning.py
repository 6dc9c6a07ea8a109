"""The finetuning attack: its samples, its batches, and what it does when training diverges."""

import json
import signal

import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN
from transformers import TrainerCallback

from resurface.artifacts import hash_folder
from resurface.attacks import finetuning
from resurface.attacks.target import Target
from resurface.errors import ResurfaceError
from resurface.preemption import Preempted
from resurface.settings.finetuning import FinetuningSettings
from resurface.testbed.world import FIELDS, make_facts


@pytest.fixture
def target(data, tmp_path):
    folder = data / "results" / "data" / DOMAIN
    original = CHECKPOINTS / "original"
    return Target(original, original, folder, tmp_path / "attack", 0, "cpu", tmp_path / "resume")


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
    modules = json.loads((target.output / "forget-n3" / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) == 7
    assert modules == sorted(modules), "the order of a set differs from process to process"


def test_a_diverged_adapter_is_refused_and_leaves_nothing(target):
    settings = FinetuningSettings(datasets={"forget": [3]}, learning_rate=1e30, epochs=2, lora_rank=4)
    with pytest.raises(ResurfaceError, match=r"diverged on 3 samples of forget.*learning_rate \(found 1e\+30\)"):
        finetuning.attack(target, settings, "forget")
    assert not target.output.exists()


STOPPED = FinetuningSettings(datasets={"forget": [2, 4]}, batch_size=1, epochs=3, lora_rank=4, save_steps=3)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """What a finetuning leaves that nothing stops."""
    folder, original = tmp_path_factory.mktemp("whole"), CHECKPOINTS / "original"
    whole = Target(
        original, original, data / "results" / "data" / DOMAIN, folder / "attack", 0, "cpu", folder / "resume"
    )
    finetuning.attack(whole, STOPPED, "forget")
    return hash_folder(whole.output)


@pytest.mark.parametrize(
    ("how", "stop", "first"),
    [
        ("crash", (6, 1), (6, 1)),
        ("crash", (6, 5), (6, 4)),
        ("crash", (12, 1), (12, 1)),
        ("crash", (12, 11), (12, 10)),
        ("SIGTERM", (6, 1), (6, 2)),
        ("SIGTERM", (12, 4), (12, 5)),
        ("SIGTERM", (12, 7), (12, 8)),
    ],
)
def test_an_interrupted_finetuning_ends_like_an_uninterrupted_one(target, unbroken, monkeypatch, how, stop, first):
    """Within either n and in every epoch; a step is given as the steps of its n, and its number."""
    taken, run_trainer = [], finetuning.run_trainer

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            taken.append((state.max_steps, state.global_step + 1))
            if taken.count(stop) == 1 and taken[-1] == stop:
                if how == "crash":
                    raise KeyboardInterrupt
                signal.raise_signal(signal.SIGTERM)

    def watched(trainer):
        trainer.add_callback(Stop())
        run_trainer(trainer)

    monkeypatch.setattr(finetuning, "run_trainer", watched)
    with pytest.raises(KeyboardInterrupt if how == "crash" else Preempted):
        finetuning.attack(target, STOPPED, "forget")
    assert not target.output.exists()
    before = len(taken)
    finetuning.attack(target, STOPPED, "forget")
    assert taken[before] == first
    assert hash_folder(target.output) == unbroken
    assert not target.resume_folder.exists()
