"""GPUs that jobs share out by locks: real processes, on GPUs that need not be there."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from resurface import gpus
from resurface.errors import ResurfaceError
from resurface.models import pick_device

JOB = """
import logging, sys, time
from pathlib import Path
from resurface.gpus import lock_gpus
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
print(*lock_gpus(sys.argv[3:], int(sys.argv[2]), Path(sys.argv[1])), flush=True)
time.sleep(60)
"""
LISTED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22222222-2222-3333-4444-555555555555)
  MIG 3g.40gb     Device  0: (UUID: MIG-33333333-2222-3333-4444-555555555555)
  MIG 3g.40gb     Device  1: (UUID: MIG-44444444-2222-3333-4444-555555555555)
"""


@pytest.fixture
def start(tmp_path):
    """Start jobs that lock GPUs and hold them; all are ended afterwards."""
    running = []

    def start_job(count: int, *names: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-c", JOB, str(tmp_path / "locks"), str(count), *names]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start_job
    for job in running:
        job.kill()
        job.wait()
        job.stdout.close()


def read_taken(job: subprocess.Popen[str]) -> list[str]:
    """The GPUs that a job has taken: what it prints after its log lines."""
    assert job.stdout is not None
    line = job.stdout.readline()
    while line.startswith(("computing on", "waiting for")):
        line = job.stdout.readline()
    return line.split()


def test_jobs_never_share_a_gpu_and_a_killed_one_frees_its_own(start):
    jobs = [start(1, "GPU-a", "GPU-b", "GPU-c") for _ in range(3)]
    taken = [read_taken(job) for job in jobs]
    assert sorted(taken) == [["GPU-a"], ["GPU-b"], ["GPU-c"]]
    late = start(1, "GPU-a", "GPU-b", "GPU-c")
    assert late.stdout.readline().startswith("waiting for 1 of 3 GPUs")
    jobs[1].send_signal(signal.SIGKILL)
    assert read_taken(late) == taken[1]


def test_who_needs_several_takes_all_or_none(start):
    first = start(1, "a", "b", "c")
    assert read_taken(first) == ["a"]
    several = start(3, "a", "b", "c")
    assert several.stdout.readline().startswith("waiting for 3 of 3 GPUs")
    one = start(1, "c", "b")
    assert read_taken(one) in (["b"], ["c"])
    for job in (first, one):
        job.kill()
    assert read_taken(several) == ["a", "b", "c"]


def test_a_job_sees_its_own_gpu_only_and_its_children_take_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "FOLDER", tmp_path / "locks")
    monkeypatch.setattr(gpus, "HELD", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    monkeypatch.delenv(gpus.HELD_VARIABLE, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert gpus.take_gpus() == ["2"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert gpus.take_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")  # set anew from outside: these are not what is held
    assert gpus.take_gpus() == ["3"]
    for lock in gpus.HELD:
        lock.release()


@pytest.mark.parametrize(
    "variables", [{"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"LOCAL_RANK": "0"}]
)
def test_where_nothing_is_taken(tmp_path, monkeypatch, variables):
    monkeypatch.setattr(gpus, "FOLDER", tmp_path / "locks")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert gpus.take_gpus() == []
    assert dict(os.environ) == before
    assert not (tmp_path / "locks").exists()


def test_gpus_are_known_by_uuid_and_parts_stand_for_the_whole():
    parts = [f"MIG-{number}-2222-3333-4444-555555555555" for number in ("33333333", "44444444")]
    assert gpus.parse_gpus(LISTED) == ["GPU-11111111-2222-3333-4444-555555555555", *parts]
    assert gpus.parse_gpus("No devices found.") == []


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(ResurfaceError, match=r"on 4 GPUs, but 2 are visible: a, b"):
        gpus.lock_gpus(["a", "b"], 4, tmp_path / "locks")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResurfaceError, match=r"file: the locks .* cannot be opened: .* `device: cuda:0`"):
        gpus.lock_gpus(["a"], 1, tmp_path / "file")


def test_all_users_can_lock(tmp_path):
    gpus.lock_gpus(["GPU/a b"], 1, tmp_path / "locks")
    (lock,) = (tmp_path / "locks").iterdir()
    assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777
    assert lock.stat().st_mode & 0o777 == 0o666
    assert lock.name == "GPU_a_b.lock"
    gpus.HELD.pop().release()


def test_a_gpu_that_is_named_is_the_only_one_seen(monkeypatch):
    """Otherwise a Trainer spreads over all that it sees."""
    monkeypatch.setenv(gpus.VISIBLE, "4,7,9")
    monkeypatch.delenv(gpus.HELD_VARIABLE, raising=False)
    gpus.show_gpu(1)
    gpus.show_gpu(1)
    assert os.environ[gpus.VISIBLE] == "7"
    assert gpus.take_gpus() == []
    monkeypatch.setenv(gpus.VISIBLE, "4,7,9")
    with pytest.raises(ResurfaceError, match="found 'cuda:3', but this machine has 3; counting starts at 0"):
        gpus.show_gpu(3)


def test_a_job_that_sees_the_gpus_of_others_is_refused(tmp_path, monkeypatch):
    """As where a library looked at the GPUs before the others could be hidden; a Trainer would spread over all of them."""
    monkeypatch.setattr(gpus, "FOLDER", tmp_path / "locks")
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    monkeypatch.delenv(gpus.HELD_VARIABLE, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ResurfaceError, match=r"compute on 1 of this machine's GPUs and sees 2, .* as in CUDA_VISIBLE_DEVICES=0"
    ):
        pick_device("auto")
    gpus.HELD.pop().release()


def test_numbers_and_beginnings_name_the_gpu_that_others_lock():
    shown = "".join(f"GPU {i}: NVIDIA H100 (UUID: GPU-{i}{i}-2222)\n" for i in range(3))
    assert gpus.name_gpus(["2", "0"], shown) == ["GPU-22-2222", "GPU-00-2222"]
    assert gpus.name_gpus(["GPU-11", "GPU-22-2222"], shown) == ["GPU-11-2222", "GPU-22-2222"]
    assert gpus.name_gpus(["3", "GPU-"], shown) == ["3", "GPU-"], "what is not found, or not one, stays"
    assert gpus.name_gpus(["0"], LISTED) == ["0"], "numbers do not count parts"
    assert gpus.name_gpus(["0"], "") == ["0"]
