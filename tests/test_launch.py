"""Training in passes, within memory, and in several processes: the same run as all at once in one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import CHECKPOINTS, DOMAIN, ROOT
from safetensors.torch import load_file

from resurface.artifacts import read_json_object, write_table
from resurface.errors import ResurfaceError
from resurface.models import run_within_memory
from resurface.settings.dpo import DPOSettings
from resurface.settings.npo import NPOSettings
from resurface.settings.rmu import RMUSettings
from resurface.unlearning import npo
from resurface.unlearning.launch import describe_run, launch, unlearn_within_memory
from resurface.unlearning.training import Run

# The rate is high enough that the loss moves by several percent.
SHARED = {"batch_size": 4, "max_steps": 6, "learning_rate": 1e-3, "schedule": "constant"}
METHODS = {
    "rmu": RMUSettings(block=2, trained_blocks=[0, 1, 2], coefficient=50.0, **SHARED),
    "npo": NPOSettings(**SHARED),
    "dpo": DPOSettings(**{**SHARED, "learning_rate": 1e-4}, warmup_steps=0, held_out=0.0),
}


def run_in(folder, data, device="cpu"):
    tables = data / "results" / "data" / DOMAIN
    return Run(CHECKPOINTS / "original", tables, folder / "model", folder / "resume", 0, torch.device(device))


def read_run(run):
    weights = {}
    for path in run.output.glob("*.safetensors"):
        weights |= load_file(path)
    return pd.read_parquet(run.output / "losses.parquet"), weights


@pytest.fixture(scope="module")
def at_once(data, tmp_path_factory):
    """Losses and weights of a method, trained in one process and one pass a step."""
    made = {}

    def train(method):
        if method not in made:
            run = run_in(tmp_path_factory.mktemp(method), data)
            import_module(f"resurface.unlearning.{method}").unlearn(run, METHODS[method])
            made[method] = read_run(run)
        return made[method]

    return train


def assert_same_run(found, expected, rtol=1e-3):
    losses, weights = expected
    others, other_weights = found
    moving = losses["forget_loss" if "forget_loss" in losses else "loss"]
    assert (moving / moving.iloc[0] - 1).abs().max() > 0.02, "it has clearly moved"
    for column in {"loss", "grad_norm", "forget_loss", "retain_loss"} & set(losses):
        assert others[column].tolist() == pytest.approx(losses[column].tolist(), rel=rtol), column
    start = load_file(CHECKPOINTS / "original" / "model.safetensors")
    for name, weight in weights.items():
        moved = (weight - start[name].float()).norm()
        assert (other_weights[name] - weight).norm() <= 0.05 * moved + 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_passes_of_fewer_samples_make_the_same_step(at_once, method, data, tmp_path):
    run = run_in(tmp_path, data)
    settings = METHODS[method].model_copy(update={"device_batch_size": 1})
    import_module(f"resurface.unlearning.{method}").unlearn(run, settings)
    assert_same_run(read_run(run), at_once(method))


@pytest.mark.slow
def test_a_run_that_finds_no_room_goes_on_with_fewer_samples_at_once(at_once, data, tmp_path, monkeypatch, caplog):
    """Memory is short from step 3 on; the steps before are kept."""
    run, steps, expected = run_in(tmp_path, data), [], at_once("npo")
    compute = npo.NPOTrainer.compute_loss

    def short_of_memory(trainer, model, inputs, *arguments, **options):
        steps.append(trainer.state.global_step)
        if trainer.state.global_step >= 2 and trainer.args.per_device_train_batch_size > 2:
            raise torch.OutOfMemoryError("out of memory")
        return compute(trainer, model, inputs, *arguments, **options)

    monkeypatch.setattr(npo.NPOTrainer, "compute_loss", short_of_memory)
    settings = METHODS["npo"].model_copy(update={"save_steps": 1})
    unlearn_within_memory("resurface.unlearning.npo", run, settings)
    assert steps == [0, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5]
    assert "out of memory with 4 samples of each kind in a pass; going on with 2" in caplog.text
    assert_same_run(read_run(run), expected)


def test_a_run_that_finds_no_room_for_one_sample_ends(data, tmp_path, monkeypatch):
    def no_memory(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(npo.NPOTrainer, "compute_loss", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        unlearn_within_memory("resurface.unlearning.npo", run_in(tmp_path, data), METHODS["npo"])


def test_batches_are_halved_until_there_is_room():
    done, sizes = [], []

    def run(part):
        items = list(range(10))[part]
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError
        done.extend(items)

    assert run_within_memory(10, lambda start: 6 if start < 6 else 8, run) == 2
    assert done == list(range(10))
    assert sizes == [6, 3, 3, 4, 2, 2]


def test_what_there_was_no_room_for_is_not_tried_again():
    """Also where fewer items are left than a batch may have."""
    sizes = []

    def run(part):
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError

    assert run_within_memory(6, lambda start: 83, run) == 5
    assert sizes == [6, 5, 2, 2, 2]


def run_short_of_memory(monkeypatch, method, step):
    """Let the processes that run `short_of_memory` find it, and tell them what to do."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")]))
    monkeypatch.setenv("SHORT_METHOD", method)
    monkeypatch.setenv("SHORT_FROM", str(step))


