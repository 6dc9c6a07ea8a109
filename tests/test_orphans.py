"""Orphans: a job ends, and says from where the next run goes on, when its scheduler or its shell is killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

SCHEDULER = """
import subprocess
from resurface.orphans import name_scheduler
name_scheduler()
subprocess.run(["bash", "-c", "resurface --log job.log pretrain original --output model; true"])
"""


def is_over(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("victim", ["scheduler", "shell"])
def test_a_job_ends_with_its_scheduler_and_with_its_shell(tmp_path, victim):
    scheduler = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert "pretrain" in scheduler.stderr.readline()
    (shell,) = psutil.Process(scheduler.pid).children()
    (job,) = shell.children()
    assert "pretrain" in job.cmdline()
    (shell if victim == "shell" else psutil.Process(scheduler.pid)).send_signal(signal.SIGKILL)
    psutil.wait_procs([job], timeout=60)
    assert is_over(job)
    scheduler.kill()
    scheduler.wait()
    assert "ended by SIGTERM" in (tmp_path / "job.log").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["job.log"]


def test_a_command_that_is_no_job_outlives_its_shell(tmp_path):
    shell = subprocess.Popen(
        ["bash", "-c", "resurface --log job.log pretrain original --output model; true"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RESURFACE_SCHEDULER"},
    )
    assert "pretrain" in shell.stderr.readline()
    (job,) = psutil.Process(shell.pid).children()
    shell.kill()
    shell.wait()
    try:
        psutil.wait_procs([job], timeout=3)
        assert not is_over(job)
    finally:
        job.kill()


DEAF = """
import os, signal, subprocess, time
from resurface import orphans, preemption
preemption.CLEANUP_SECONDS = orphans.CLEANUP_SECONDS = 1.0
signal.signal(signal.SIGTERM, preemption.end_at_once)
os.environ[orphans.SCHEDULER_VARIABLE] = str(subprocess.Popen(["sleep", "1"]).pid)
class Finalized:
    def __del__(self):
        time.sleep(30)
orphans.end_with_scheduler()
Finalized()
print("not heard", flush=True)
time.sleep(30)
"""


def test_an_orphan_that_does_not_hear_is_asked_again():
    """An exception in a finalizer is lost."""
    job = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True, timeout=20)
    assert "not heard" in job.stdout
    assert job.returncode == 1
    assert job.stderr.count("Preempted") >= 2


BREAKING_OFF = """
import os, signal, sys, time
from resurface import cli
@cli.app.command("break-off")
def break_off():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    except BaseException:
        raise ImportError("no such module")
sys.argv = ["resurface", "break-off"]
cli.main()
"""


def test_an_end_that_a_library_turns_into_its_own_error_is_told_as_an_end():
    job = subprocess.run([sys.executable, "-c", BREAKING_OFF], capture_output=True, text=True, timeout=20)
    assert job.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM; the next run starts this job again" in job.stderr
    assert "bug" not in job.stderr
