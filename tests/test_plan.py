"""The plan: sizes against real models and files, the default experiment against its measured run, and a disk that is too small."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import CHECKPOINTS, ROOT, make_project, snakemake

from resurface.checkpoints import check_weights
from resurface.config import Experiment, validate_config
from resurface.config_file import read_config_file
from resurface.errors import ResurfaceError
from resurface.models import decoder_blocks, linear_names
from resurface.planning import attacks, methods
from resurface.planning.disk import check_disk, needed_bytes
from resurface.planning.machines import named_machine
from resurface.planning.plan import Plan, make_plan
from resurface.planning.rules import job_work
from resurface.planning.shapes import KNOWN, find_shape, read_shape
from resurface.planning.sizes import Facts
from resurface.planning.work import GIB
from resurface.registry import ATTACKS, METHODS
from resurface.reproducibility.jobs import all_jobs
from resurface.reproducibility.record import record_path

MEASURED_HOURS = 0.546  # of one CPU core: the wall seconds in the records of the default experiment's 117 jobs, summed
LARGE = {
    "domains": ["xenotoxicology"],
    "models": {"original": "HuggingFaceH4/zephyr-7b-beta@main", "never_learned": None},
    "methods": dict.fromkeys(METHODS),
    "attacks": dict.fromkeys(ATTACKS),
}


def read_default() -> Experiment:
    return validate_config(read_config_file(ROOT / "config.yaml"), "config.yaml")


def make_large(**more: object) -> Experiment:
    return validate_config(LARGE | more, "large")


def plan_large(**more: object) -> Plan:
    experiment = make_large(**more)
    return make_plan(experiment, find_shape(experiment), named_machine("h200"))


def resurface(*arguments, cwd):
    command = [sys.executable, "-m", "resurface.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_sizes_are_those_of_real_models(model):
    shape = read_shape(CHECKPOINTS / "original" / "config.json")
    tensors = check_weights(CHECKPOINTS / "original" / "model.safetensors").values()
    assert shape.parameters == sum(rows * (columns[0] if columns else 1) for rows, *columns in tensors)
    layers = [model.get_submodule(name) for name in linear_names(model, None, "all-linear")]
    assert shape.block_weights == sum(layer.weight.numel() for layer in layers)
    assert shape.adapter_weights(8) == sum(8 * (layer.in_features + layer.out_features) for layer in layers)
    assert shape.blocks == len(decoder_blocks(model))
    assert KNOWN["mistral-7b"].parameters == 7_241_732_096
    assert KNOWN["llama-3.1-8b"].parameters == 8_030_261_248


def test_shapes_are_found_without_a_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_shape(read_default()) == find_shape(make_large(models={"original": str(CHECKPOINTS / "original")}))
    assert find_shape(make_large()) == KNOWN["mistral-7b"]
    assert find_shape(make_large(), "llama-3.1-8b") == KNOWN["llama-3.1-8b"]
    config = json.loads((CHECKPOINTS / "original" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config | {"num_hidden_layers": 3}}))
    assert find_shape(make_large(), str(tmp_path)).blocks == 3
    with pytest.raises(ResurfaceError, match=r"'org/unheard-of@main' is not known.*--shape: mistral-7b, llama-3\.1-8b"):
        find_shape(make_large(models={"original": "org/unheard-of@main"}))
    unheard = make_large(models={"original": "org/unheard-of@main"})
    made = tmp_path / "results" / "models" / "original"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    for source, is_its_own in (("testbed:original", False), ("org/unheard-of@main", True)):
        record_path(made).write_text(json.dumps({"command": ["resurface", "model", source]}))
        assert find_shape(make_large()) == KNOWN["mistral-7b"], "another experiment's results"
        if is_its_own:
            assert find_shape(unheard).blocks == 4
        else:
            with pytest.raises(ResurfaceError, match=r"'org/unheard-of@main' is not known"):
                find_shape(unheard)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(ResurfaceError, match=r"config\.json: found hidden_size 'wide'"):
        find_shape(make_large(), str(tmp_path))


def test_every_method_and_attack_has_a_cost():
    assert all(callable(getattr(methods, name, None)) for name in METHODS)
    assert all(callable(getattr(attacks, name, None)) for name in ATTACKS)


def test_the_default_experiment_costs_about_what_it_was_measured_to():
    experiment = read_default()
    plan = make_plan(experiment, find_shape(experiment), named_machine("laptop"))
    assert len(plan.works) == len(all_jobs(experiment))
    assert MEASURED_HOURS / 2 < plan.hours < MEASURED_HOURS * 2
    assert plan.notes == []
    for line in plan.lines:
        if line.rule == "score":
            assert line.hours / plan.hours < 0.2


def test_a_spread_model_takes_more_gpus_for_as_long_and_less_of_each():
    one, two = plan_large(), plan_large(model_gpus=2)
    for single, spread in zip(one.lines, two.lines, strict=True):
        memory = single.memory
        assert spread.hours == pytest.approx(single.hours * (2 if memory else 1))
        assert spread.memory == pytest.approx(memory / 2)
    shared = plan_large(model_gpus=2, training_gpus=2)
    found = {line.shown: line for line in shared.lines}
    assert found["unlearn npo"] == {line.shown: line for line in plan_large(training_gpus=2).lines}["unlearn npo"]
    assert found["unlearn rmu"] == {line.shown: line for line in two.lines}["unlearn rmu"]


def test_a_checkpoint_and_adapters_take_the_disk_that_they_take():
    experiment = read_default()
    facts = Facts(experiment, find_shape(experiment), is_gpu=False)
    unlearned, _ = job_work(facts, "results/unlearned/xenotoxicology/npo/seed0", "unlearn", "npo")
    bundled = (CHECKPOINTS / "original" / "model.safetensors").stat().st_size  # in bfloat16
    assert unlearned.disk == pytest.approx(2 * bundled, rel=0.01)
    adapted, _ = job_work(facts, "results/attacks/xenotoxicology/npo/seed0/finetuning/forget", "attack", "finetuning")
    assert adapted.disk == pytest.approx(2 * 24_235_972 / 3, rel=0.01)  # three adapters of rank 128 were measured
    assert adapted.changing == 2


def test_a_7b_experiment_keeps_interventions_within_a_tenth_of_a_checkpoint():
    plan = plan_large()
    assert 0.05 < max(plan.shares) <= 0.1  # an adapter of rank 128 in float32
    pruning = next(line for line in plan.lines if (line.rule, line.name) == ("attack", "pruning"))
    assert pruning.works[0].changing == 45
    assert pruning.memory / GIB == pytest.approx(40, rel=0.1)  # measured on one H200
    assert sum(work.downloaded for work in plan.works) == 2 * KNOWN["mistral-7b"].parameters
    assert any(note.startswith("unlearn npo needs about") for note in plan.notes)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "workflow" / "experiments").glob("*b-*.yaml")), ids=lambda path: path.stem
)
def test_experiments_at_paper_scale_are_planned_whole(path):
    """No job's cost is unknown, and what the complete experiment keeps of attacks is small beside checkpoints."""
    experiment = validate_config(read_config_file(path), str(path))
    plan = make_plan(experiment, find_shape(experiment), named_machine("h200"))
    assert not [note for note in plan.notes if "not known" in note]
    assert 0 < max(plan.shares) <= 0.1
    assert 20 < plan.hours < 500
    hub = 2 * plan.shape.parameters
    downloads = [work for line in plan.lines if line.rule == "model" for work in line.works if work.downloaded]
    assert len(downloads) == 1 + len(experiment.published)
    assert {work.downloaded for work in downloads} == {hub}