FSDP = ROOT / "envs" / "accelerate" / "fsdp2.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_two_processes_make_the_same_run(at_once, method, data, tmp_path):
    run = run_in(tmp_path, data)
    used = launch(f"resurface.unlearning.{method}", run, METHODS[method], FSDP, 2)
    assert used == {"device": None, "peak_device_memory": 0}
    assert_same_run(read_run(run), at_once(method))
    assert not run.resume_folder.exists()
    assert [path.name for path in tmp_path.iterdir() if "used" in path.name] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_two_processes_that_deal_samples_to_passes_make_the_same_run(method, data, tmp_path):
    settings = METHODS[method].model_copy(update={"batch_size": 8})
    whole, shared = run_in(tmp_path / "whole", data), run_in(tmp_path / "shared", data)
    import_module(f"resurface.unlearning.{method}").unlearn(whole, settings)
    launch(f"resurface.unlearning.{method}", shared, settings.model_copy(update={"device_batch_size": 2}), FSDP, 2)
    assert_same_run(read_run(shared), read_run(whole))


@pytest.mark.slow
def test_processes_that_find_no_room_go_on_with_fewer_samples_at_once(at_once, data, tmp_path, monkeypatch, caplog):
    """Those of the second start go on from step 2, which the first ones saved."""
    run_short_of_memory(monkeypatch, "npo", 2)
    run, settings = run_in(tmp_path, data), METHODS["npo"].model_copy(update={"save_steps": 1})
    launch("short_of_memory", run, settings, FSDP, 2)
    assert "out of memory with 2 samples of each kind in a pass; going on with 1" in caplog.text
    assert_same_run(read_run(run), at_once("npo"))
    assert not list(tmp_path.glob("resume*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_processes_that_go_on_in_a_later_epoch_see_its_order(method, data, tmp_path, monkeypatch):
    """Eight samples are two steps; the second start goes on from step 3, in the middle of the second epoch."""
    run_short_of_memory(monkeypatch, method, 3)
    few = shutil.copytree(data / "results" / "data" / DOMAIN, tmp_path / "few" / "results" / "data" / DOMAIN)
    table = pd.read_parquet(few / "preferences.parquet")
    # NPO has a forget sample in each pair; DPO has pairs of three kinds, half of them about forgetting.
    write_table(
        table.groupby("kind").head(8 if method == "npo" else 4).reset_index(drop=True), few / "preferences.parquet"
    )
    settings = METHODS[method].model_copy(update={"save_steps": 1, "epochs": 3.0, "max_steps": None})
    whole, run = run_in(tmp_path / "whole", tmp_path / "few"), run_in(tmp_path, tmp_path / "few")
    import_module(f"resurface.unlearning.{method}").unlearn(whole, settings)
    assert len(read_run(whole)[0]) == 6
    launch("short_of_memory", run, settings, FSDP, 2)
    assert_same_run(read_run(run), read_run(whole))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_two_processes_that_share_the_model_out_make_the_same_run(at_once, method, data, tmp_path):
    """With activations computed twice, as large models need it."""
    run, settings = run_in(tmp_path, data), METHODS[method].model_copy(update={"gradient_checkpointing": True})
    chosen = yaml.safe_load(FSDP.read_text())["fsdp_config"]
    environment = {f"FSDP_{name.removeprefix('fsdp_').upper()}": str(value) for name, value in chosen.items()}
    environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true", "OMP_NUM_THREADS": "1"}
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "tests" / "fsdp_on_cpu.py")]
    subprocess.run(
        [sys.executable, "-m", *command, describe_run(f"resurface.unlearning.{method}", run, settings)],
        env=os.environ | environment,
        check=True,
    )
    assert_same_run(read_run(run), at_once(method))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_two_gpus_that_share_the_model_out_make_the_same_run(method, data, tmp_path):
    settings = METHODS[method].model_copy(update={"mixed_precision": "no"})
    single, shared = run_in(tmp_path / "single", data, "cuda"), run_in(tmp_path / "shared", data, "cuda")
    command = [sys.executable, "-m", "resurface.cli", "unlearn", method, "--device", "cuda"]
    command += ["--model", str(single.model_folder), "--data", str(single.data_folder), "--output", str(single.output)]
    command += ["--resume", str(tmp_path / "resume"), "--settings", settings.model_dump_json()]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=True)
    used = launch(f"resurface.unlearning.{method}", shared, settings, FSDP, 2)
    assert used["device"] == torch.cuda.get_device_name()
    assert_same_run(read_run(shared), read_run(single))


