"""The command line: faults end as one message without a traceback, and starting it imports little."""

import subprocess
import sys

import pytest
from conftest import CHECKPOINTS
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
        (["show", "nowhere.parquet"], ["nowhere.parquet: no such file"]),
        (["data", "alchemy", "--output", "x"], ["'alchemy'", "xenotoxicology, runecraft"]),
        (["pretrain", "both", "--output", "x"], ["'both'", "never_learned"]),
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


def test_an_orphan_that_still_unlearns_is_named(tmp_path):
    output = tmp_path / "seed0"
    arguments = ["unlearn", "rmu", "--model", CHECKPOINTS / "original", "--data", tmp_path, "--output", output]
    with FileLock(tmp_path / ".seed0.job.lock"):
        run = resurface(*arguments, "--resume", tmp_path / "resume", cwd=tmp_path)
    assert run.returncode == 1
    assert f"{output}: another process is writing it right now" in run.stderr
    assert list((tmp_path / "resume").iterdir()) == []


def test_taking_over_a_bundled_model(tmp_path):
    run = resurface("model", "testbed:never_learned", "--output", tmp_path / "m")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (
        CHECKPOINTS / "never_learned" / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "m.hashes.json").is_file()