def test_what_a_server_writes_is_counted_in_tokens():
    config = read_config_file(ROOT / "workflow" / "experiments" / "zephyr-7b-bio.yaml")
    server = {"base_url": "http://127.0.0.1:8000/v1", "model": "writer"}
    tokens, hours = [], []
    for preferences in ({}, server, {**server, "forget_questions": 10_000}):
        experiment = validate_config({**config, "preferences": preferences}, "bio")
        plan = make_plan(experiment, find_shape(experiment), named_machine("h200"))
        (line,) = (line for line in plan.lines if line.rule == "write_preferences")
        tokens.append(sum(work.tokens for work in line.works))
        hours.append(line.hours)
    assert tokens[0] == 0 < tokens[1] < tokens[2]
    assert hours[0] > 2 * hours[1]


def test_more_of_everything_costs_more():
    """Seeds, steps, samples and benchmarks reach the plan; what is only assumed is said."""
    plain = plan_large()
    assert plan_large(seeds=[0, 1]).hours > 1.8 * plain.hours
    more = {"attacks": {**LARGE["attacks"], "pruning": {"samples": 5120}}}
    assert plan_large(**more).hours > plain.hours + 0.5
    tasks = plan_large(benchmarks={"mmlu": ["mmlu"], "other": ["arc_easy"]})
    assert tasks.hours > 2 * plain.hours
    assert any("arc_easy" in note and "1,000 questions are assumed" in note for note in tasks.notes)
    subject = plan_large(benchmarks={"mmlu": ["resurface_mmlu_virology"]})
    assert any("resurface_mmlu_virology" in note for note in subject.notes), "a subject is not all of MMLU"
    assert subject.hours < plan_large(benchmarks={"mmlu": ["resurface_mmlu"]}).hours - 1
    longer = plan_large(methods={"npo": {"epochs": 30.0}})
    shorter = plan_large(methods={"npo": {"epochs": 3.0}})
    assert longer.hours > shorter.hours


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--machine", "abacus"], ["found 'abacus'", "h200, h100, laptop"]),
        (["--machine", "h200", "--measure"], ["a plan is for one machine"]),
        (["--configfile", "nowhere.yaml"], ["nowhere.yaml: no such configuration file"]),
    ],
)
def test_faults_of_the_command(arguments, words):
    run = resurface("plan", *arguments, cwd=ROOT)
    assert run.returncode == 1
    assert all(word in run.stderr for word in words), run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_the_command_prints_a_plan_for_a_measured_machine(tmp_path):
    shutil.copy(ROOT / "config.yaml", tmp_path)
    run = resurface("plan", "--measure", "--device", "cpu", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for words in ("a large matrix product", "attack enhanced_gcg", "measured: CPU", "total", "on average and"):
        assert words in run.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.fixture
def monster(tmp_path):
    """The folder of a checkpoint, of which only the configuration is there, that no disk has room for."""
    config = json.loads((CHECKPOINTS / "original" / "config.json").read_text())
    (tmp_path / "monster").mkdir()
    sizes = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 1_000_000}
    (tmp_path / "monster" / "config.json").write_text(json.dumps(config | sizes))
    return str(tmp_path / "monster")


