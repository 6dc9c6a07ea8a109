"""Warm starts: a forked worker does what the command would have done by itself, and ends when its command does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import CHECKPOINTS, DOMAIN

from resurface.warm_start import FOLDER_VARIABLE, socket_path

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/nvidiactl").exists(), reason="no server of warm starts here"
)

STARTER = """
import os, sys
from resurface.warm_start import FOLDER_VARIABLE, start_server
start_server()
print(os.environ[FOLDER_VARIABLE], flush=True)
sys.stdin.read()
"""


def wait_until(is_so, seconds=120):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server():
    """A server that is ready, and the process that it must not outlive."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    folder = starter.stdout.readline().strip()
    wait_until(socket_path(folder).exists)
    (process,) = psutil.Process(starter.pid).children()
    yield {"folder": folder, "process": process}
    starter.kill()
    starter.wait()
    wait_until(lambda: not Path(folder).exists(), seconds=10)
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, seconds=10)


def start(server, *arguments, **options):
    environment = {**os.environ, FOLDER_VARIABLE: server["folder"]} if server else os.environ
    return subprocess.Popen(
        ["resurface", *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_worker_writes_the_same_bytes(server, tmp_path):
    for name, place in [("warm", server), ("cold", None)]:
        (tmp_path / name).mkdir()
        command = start(place, "--log", "log", "data", DOMAIN, "--output", "tables", cwd=tmp_path / name)
        assert command.wait() == 0, command.stderr.read()
    tables = sorted((tmp_path / "cold" / "tables").iterdir())
    assert len(tables) > 3
    for table in tables:
        assert (tmp_path / "warm" / "tables" / table.name).read_bytes() == table.read_bytes()
    assert f"data {DOMAIN}" in (tmp_path / "warm" / "log").read_text()


def test_a_worker_computes_the_same_numbers(server, data, tmp_path):
    """Also with more threads than the server began with."""
    settings = {
        "references": ["original", "principal"],
        "block_sets": {"two": [1, 2]},
        "questions": 12,
        "skip_tokens": 16,
    }
    for name, place in [("warm", server), ("cold", None)]:
        command = start(
            place,
            *("--threads", "2", "attack", "orthogonalization", "--data", data / "results" / "data" / DOMAIN),
            *("--model", CHECKPOINTS / "never_learned", "--original", CHECKPOINTS / "original"),
            *("--output", tmp_path / name, "--settings", json.dumps(settings)),
        )
        assert command.wait() == 0, command.stderr.read()
    files = sorted(path.name for path in (tmp_path / "cold").iterdir())
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "warm" / name).read_bytes() == (tmp_path / "cold" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("data", "alchemy", "--output", "x"), 1, "'alchemy'"),
        (("score", "--model", "x"), 2, "Missing option"),
        (("--threads", "2", "model", "nowhere", "--output", "x"), 1, "nowhere"),
    ],
)
def test_faults_are_told_with_their_status(server, tmp_path, arguments, status, words):
    command = start(server, *arguments, cwd=tmp_path)
    output = command.communicate()[1]
    assert command.returncode == status
    assert words in output
    assert "Traceback" not in output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_its_command(server, tmp_path, number):
    def unignore():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = start(server, "pretrain", "original", "--output", "model", cwd=tmp_path, preexec_fn=unignore)
    assert "pretrain" in command.stderr.readline()
    workers = server["process"].children()
    assert len(workers) == 1
    time.sleep(2)
    command.send_signal(number)
    try:
        command.wait(timeout=30)
    finally:
        command.kill()
    wait_until(lambda: not workers[0].is_running(), seconds=30)
    output = command.stderr.read()
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert command.returncode == statuses[number], output
    if number == signal.SIGINT:
        assert "interrupted" in output
        assert not list(tmp_path.iterdir())
    assert not (tmp_path / "model").exists()


def test_a_command_that_goes_before_it_has_asked_harms_no_other(server, tmp_path):
    """Half a request, and a folder that is no more: the worker ends by itself, and the server serves on."""
    path = str(socket_path(server["folder"]))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(b'{"arguments": [')
    with socket.socket(socket.AF_UNIX) as connection, (tmp_path / "log").open("w") as log:
        connection.connect(path)
        socket.send_fds(connection, [b"\n"], [log.fileno()] * 3)
        request = {
            "arguments": [],
            "folder": str(tmp_path / "gone"),
            "umask": 0,
            "environment": {},
            "is_interruptible": True,
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        assert connection.makefile().readline() == "status 1\n"
    assert "gone" in (tmp_path / "log").read_text()
    wait_until(lambda: not server["process"].children())
    assert socket_path(server["folder"]).exists()
    command = start(server, "model", "nowhere", "--output", "x", cwd=tmp_path)
    assert "no such checkpoint folder" in command.communicate()[1]


def test_without_a_server_a_command_runs_by_itself(tmp_path):
    command = start({"folder": str(tmp_path)}, "data", "alchemy", "--output", "x", cwd=tmp_path)
    assert "'alchemy'" in command.communicate()[1]
    assert command.returncode == 1
