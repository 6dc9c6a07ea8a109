"""Warm start: commands run in processes forked from one that has imported the libraries already.

Importing torch, transformers and the harness takes eight seconds of a CPU core, as long as many of the testbed's jobs
compute. While a workflow runs on the CPUs of one machine, a server imports them once. The `resurface` command of a job then
asks it for a worker, which runs the command as if it stood alone: same arguments, folder, environment and open files. The
server imports none of this package, so that a job always runs the code as it is. Until the server is ready, or where
there is none, a command imports for itself; its results are the same. `RESURFACE_WARM_START=` in front of `snakemake` does
without.
"""

import atexit
import gc
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

FOLDER_VARIABLE = "RESURFACE_WARM_START"
LIBRARIES = (
    "accelerate",
    "datasets",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
    "pandas",
    "peft",
    "pydantic",
    "sklearn.decomposition",
    "transformers.models.auto.modeling_auto",
    "transformers.trainer",
    "trl",
)
KILLED = 128 + signal.SIGKILL

SERVERS: list[subprocess.Popen[bytes]] = []  # kept, because a server ends when its pipe to this process closes


def prepare_imports(threads: int) -> None:
    """Set what libraries read from the environment when they are imported: the threads, and what the user has not set."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def socket_path(folder: str) -> Path:
    """Where workers are asked for; a Python that would import other libraries looks elsewhere and finds nothing."""
    libraries = f"{sys.prefix}\0{os.environ.get('PYTHONPATH')}"
    return Path(folder) / hashlib.sha256(libraries.encode()).hexdigest()[:16]


def start_server() -> None:
    """Start the server for the commands that this process starts; it ends when this process does.

    CUDA does not survive a fork, so where there may be a GPU there is no server. Nor is there one if the variable
    `RESURFACE_WARM_START` is set already, be it to nothing.
    """
    if sys.platform != "linux" or Path("/dev/nvidiactl").exists() or FOLDER_VARIABLE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="resurface-", dir="/tmp")  # a socket's path must be short
    os.environ[FOLDER_VARIABLE] = folder
    command = [sys.executable, "-P", "-m", "resurface.warm_start"]  # -P: no modules from the folder of the workflow
    # Ctrl-C is for the commands, which pass it on to their workers: so the server has a session of its own.
    SERVERS.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def serve(folder: str) -> None:
    """Import the libraries, then fork a worker for each command that asks, until standard input closes."""
    prepare_imports(threads=1)  # with more, a library might start threads, which a fork does not take along
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()  # the collector would touch, and so copy, every page in every worker
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        unready = Path(folder) / "unready"
        listener.bind(str(unready))
        listener.listen()
        unready.rename(socket_path(folder))
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                work(connection)
            connection.close()


def work(connection: socket.socket) -> NoReturn:
    """Be the worker of one command: run it, tell its exit status, end. Nothing of the server may run in here, whatever happens."""
    status = 1
    try:
        status = _run(connection)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()  # libraries remove their temporary files there
        with suppress(OSError):
            sys.stdout.flush()
        with suppress(OSError):
            sys.stderr.flush()
        with suppress(OSError):
            connection.sendall(f"status {status}\n".encode())
        os._exit(status)


def _run(connection: socket.socket) -> int:
    """Read a command from the connection, become it, and run it to its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    line = connection.makefile().readline()
    if not line.endswith("\n"):
        return 1  # the command has gone
    request = json.loads(line)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    # A shell's background commands ignore Ctrl-C, whatever the process does that started the server.
    signal.signal(signal.SIGINT, signal.default_int_handler if request["is_interruptible"] else signal.SIG_IGN)
    connection.sendall(f"worker {os.getpid()}\n".encode())
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    try:
        import_module("resurface.cli").main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _end_with(connection: socket.socket) -> None:
    """End this worker when its command has gone."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)


def run_in_worker(folder: str) -> int | None:
    """Run this process's command in a worker.

    Returns:
        its exit status, or None if no server is ready: the command has not begun then.
    """
    umask = os.umask(0)
    os.umask(umask)
    request = {
        "arguments": sys.argv,
        "folder": str(Path.cwd()),
        "umask": umask,
        "environment": dict(os.environ),
        "is_interruptible": signal.getsignal(signal.SIGINT) != signal.SIG_IGN,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(socket_path(folder)))
            socket.send_fds(connection, [b"\n"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            replies = connection.makefile()
            kind, _, number = replies.readline().partition(" ")
        except OSError:
            return None
        if kind != "worker":
            return int(number) if number else None
        worker = int(number)

        passed: list[int] = []

        def pass_on(caught: int, _: object) -> None:
            passed.append(caught)
            with suppress(ProcessLookupError):
                os.kill(worker, caught)

        for caught in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(caught) != signal.SIG_IGN:
                signal.signal(caught, pass_on)
        _, _, status = replies.readline().partition(" ")
    if status:
        return int(status)
    if passed:
        return 128 + passed[-1]
    print("the worker of this command was killed, perhaps because memory ran out", file=sys.stderr)
    return KILLED


def main() -> None:
    """The `resurface` command."""
    import_module("resurface.orphans").end_with_scheduler()
    folder = os.environ.get(FOLDER_VARIABLE)
    status = run_in_worker(folder) if folder else None
    if status is None:
        import_module("resurface.cli").main()
    else:
        sys.exit(status)


if __name__ == "__main__":
    try:
        serve(os.environ[FOLDER_VARIABLE])
    finally:
        shutil.rmtree(os.environ[FOLDER_VARIABLE], ignore_errors=True)
