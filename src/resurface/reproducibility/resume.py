"""Where an interrupted job keeps its state: outside its declared outputs, which Snakemake deletes before a rerun.

The folder's name is a hash of everything that determines the job's result, so state is never taken up by another job, nor
by the same one after its source, settings or inputs have changed.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resurface.artifacts import hash_folder, hashes_path, holding_lock
from resurface.reproducibility.fingerprint import fingerprint


def resume_folder(root: Path, module: str, *parts: str | Path) -> Path:
    """The folder for the state of a job.

    Args:
        root: the folder that holds all resume state.
        module: the module that does the job.
        parts: what else determines the result: strings (settings, seed) and input folders, which count by content.
    """
    digest = hashlib.sha256(f"{module} {fingerprint(module)}".encode())
    for part in parts:
        if isinstance(part, Path):
            recorded = hashes_path(part)
            content = recorded.read_bytes() if recorded.is_file() else str(hash_folder(part)).encode()
        else:
            content = part.encode()
        digest.update(hashlib.sha256(content).digest())
    return root / digest.hexdigest()[:16]


@contextmanager
def holding_job(place: Path, output: Path) -> Iterator[None]:
    """Hold a job's state and its output: an orphan of an earlier call may still work on either.

    Args:
        place: the folder of its state.
        output: what it writes, which a job of other settings may write too.

    Raises:
        ResurfaceError: another process holds one of them, or the disk is full.
    """
    with (
        holding_lock(place.with_name(f".{place.name}.lock"), output),
        holding_lock(output.with_name(f".{output.name}.job.lock"), output),
    ):
        yield
