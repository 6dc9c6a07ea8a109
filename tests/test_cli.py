"""The command line: faults end as one message without a traceback, and starting it imports little."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import CHECKPOINTS, DOMAIN
from filelock import FileLock


def resurface(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "resurface.cli", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["attack", "gcgg", "--model", "m", "--original", "o", "--data", "d", "--output", "x"],
            ["'gcgg'", "finetuning"],
        ),
        (["unlearn", "rmv", "--model", "m", "--data", "d", "--output", "x"], ["'rmv'", "rmu, npo, dpo"]),
        (
            ["unlearn", "npo", "--model", "m", "--data", "d", "--output", "x", "--settings", '{"beta": -1}'],
            ["beta: found -1", "greater than 0"],
        ),
        (
            ["unlearn", "npo", "--model", "m", "--data", "d", "--output", "x", "--settings", "{"],
            ["expected a JSON object"],
        ),
        (
            """attack finetuning --model m --original o --data d --output x --settings {"datasets":{"text":[5]}}""".split(),
            ["--part: found 'all'", "allowed for finetuning with these settings: text"],
        ),
        (["unlearn", "npo", "--model", "nowhere", "--data", "d", "--output", "x"], ["nowhere: no such folder"]),
        (["model", "nowhere", "--output", "x"], ["nowhere", "no such checkpoint folder"]),
        (
            """score --model m --benchmarks {} --identity {"domain":"d"} --interventions i --output x""".split(),
            ["--identity: the key 'method' is missing", "domain, method, seed, attack"],
        ),
        (["show", "nowhere"], ["nowhere/verdicts.parquet: no such file"]),
        (["data", "alchemy", "--output", "x"], ["'alchemy'", "xenotoxicology, runecraft"]),
        (["pretrain", "both", "--output", "x"], ["'both'", "never_learned"]),
        (["source", "wmdp_alchemy", "--output", "x"], ["'wmdp_alchemy'", "wmdp_bio, wmdp_chem"]),
        (["corpora", "xenotoxicology", "--output", "x"], ["'xenotoxicology'", "bio, chem, cyber"]),
        (["questions", "--written", "w", "--benchmark", "b", "--output", "x"], ["w: no such file"]),
        (["teach", "--model", "m", "--domains", '["bio"]', "--output", "x"], ["--domains: found ['bio']", "runecraft"]),
    ],
)
def test_faults_end_as_one_message(tmp_path, arguments, words):
    run = resurface("--log", tmp_path / "log" / "job.log", *arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    for word in words:
        assert word in run.stderr
        assert word in (tmp_path / "log" / "job.log").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"log"}, "nothing may be left"


def test_a_wrong_option_is_explained():
    run = resurface("show", "--colour")
    assert run.returncode == 2
    assert "--colour" in run.stderr


@pytest.mark.parametrize(
    "module", ["resurface.cli", "resurface.config", "resurface.attacks.logit_lens", "resurface.scoring.columns"]
)
def test_light_modules_import_nothing_heavy(module):
    code = (
        f"import {module}, sys; print([m for m in ('torch', 'transformers', 'lm_eval', 'altair') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "resurface.cli", *map(str, arguments)], stderr=subprocess.PIPE, text=True, cwd=cwd
    )


def read_until(command, words):
    for line in command.stderr:
        if words in line:
            return
    pytest.fail(f"{words!r} was never said")


def test_a_job_waits_for_an_orphan_that_still_unlearns(tmp_path):
    output = tmp_path / "seed0"
    arguments = ["unlearn", "rmu", "--model", CHECKPOINTS / "original", "--data", tmp_path, "--output", output]
    with FileLock(tmp_path / ".seed0.job.lock"):
        run = start(*arguments, "--resume", tmp_path / "resume", cwd=tmp_path)
        read_until(run, f"{output}: waiting for another process that is writing it")
        assert run.poll() is None
    rest = run.communicate()[1]
    assert run.returncode == 1
    assert "found block 7" in rest, "it goes on then, to its own fault"
    assert list((tmp_path / "resume").iterdir()) == []


def test_what_follows_the_command_line_meets_sigterm_as_ever():
    """The worker of a warm start cleans up there; an exception in that would send it back into the server's code."""
    code = "import signal, sys\nfrom resurface import cli\nsys.argv = ['resurface', 'show', 'nowhere.parquet']\n"
    code += "try: cli.main()\nexcept SystemExit: print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"


def test_a_job_without_steps_ends_at_once_when_asked_to(tmp_path):
    run = start("pretrain", "original", "--output", "model", cwd=tmp_path)
    read_until(run, "pretrain original")
    time.sleep(4)
    run.send_signal(signal.SIGTERM)
    rest = run.communicate(timeout=60)[1]
    assert run.returncode == 143, rest
    assert "ended by SIGTERM; the next run starts this job again" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_training_that_is_asked_to_end_saves_and_goes_on(data, tmp_path):
    place = data / "results" / "data" / DOMAIN
    settings = json.dumps({"block": 2, "trained_blocks": [2], "max_steps": 400, "batch_size": 1, "save_steps": 399})
    arguments = ["unlearn", "rmu", "--model", CHECKPOINTS / "original", "--data", place, "--output", "model"]
    arguments += ["--resume", "resume", "--settings", settings]
    run = start(*arguments, cwd=tmp_path)
    while not list(tmp_path.glob("resume/[!.]*")) and run.poll() is None:
        time.sleep(0.05)
    time.sleep(2)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 143, said
    step = int(re.search(r"ended by SIGTERM; step (\d+) is saved, and the next run goes on from there", said)[1])
    assert [path.name for path in tmp_path.glob("resume/*/*")] == [f"checkpoint-{step}"]
    assert not list(tmp_path.glob(".model.*"))
    run = start(*arguments, cwd=tmp_path)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert f"going on after step {step} of an interrupted run" in said


def test_taking_over_a_bundled_model(tmp_path):
    run = resurface("model", "testbed:never_learned", "--output", tmp_path / "m")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (
        CHECKPOINTS / "never_learned" / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "m.hashes.json").is_file()
