"""Unlearning: losses against loops over single tokens, exact resuming, and a diverging run's message."""

import itertools
import re
import shutil
import signal
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from conftest import CHECKPOINTS, DOMAIN
from transformers import TrainerCallback

from resurface.artifacts import hash_folder
from resurface.decoder import decoder_blocks
from resurface.errors import ResurfaceError
from resurface.models import load_model, pad_right
from resurface.preemption import Preempted
from resurface.settings.dpo import DPOSettings
from resurface.settings.npo import NPOSettings
from resurface.settings.rmu import RMUSettings
from resurface.trainer_runs import WHOLE, find_last_checkpoint
from resurface.unlearning import npo, rmu
from resurface.unlearning.dpo import StepSampler
from resurface.unlearning.training import Run, choose_trained

CPU = torch.device("cpu")
SMALL_RMU = {"block": 2, "trained_blocks": [0, 1, 2], "batch_size": 2, "max_steps": 4}


def run_in(folder: Path, data: Path, seed: int = 0) -> Run:
    return Run(
        CHECKPOINTS / "original", data / "results" / "data" / DOMAIN, folder / "model", folder / "resume", seed, CPU
    )


def test_rmu_direction_is_positive_and_of_length_one():
    direction = rmu.draw_direction(128, DOMAIN, 3)
    assert direction.min() >= 0
    assert direction.norm() == pytest.approx(1.0)
    assert not torch.equal(direction, rmu.draw_direction(128, DOMAIN, 4))
    assert not torch.equal(direction, rmu.draw_direction(128, "runecraft", 3))


def test_rmu_loss_equals_a_loop_over_tokens(model):
    rows = {"forget": [[0, 9, 8, 7], [0, 5]], "retain": [[0, 11], [0, 12, 13]]}
    frozen = load_model(CHECKPOINTS / "original", CPU)
    with torch.no_grad():
        decoder_blocks(model)[1].mlp.down_proj.weight.mul_(1.5)
    target = 7.0 * rmu.draw_direction(128, DOMAIN, 0)
    batch = rmu.collate([{"forget": rows["forget"][i], "retain": rows["retain"][i]} for i in range(2)], 1)

    trainer = rmu.RMUTrainer.__new__(rmu.RMUTrainer)
    trainer.settings = RMUSettings(block=2, trained_blocks=[0, 1, 2], alpha=3.0)
    trainer.accelerator, trainer.parts = Accelerator(cpu=True), {}
    trainer.frozen, trainer.target = dict(frozen.get_decoder().named_parameters()), target
    loss = trainer.compute_loss(model, batch)

    def states(of, row):
        return of(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[3][0].double()

    with torch.no_grad():
        forget = [((h - target) ** 2).mean() for row in rows["forget"] for h in states(model, row)]
        retain = [
            ((h - g) ** 2).mean()
            for row in rows["retain"]
            for h, g in zip(states(model, row), states(frozen, row), strict=True)
        ]
    expected = sum(forget) / len(forget) + 3.0 * sum(retain) / len(retain)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert trainer.parts["retain_loss"][-1] > 0


def test_rmu_retain_loss_has_a_gradient(model):
    frozen = load_model(CHECKPOINTS / "original", CPU)
    weight = decoder_blocks(model)[1].mlp.down_proj.weight
    with torch.no_grad():
        weight.mul_(1.5)
    trainer = rmu.RMUTrainer.__new__(rmu.RMUTrainer)
    trainer.accelerator, trainer.parts = Accelerator(cpu=True), {}
    trainer.frozen, trainer.target = dict(frozen.get_decoder().named_parameters()), torch.zeros(128)
    gradients = []
    for alpha in (1.0, 1000.0):
        trainer.settings = RMUSettings(block=2, trained_blocks=[0, 1, 2], alpha=alpha)
        model.zero_grad()
        trainer.compute_loss(model, rmu.collate([{"forget": [0, 5, 6], "retain": [0, 7, 8]}], 1)).backward()
        gradients.append(weight.grad.clone())
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.5)


@pytest.mark.parametrize("over", ["answer", "sequence"])
def test_npo_log_probabilities_equal_a_loop(model, over):
    samples = [{"tokens": [0, 9, 8, 7, 6], "start": 3}, {"tokens": [0, 5, 4], "start": 1}]
    with torch.no_grad():
        found, counts = npo.score_samples(model, samples, 1, [over] * len(samples))
        for sample, value, count in zip(samples, found, counts, strict=True):
            first = sample["start"] if over == "answer" else 1
            logprobs = model(input_ids=torch.tensor([sample["tokens"]])).logits[0].double().log_softmax(-1)
            expected = sum(
                logprobs[place - 1, sample["tokens"][place]] for place in range(first, len(sample["tokens"]))
            )
            assert value.item() == pytest.approx(expected.item(), abs=1e-4)
            assert count == len(sample["tokens"]) - first


