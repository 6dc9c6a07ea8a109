"""A disk that really is full in the middle of a job, and the run after somebody has made room."""

import json
import shlex
import subprocess
import sys

import pytest
from conftest import CHECKPOINTS, DOMAIN

from resurface.artifacts import hash_folder

# A disk of a few megabytes: a file system in memory, which only this script's own processes see.
SCRIPT = """
mount -t tmpfs -o size={megabytes}m none disk
cd disk
{command}
echo "status $?" >&2
ls >&2
mount -o remount,size=500m none .
cd ../disk
{command} || exit 1
cp -r model ../model
ls -A resume >&2
"""


def can_mount():
    if sys.platform != "linux":
        return False
    return (
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no small disk can be mounted here")
@pytest.mark.parametrize("megabytes", [3, 11, 20])
def test_a_training_whose_disk_is_full_goes_on_when_there_is_room(data, tmp_path, megabytes):
    """The first checkpoint, a later one, or the result does not fit."""
    (tmp_path / "disk").mkdir()
    settings = {"block": 2, "trained_blocks": [2], "max_steps": 6, "batch_size": 1, "save_steps": 2}
    arguments = ["unlearn", "rmu", "--model", CHECKPOINTS / "original", "--data", data / "results" / "data" / DOMAIN]
    arguments += ["--settings", json.dumps(settings), "--resume", "resume", "--output", "model"]
    command = [sys.executable, "-m", "resurface.cli", *map(str, arguments)]
    script = SCRIPT.format(megabytes=megabytes, command=shlex.join(command))
    run = subprocess.run(["unshare", "-rm", "bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "the disk is full" in run.stderr
    assert "status 1\nresume\n" in run.stderr
    assert "Traceback" not in run.stderr
    subprocess.run(command, cwd=tmp_path / "disk", check=True)
    assert hash_folder(tmp_path / "model") == hash_folder(tmp_path / "disk" / "model")
