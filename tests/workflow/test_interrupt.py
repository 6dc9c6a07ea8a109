"""Ctrl-C in the middle of a training, and the run after it."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from conftest import DOMAIN, make_project, snakemake

pytestmark = pytest.mark.slow

TARGET = f"results/unlearned/{DOMAIN}/npo/seed0.hashes.json"
STEPS = 60


def test_after_ctrl_c_the_next_run_goes_on(tmp_path):
    project = make_project(tmp_path / "resurface")
    npo = {"max_steps": STEPS, "batch_size": 4, "save_steps": 5}
    config = {"domains": [DOMAIN], "methods": {"npo": npo}, "attacks": {}, "data": {"articles": 50}}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    run = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", TARGET],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore SIGINT, and so would all their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    states = project / "results" / ".resume"
    while not list(states.glob("*/checkpoint-*/whole")) and run.poll() is None:
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)  # what a terminal sends: to Snakemake and to its jobs
    output, _ = run.communicate(timeout=60)
    assert run.returncode != 0, output
    assert list(states.glob("*/checkpoint-*/whole")), "the state is kept"
    assert not (project / TARGET).exists()
    assert not list((project / "results" / "unlearned").glob("**/*.safetensors")), "nothing half written stays"

    snakemake(project, TARGET)
    losses = pd.read_parquet(project / "results" / "unlearned" / DOMAIN / "npo" / "seed0" / "losses.parquet")
    assert losses["step"].tolist() == list(range(1, STEPS + 1))
    assert not list(states.glob("*")), "the state goes when it is no longer needed"
    log = (project / "results" / "logs" / "unlearn" / DOMAIN / "npo" / "seed0.log").read_text()
    assert "going on after step" in log