def test_npo_loss_at_the_reference_and_its_gradient(model):
    """At π = π_ref the forget loss is (2/β) log 2 and its gradient is that of the mean log-probability."""
    samples = [{"tokens": [0, 9, 8, 7], "start": 3}, {"tokens": [0, 5, 4], "start": 2}]
    with torch.no_grad():
        values = npo.score_samples(model, samples, 1, ["answer"] * 2)[0].tolist()
        for sample, value in zip(samples, values, strict=True):
            sample["reference"] = value
    trainer = npo.NPOTrainer.__new__(npo.NPOTrainer)
    trainer.parts = {}
    trainer.settings, trainer.pad = NPOSettings(beta=0.2, retain_weight=0.0), 1
    weight = model.lm_head.weight
    loss = trainer.compute_loss(model, {"forget": samples, "retain": samples, "is_one_pass": True})
    assert loss.item() == pytest.approx(10 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    loss.backward()
    gradient = weight.grad.clone()
    model.zero_grad()
    npo.score_samples(model, samples, 1, ["answer"] * 2)[0].mean().backward()
    assert torch.allclose(gradient, weight.grad, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_npo_begins_at_the_reference(data, tmp_path, monkeypatch, adapter, precision):
    """The reference is computed as the loss is, also in the mixed precision of a GPU: nothing differs before the first step."""
    # In a pass of its own, as references are computed: beside a retain sample a forget sample is rounded otherwise.
    monkeypatch.setattr(npo, "ALIKE", 0)
    arguments = npo.training_arguments
    monkeypatch.setattr(npo, "training_arguments", lambda *_: arguments(*_) | {"bf16": precision == "bfloat16"})
    settings = NPOSettings(
        beta=0.2,
        batch_size=1,
        max_steps=2,
        adapter=adapter,
        lora_rank=2,
        learning_rate=1e-3,
        forget_loss_over="sequence",
    )
    npo.unlearn(run_in(tmp_path, data), settings)
    losses = pd.read_parquet(tmp_path / "model" / "losses.parquet")["forget_loss"]
    assert losses[0] == pytest.approx(10 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("likelihood", ["token_mean", "sequence_sum"])
def test_npo_retains_samples_alike_whatever_their_length(model, likelihood):
    samples = [{"tokens": [0, 9, 8, 7, 6, 5], "start": 2, "reference": 0.0}, {"tokens": [0, 5, 4], "start": 2}]
    trainer = npo.NPOTrainer.__new__(npo.NPOTrainer)
    trainer.parts = {}
    trainer.settings, trainer.pad = NPOSettings(retain_weight=2.0, retain_likelihood=likelihood), 1
    with torch.no_grad():
        loss, apart = (
            trainer.compute_loss(model, {"forget": samples[:1], "retain": samples, "is_one_pass": is_one_pass})
            for is_one_pass in (True, False)
        )
        assert apart.item() == pytest.approx(loss.item(), rel=1e-5)
        expected = []
        for sample in samples:
            logprobs = model(input_ids=torch.tensor([sample["tokens"]])).logits[0].double().log_softmax(-1)
            first = sample["start"] if likelihood == "token_mean" else 1
            values = [logprobs[place - 1, sample["tokens"][place]] for place in range(first, len(sample["tokens"]))]
            expected.append(-sum(values) / (len(values) if likelihood == "token_mean" else 1))
    retain = trainer.parts["retain_loss"][-1].item()
    assert retain == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx(trainer.parts["forget_loss"][-1].item() + 2 * retain, rel=1e-5)


def test_npo_passes_hold_samples_of_like_length_and_the_step_stays_the_same(data, tmp_path):
    run = run_in(tmp_path, data)
    trainer, _samples, _ = npo.make_trainer(run, NPOSettings(batch_size=12, device_batch_size=4, max_steps=1))
    given = [*itertools.islice(trainer.get_train_dataloader(), 3)]
    before = [[sample["tokens"] for batch in given for sample in batch[kind]] for kind in ("forget", "retain")]
    dealt, _ = trainer.get_batch_samples(iter(given), 3, torch.device("cpu"))
    assert [[len(batch[kind]) for kind in ("forget", "retain")] for batch in dealt] == [[4, 4]] * 3
    after = [[sample["tokens"] for batch in dealt for sample in batch[kind]] for kind in ("forget", "retain")]
    for old, new in zip(before, after, strict=True):
        assert sorted(old) == sorted(new)
        assert [*map(len, new)] == sorted(map(len, old))
    assert [*map(len, before[1])] != sorted(map(len, before[1])), "they are not in order by themselves"
    for batch in dealt:
        longest = [max(len(sample["tokens"]) for sample in batch[kind]) for kind in ("forget", "retain")]
        assert batch["is_one_pass"] == (max(longest) <= npo.ALIKE * min(longest))


def test_npo_processes_agree_on_their_passes(data, tmp_path, monkeypatch):
    """One whose samples are alike makes two passes where those of another process are not."""
    run = run_in(tmp_path, data)
    monkeypatch.setattr(npo, "ALIKE", 100)
    trainer, _samples, _ = npo.make_trainer(run, NPOSettings(batch_size=8, device_batch_size=4, max_steps=1))
    elsewhere = [[10, 10], [10, 2000]]  # longest forget and retain samples of two passes
    monkeypatch.setattr(npo, "gather_object", lambda own: [*own, elsewhere])
    given = itertools.islice(trainer.get_train_dataloader(), 2)
    dealt, _ = trainer.get_batch_samples(given, 2, torch.device("cpu"))
    longest = [[max(len(sample["tokens"]) for sample in batch[kind]) for kind in npo.KINDS] for batch in dealt]
    expected = [max(pair) <= 100 * min(pair) for pair in np.maximum(longest, elsewhere)]
    assert [batch["is_one_pass"] for batch in dealt] == expected


def test_dpo_steps_are_a_trainers_own_sorted_by_length():
    lengths = [(7 * place) % 50 for place in range(50)]
    ordered, random_order = StepSampler(lengths, 12, 3), SeedableRandomSampler(lengths, data_seed=3)
    for _epoch in (0, 1):
        drawn, expected = list(ordered), list(random_order)
        assert len(drawn) == len(ordered) == 50
        for start in range(0, 50, 12):
            step = expected[start : start + 12]
            by_length = sorted(step, key=lambda place: lengths[place])
            assert drawn[start : start + 12] == (by_length if len(step) == 12 else step)
    ordered.set_epoch(1)
    assert list(ordered) == drawn


def test_npo_samples_hold_train_questions_half_in_chat_form(tokenizer, data, tmp_path):
    run = run_in(tmp_path, data)
    pairs = npo.read_samples(run, NPOSettings(), tokenizer)
    texts = [tokenizer.decode(pair["forget"]["tokens"]) for pair in pairs]
    assert sum("<|assistant|>" in text for text in texts) == len(texts) // 2
    for pair in pairs[:8]:
        answer = tokenizer.decode(pair["forget"]["tokens"][pair["forget"]["start"] :]).strip()
        assert answer in set("ABCD")


METHODS = {
    "rmu": RMUSettings(**SMALL_RMU, save_steps=2),
    "npo": NPOSettings(batch_size=2, max_steps=4, save_steps=2),
    "npo with LoRA": NPOSettings(batch_size=2, max_steps=4, save_steps=2, adapter="lora", lora_rank=4),
    "dpo": DPOSettings(batch_size=2, max_steps=4, save_steps=2, warmup_steps=1),
}


class StopAt(TrainerCallback):
    """Stops a training like a crash (after step 3, of which nothing is saved) or by SIGTERM (in step 3)."""

    def __init__(self, how):
        self.how = how

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and self.how == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        if state.global_step == 3 and self.how == "crash":
            raise KeyboardInterrupt


@pytest.fixture(scope="module", params=METHODS)
def unbroken(request, data, tmp_path_factory):
    """A method's module, its settings, and what they leave if nothing happens."""
    module = import_module(f"resurface.unlearning.{request.param.split()[0]}")
    run = run_in(tmp_path_factory.mktemp("whole"), data)
    module.unlearn(run, METHODS[request.param])
    return module, METHODS[request.param], hash_folder(run.output)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kept"), [("crash", 2), ("SIGTERM", 3)])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(unbroken, how, kept, data, tmp_path, monkeypatch):
    module, settings, expected = unbroken
    run, train = run_in(tmp_path, data), module.train

    def interrupted(trainer, run):
        trainer.add_callback(StopAt(how))
        return train(trainer, run)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", interrupted)
        with pytest.raises(KeyboardInterrupt if how == "crash" else Preempted, match="step 3" * (how == "SIGTERM")):
            module.unlearn(run, settings)
    assert not run.output.exists()
    assert find_last_checkpoint(run.resume_folder).name == f"checkpoint-{kept}"
    module.unlearn(run, settings)
    assert not run.resume_folder.exists()
    assert hash_folder(run.output) == expected


@pytest.mark.slow
@pytest.mark.parametrize("unbroken", ["rmu"], indirect=True)
def test_a_run_that_is_killed_after_its_last_step_takes_no_further_one(unbroken, data, tmp_path, monkeypatch):
    module, settings, expected = unbroken
    run = run_in(tmp_path, data)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save", lambda *_: None)  # as if killed right before
        module.unlearn(run, settings)
    module.unlearn(run, settings)
    assert hash_folder(run.output) == expected


@pytest.mark.slow
@pytest.mark.parametrize("unbroken", ["rmu"], indirect=True)
def test_a_run_that_is_asked_to_end_at_its_last_step_ends_as_it_would(unbroken, data, tmp_path, monkeypatch):
    module, settings, expected = unbroken
    run, train = run_in(tmp_path, data), module.train

    class AskAtTheEnd(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == state.max_steps:
                signal.raise_signal(signal.SIGTERM)

    def interrupted(trainer, run):
        trainer.add_callback(AskAtTheEnd())
        return train(trainer, run)

    monkeypatch.setattr(module, "train", interrupted)
    module.unlearn(run, settings)
    assert hash_folder(run.output) == expected


def test_a_diverging_run_says_what_to_do_and_leaves_nothing(data, tmp_path):
    run = run_in(tmp_path, data)
    settings = RMUSettings(**{**SMALL_RMU, "learning_rate": 1e30, "max_steps": 6})
    with pytest.raises(ResurfaceError, match=r"diverged.*lower learning_rate"):
        rmu.unlearn(run, settings)
    assert not run.output.exists()


def test_a_block_that_the_model_lacks_is_named(data, tmp_path):
    with pytest.raises(ResurfaceError, match=r"rmu\.block: found block 7; this model has blocks 0 to 5"):
        rmu.unlearn(run_in(tmp_path, data), RMUSettings(trained_blocks=[0]))


@pytest.mark.parametrize("modules", ["all-linear", "mlp.down_proj"])
@pytest.mark.parametrize("blocks", [[0, 3], None])
def test_lora_trains_the_chosen_blocks_and_no_head(model, blocks, modules):
    settings = NPOSettings(adapter="lora", lora_rank=2, trained_blocks=blocks)
    trained = [
        name for name, weight in choose_trained(model, settings, modules).named_parameters() if weight.requires_grad
    ]
    places = {re.search(r"layers\.(\d+)\.([a-z_]+\.[a-z_]+)\.lora_[AB]", name).groups() for name in trained}
    assert {int(number) for number, _ in places} == set(range(6) if blocks is None else blocks)
    every = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert {name for _, name in places} == (every if modules == "all-linear" else {modules})


def test_a_half_written_checkpoint_is_deleted_and_the_last_whole_one_taken(data, tmp_path, monkeypatch):
    run, settings = run_in(tmp_path, data), RMUSettings(**{**SMALL_RMU, "max_steps": 4, "save_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(rmu, "save", lambda *_: None)  # as if killed right before
        rmu.unlearn(run, settings)
    folder = run.resume_folder
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "checkpoint-3"}
    (folder / "checkpoint-3" / WHOLE).unlink()
    shutil.copytree(folder / "checkpoint-3", folder / "checkpoint-4")
    (folder / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    assert find_last_checkpoint(folder) == folder / "checkpoint-2"
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2"}
    rmu.unlearn(run, settings)
    assert pd.read_parquet(run.output / "losses.parquet")["step"].tolist() == [1, 2, 3, 4]
    assert not folder.exists()


def test_a_disk_that_is_full_in_training_is_named(data, tmp_path, monkeypatch):
    run, settings = run_in(tmp_path, data), RMUSettings(**{**SMALL_RMU, "save_steps": 1})

    def fail(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ResurfaceError, match="resume: the disk is full"):
        rmu.unlearn(run, settings)
    assert find_last_checkpoint(run.resume_folder) is None


def test_padding():
    assert pad_right([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
