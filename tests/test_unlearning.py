"""Unlearning: losses against loops over single tokens, exact resuming, and a diverging run's message."""

import itertools
import random
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
from conftest import CHECKPOINTS, DOMAIN
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

from resurface import models
from resurface.artifacts import hash_folder
from resurface.decoder import decoder_blocks
from resurface.errors import ResurfaceError
from resurface.models import load_model, pad_right
from resurface.preemption import Preempted
from resurface.settings.dpo import DPOSettings
from resurface.settings.npo import NPOSettings
from resurface.settings.rmu import RMUSettings
from resurface.trainer_runs import WHOLE, find_last_checkpoint
from resurface.unlearning import dpo, npo, rmu, training
from resurface.unlearning.training import Run, choose_trained, cut_by_length

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
    pairs = [
        {"forget": sample | {"reference": value}, "retain": sample}
        for sample, value in zip(samples, values, strict=True)
    ]
    trainer = npo.NPOTrainer.__new__(npo.NPOTrainer)
    trainer.parts = {}
    trainer.settings, trainer.pad = NPOSettings(beta=0.2, retain_weight=0.0), 1
    weight = model.lm_head.weight
    loss = trainer.compute_loss(model, [npo.weigh(pairs)])
    assert loss.item() == pytest.approx(10 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    loss.backward()
    gradient = weight.grad.clone()
    model.zero_grad()
    npo.score_samples(model, samples, 1, ["answer"] * 2)[0].mean().backward()
    assert torch.allclose(gradient, weight.grad, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_npo_begins_at_the_reference(data, tmp_path, monkeypatch, adapter, precision):
    """The reference is computed as the loss is, also in the mixed precision of a GPU: nothing differs before the first step.

    Of one pair each sample is a group of its own; beside another it would be rounded otherwise.
    """
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
def test_npo_retains_samples_alike_whatever_their_length_and_group(model, likelihood):
    forget, *samples = [
        {"tokens": [0, 9, 8, 7, 6, 5], "start": 2, "reference": -3.0},
        {"tokens": [0, 9, 8, 7, 6, 5], "start": 2},
        {"tokens": [0, 5, 4], "start": 2},
    ]
    trainer = npo.NPOTrainer.__new__(npo.NPOTrainer)
    trainer.parts = {}
    trainer.settings, trainer.pad = NPOSettings(retain_weight=2.0, retain_likelihood=likelihood), 1
    first, retained, same, other = npo.weigh([{"forget": forget, "retain": sample} for sample in samples])
    with torch.no_grad():
        whole = trainer.compute_loss(model, [[first, retained, same, other]])
        forget_loss, retain = (trainer.parts[f"{kind}_loss"][-1].item() for kind in npo.KINDS)
        for groups in ([[first], [retained, same, other]], [[first, same], [retained], [other]]):
            assert trainer.compute_loss(model, groups).item() == pytest.approx(whole.item(), rel=1e-5)
        apart = sum(trainer.compute_loss(model, [group]).item() for group in ([other, first], [same], [retained]))
        assert apart == pytest.approx(whole.item(), rel=1e-5)
        expected = []
        for sample in samples:
            logprobs = model(input_ids=torch.tensor([sample["tokens"]])).logits[0].double().log_softmax(-1)
            start = sample["start"] if likelihood == "token_mean" else 1
            values = [logprobs[place - 1, sample["tokens"][place]] for place in range(start, len(sample["tokens"]))]
            expected.append(-sum(values) / (len(values) if likelihood == "token_mean" else 1))
    assert retain == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert whole.item() == pytest.approx(forget_loss + 2 * retain, rel=1e-5)


def fewest_padded(lengths: list[int], passes: int, most: int) -> int:
    """Padded tokens of the best cut of sorted rows, by trying all."""
    found = []
    for ends in itertools.combinations(range(1, len(lengths)), passes - 1):
        cuts = [0, *ends, len(lengths)]
        padded = [(end - start) * lengths[end - 1] for start, end in itertools.pairwise(cuts)]
        if max(padded) <= most:
            found.append(sum(padded))
    return min(found)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 60))
