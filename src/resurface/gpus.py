"""GPUs of one machine, shared out by file locks: jobs that run side by side each compute on a GPU of their own.

Snakemake starts as many jobs at a time as it has cores, and knows nothing of GPUs unless it is told (docs/plan.md); a job that
took the first GPU would meet all others there. So a job that is not told which GPU to use takes the first one whose lock is
free, and waits if there is none. The kernel holds the lock for as long as the process lives, so that a job that is killed
leaves its GPU free at once. The other GPUs become invisible to the process: libraries that spread over all that they see (the
Trainer, accelerate) stay where they belong.

Whatever is set from outside is kept to: of the GPUs in `CUDA_VISIBLE_DEVICES` (Slurm sets it) one is taken, and a process of a
launcher that shares out GPUs itself (`LOCAL_RANK`) takes none.
"""

import logging
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from resurface.errors import ResurfaceError

VISIBLE = "CUDA_VISIBLE_DEVICES"
HELD_VARIABLE = "RESURFACE_GPUS"
DRIVER = Path("/dev/nvidiactl")  # there is no NVIDIA GPU without
FOLDER = Path("/tmp/resurface-gpus")  # not TMPDIR, which may be another one for each user or job
WAIT_SECONDS = 1.0

HELD: list[FileLock] = []  # kept for the life of the process

log = logging.getLogger("resurface")


def list_gpus() -> list[str]:
    """The GPUs that this process may use, by UUID; none where `nvidia-smi` shows none.

    Those in `CUDA_VISIBLE_DEVICES` are named anew: numbers say nothing to others, because a container or a scheduler that hides
    GPUs counts its own ones from 0.
    """
    visible = os.environ.get(VISIBLE)
    names = None if visible is None else [name.strip() for name in visible.split(",")]
    if names is not None and ("-1" in names or not any(names)):
        return []
    shown = ask_driver()
    return parse_gpus(shown) if names is None else name_gpus([name for name in names if name], shown)


def ask_driver() -> str:
    """What `nvidia-smi -L` prints; nothing where there is no GPU."""
    if not DRIVER.exists():
        return ""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def name_gpus(names: Sequence[str], shown: str) -> list[str]:
    """The UUIDs of GPUs that are named by their number or by the beginning of a UUID, as `CUDA_VISIBLE_DEVICES` may.

    Args:
        names: as they stand there; one that is not found stays as it is.
        shown: what `nvidia-smi -L` prints. Numbers are of whole GPUs, so on a machine with parts of some (MIG) they stay as well.
    """
    gpus = parse_gpus(shown)
    numbered = {} if any(gpu.startswith("MIG") for gpu in gpus) else {str(i): gpu for i, gpu in enumerate(gpus)}
    found = []
    for name in names:
        alike = [gpu for gpu in gpus if gpu.startswith(name)] if name.startswith(("GPU-", "MIG-")) else []
        found.append(alike[0] if len(alike) == 1 else numbered.get(name, name))
    return found


def parse_gpus(shown: str) -> list[str]:
    """The GPUs in what `nvidia-smi -L` prints, by UUID; of a GPU that is cut into parts (MIG) the parts."""
    gpus: list[str] = []
    for name in re.findall(r"UUID: ((?:GPU|MIG)-[0-9A-Za-z/-]+)", shown):
        if name.startswith("MIG") and gpus and gpus[-1].startswith("GPU"):
            gpus.pop()
        gpus.append(name)
    return gpus


def claim_gpus(name: str, count: int = 1) -> None:
    """See to it that this process sees the GPUs that it is to compute on, and no others. It must be called before CUDA is used.

    Args:
        name: `auto` or `cuda` for free ones (`take_gpus`), `cuda:<number>` for a certain one, `cpu`.
        count: how many of those that are free.

    Raises:
        ResurfaceError: there are fewer, or the locks cannot be opened.
    """
    if name in ("auto", "cuda"):
        take_gpus(count)
    elif name.startswith("cuda:"):
        show_gpu(int(name.removeprefix("cuda:")))


def take_gpus(count: int = 1) -> list[str]:
    """Take GPUs for the life of this process, once; from then on it sees no others.

    It must be called before CUDA is used, and does nothing where there is no GPU, where this process or the one that started it
    holds some already, or where a launcher shares them out.

    Args:
        count: how many.

    Returns:
        the GPUs, as `CUDA_VISIBLE_DEVICES` names them; none if nothing was taken.

    Raises:
        ResurfaceError: fewer are visible, or the locks cannot be opened.
    """
    if _is_chosen() or "LOCAL_RANK" in os.environ:
        return []
    gpus = list_gpus()
    if not gpus:
        return []
    taken = lock_gpus(gpus, count, FOLDER)
    os.environ[VISIBLE] = os.environ[HELD_VARIABLE] = ",".join(taken)
    return taken


def count_taken() -> int:
    """How many GPUs this process, or the one that started it, took: those that it sees; 1 where none was taken."""
    return len(os.environ[VISIBLE].split(",")) if _is_chosen() else 1


def show_gpu(number: int) -> None:
    """Have this process see one GPU only, without locking it; where there are none, this does nothing.

    Args:
        number: its place among those that are visible, from 0.

    Raises:
        ResurfaceError: there are fewer.
    """
    if _is_chosen():
        return
    gpus = list_gpus()
    if not gpus:
        return
    if number >= len(gpus):
        raise ResurfaceError(f"device: found 'cuda:{number}', but this machine has {len(gpus)}; counting starts at 0")
    os.environ[VISIBLE] = os.environ[HELD_VARIABLE] = gpus[number]


def _is_chosen() -> bool:
    """Whether this process, or the one that started it, sees only what it was given."""
    return HELD_VARIABLE in os.environ and os.environ[HELD_VARIABLE] == os.environ.get(VISIBLE)


def lock_gpus(gpus: Sequence[str], count: int, folder: Path) -> list[str]:
    """Lock the first free GPUs for the life of this process; wait until there are enough.

    Who needs several takes all or none, so that two processes never wait for each other.

    Args:
        gpus: the names of all that may be taken.
        count: how many to take.
        folder: where the locks are: one that all processes of the machine see.

    Raises:
        ResurfaceError: there are fewer than `count`, or the locks cannot be opened.
    """
    if count > len(gpus):
        raise ResurfaceError(f"this job computes on {count} GPUs, but {len(gpus)} are visible: {', '.join(gpus)}")
    try:
        _make_shared(folder)
        is_waiting = False
        while True:
            locks: dict[str, FileLock] = {}
            for gpu in gpus:
                lock = FileLock(folder / f"{re.sub('[^0-9A-Za-z-]', '_', gpu)}.lock", mode=0o666)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                locks[gpu] = lock
                if len(locks) == count:
                    HELD.extend(locks.values())
                    log.info("computing on GPU %s", ", ".join(locks))
                    return list(locks)
            for lock in locks.values():
                lock.release()
            if not is_waiting:
                log.info(
                    "waiting for %d of %d GPUs: other jobs compute on them (locks in %s)", count, len(gpus), folder
                )
                is_waiting = True
            time.sleep(WAIT_SECONDS)
    except OSError as error:
        raise ResurfaceError(
            f"{folder}: the locks by which jobs share out GPUs cannot be opened: {error}. Remove the folder if nobody uses it, or "
            "name the GPU in the configuration, as in `device: cuda:0`; then none is locked"
        ) from error


def _make_shared(folder: Path) -> None:
    """Make a folder in which every user can make files and remove their own."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    folder.chmod(0o1777)