def test_only_what_is_to_be_written_needs_room(tmp_path, monkeypatch, monster):
    experiment = make_large(models={"original": monster, "never_learned": None})
    outputs = {record_path(Path(output)).as_posix() for output in all_jobs(experiment)}
    with pytest.raises(ResurfaceError, match=r"results: .* need about [\d,.]+ GB there, and .*`RESURFACE_DISK_CHECK=`"):
        check_disk(experiment, outputs, tmp_path / "results")
    few = {name for name in outputs if "/data/" in name or "/refusals/" in name}
    check_disk(experiment, few, tmp_path / "results")
    assert 0 < needed_bytes(experiment, few) < 1e8
    assert needed_bytes(experiment, set()) == 0
    monkeypatch.setenv("RESURFACE_DISK_CHECK", "")
    check_disk(experiment, outputs, tmp_path / "results")


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_refused_before_its_first_job(tmp_path, monster):
    project = make_project(tmp_path / "resurface")
    config = LARGE | {"models": {"original": monster, "never_learned": None}}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    run = snakemake(project, check=False)
    assert run.returncode == 1
    assert "GB there, and" in run.stdout
    assert "RESURFACE_DISK_CHECK=" in run.stdout
    assert "Traceback" not in run.stdout
    assert not list((project / "results").rglob("*.parquet"))
    run = snakemake(project, "results/data/general/questions.parquet", check=False)
    assert run.returncode == 0, run.stdout