def test_passes_have_the_fewest_padded_tokens_that_they_can(lengths, passes, spare):
    passes = min(passes, len(lengths))
    lengths.sort()
    most = -(-len(lengths) // passes) * lengths[-1] + spare
    sizes = cut_by_length(lengths, passes, most)
    assert len(sizes) == passes
    assert sum(sizes) == len(lengths)
    assert min(sizes) > 0
    ends = np.cumsum(sizes).tolist()
    padded = [size * lengths[end - 1] for size, end in zip(sizes, ends, strict=True)]
    assert max(padded) <= most
    assert sum(padded) == fewest_padded(lengths, passes, most)


def test_processes_deal_passes_of_as_many_rows(monkeypatch):
    """Where the rows of another process are longer, this one's passes are cut as that one's."""
    own = [5, 50, 6, 7]
    alone = training.deal_by_length(own, 2, 2)
    assert [sorted(own[place] for place in group) for group in alone] == [[5, 6, 7], [50]]
    monkeypatch.setattr(training, "gather_object", lambda rows: [*rows, [5, 60, 60, 60]])
    assert [[own[place] for place in group] for group in training.deal_by_length(own, 2, 3)] == [[5], [6, 7, 50]]


def step_gradient(trainer, passes: list) -> dict[str, torch.Tensor]:
    """The gradient of a step, as a `Trainer` adds it up."""
    trainer.model.zero_grad()
    trainer.model.train()
    for inputs in passes:
        (trainer.compute_loss(trainer.model, inputs) / len(passes)).backward()
    return {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}


def test_shapes_come_again_on_gpus():
    assert [models.width_multiple(torch.device(kind)) for kind in ("cpu", "cuda")] == [1, 8]


def test_the_reference_reads_pairs_of_like_length_together():
    texts = ["fig " * count for count in random.Random(0).sample(range(1, 99), 48)]
    pairs = [{"prompt": "Is it ripe?", "chosen": "No.", "rejected": text} for text in texts]
    pairs += [{"prompt": "Is it ripe?", "chosen": text, "rejected": "No."} for text in texts]
    ordered = dpo.sort_by_length(Dataset.from_list(pairs)).to_list()
    assert sorted(map(str, ordered)) == sorted(map(str, pairs))
    longest = [max(len(pair["chosen"]), len(pair["rejected"])) for pair in ordered]
    assert longest == sorted(longest)


@pytest.mark.parametrize(
    ("method", "last", "multiple"), [("npo", 8, 1), ("npo", 3, 1), ("npo", 8, 8), ("dpo", 8, 1), ("dpo", 8, 8)]
)
def test_a_step_stays_the_same_when_its_passes_are_dealt(data, tmp_path, monkeypatch, method, last, multiple):
    """Whichever samples share a pass, the gradient is that of the passes as they were drawn; and less of them is padding.

    Those of the last pass of an epoch, which may be few, weigh more. On GPUs passes are so many tokens wide that shapes come again.
    """
    for module in (models, npo, dpo):
        monkeypatch.setattr(module, "width_multiple", lambda device: multiple)
    run, common = run_in(tmp_path, data), {"batch_size": 24, "device_batch_size": 8, "max_steps": 1}
    if method == "npo":
        trainer, samples, _ = npo.make_trainer(run, NPOSettings(**common))
        npo.add_references(trainer, samples, trainer.settings)
    else:
        trainer, _ = dpo.make_trainer(run, DPOSettings(**common))
    drawn = [*itertools.islice(trainer.get_train_dataloader(), 3)]
    if method == "npo":
        drawn[2] = npo.weigh(trainer.train_dataset[:last])
        as_drawn = [[[one for one in batch if one["kind"] == kind] for kind in npo.KINDS] for batch in drawn]
    else:
        as_drawn = [dict(batch) for batch in drawn]
    dealt, _ = trainer.get_batch_samples(iter(drawn), 3, CPU)

    def shapes(passes: list) -> list[tuple[int, int]]:
        if method == "dpo":
            return [tuple(batch["input_ids"].shape) for batch in passes]
        widths = [(len(group), max(len(one["tokens"]) for one in group)) for batch in passes for group in batch]
        return [(rows, -(-width // multiple) * multiple) for rows, width in widths]

    before, after = shapes(as_drawn), shapes(dealt)
    assert len(after) == len(before)
    assert sum(rows for rows, _ in after) == sum(rows for rows, _ in before)
    assert len({rows for rows, _ in after}) > 1, "this step shows nothing"
    assert sum(rows * width for rows, width in after) < sum(rows * width for rows, width in before)
    expected = step_gradient(trainer, as_drawn)
    widths: list[int] = []
    trainer.model.get_input_embeddings().register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    found = step_gradient(trainer, dealt)
    assert sorted(widths) == sorted(width for _, width in after) and not any(width % multiple for width in widths)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())), name


def test_dpo_logs_what_it_would_have_logged_of_passes_as_drawn(data, tmp_path):
    trainer, _ = dpo.make_trainer(run_in(tmp_path, data), DPOSettings(batch_size=24, device_batch_size=8, max_steps=1))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(1.01)  # or all rewards would be 0
    drawn = [*itertools.islice(trainer.get_train_dataloader(), 3)]
    as_drawn = [dict(batch) for batch in drawn]
    dealt, _ = trainer.get_batch_samples(iter(drawn), 3, CPU)
    logged = []
    for passes in (as_drawn, dealt):
        step_gradient(trainer, passes)
        logged.append({name: np.mean(values) for name, values in trainer._metrics["train"].items()})
        trainer._metrics["train"].clear()
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert logged[1][name] == pytest.approx(logged[0][name], rel=1e-4), name


def test_dpo_passes_of_an_epochs_end_stay_as_they_are(data, tmp_path):
    trainer, _ = dpo.make_trainer(run_in(tmp_path, data), DPOSettings(batch_size=8, device_batch_size=4, max_steps=1))
    small, large = [*itertools.islice(trainer.get_train_dataloader(), 2)]
    halves = {
        name: torch.cat([part[:1] for part in values.chunk(2 if values.dim() == 2 else 1)])
        for name, values in small.items()
    }
    kept, _ = trainer.get_batch_samples(iter([halves, large]), 2, CPU)
    assert [len(batch["ref_chosen_logps"]) for batch in kept] == [1, 4]
    assert all("weight" not in batch for batch in kept)


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