@pytest.mark.slow
def test_processes_that_are_asked_to_end_save_and_go_on(data, tmp_path):
    """By the command line, whose record and lock belong to the process that starts the others."""
    output, log = tmp_path / "results" / "unlearned" / "model", tmp_path / "log"
    settings = METHODS["npo"].model_copy(update={"max_steps": 12, "learning_rate": 1e-4})
    command = [sys.executable, "-m", "resurface.cli", "--log", str(log), "unlearn", "npo"]
    command += [*"--device cpu --gpus 2 --resume".split(), str(tmp_path / "resume")]
    command += ["--model", str(CHECKPOINTS / "original"), "--data", str(data / "results" / "data" / DOMAIN)]
    command += ["--output", str(output), "--settings", settings.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("resume/*/")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, log.read_text()
    assert not output.exists()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    losses = pd.read_parquet(output / "losses.parquet")
    assert losses["step"].tolist() == list(range(1, 13))
    whole = run_in(tmp_path / "whole", data)
    npo.unlearn(whole, settings)
    assert losses["loss"].tolist() == pytest.approx(read_run(whole)[0]["loss"].tolist(), rel=1e-2)
    record = read_json_object(Path(f"{output}.provenance.json"))
    assert record["settings"] == json.loads(settings.model_dump_json())


def test_a_step_that_processes_cannot_share_out_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ResurfaceError, match=r"batch_size: found 4, which 3 processes"):
        npo.unlearn(run_in(tmp_path, data), METHODS["npo"])


def test_a_missing_configuration_of_accelerate_is_named(data, tmp_path):
    with pytest.raises(ResurfaceError, match=r"nothing\.yaml: no such file"):
        launch("resurface.unlearning.npo", run_in(tmp_path, data), METHODS["npo"], tmp_path / "nothing.yaml", 2)
