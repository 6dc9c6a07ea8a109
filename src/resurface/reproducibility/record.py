"""Provenance records: what a job was, what it read and wrote and what it took, as a small JSON file beside its outputs.

A record names files by their path and SHA-256, so that records hang together: what one job wrote is what the next one
read. Folders are hashed once, when they are written (`resurface.artifacts.publish_folder`); a record takes their hashes over.
The JSON is canonical: equal content has equal bytes.
"""

import json
import logging
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field

from resurface.artifacts import hash_file, hash_folder, hashes_path, publish, read_json
from resurface.errors import ResurfaceError
from resurface.reproducibility.jobs import job_source
from resurface.settings.base import Settings

SUFFIX = ".provenance.json"
_used: dict[str, Any] = {}  # by processes that this one has started


class Device(Settings):
    """Where a job computed."""

    type: str = Field(description="cpu or cuda")
    name: str = Field(description="the processor's or the GPU's name")
    threads: int = Field(description="CPU threads")


class Record(Settings):
    """What a job was. Paths are those of the command line, relative to the folder that holds `results/`."""

    rule: str = Field(description="the workflow's rule")
    name: str | None = Field(description="the method or the attack, where a rule has several")
    command: list[str] = Field(description="the command line")
    settings: dict[str, Any] = Field(description="all settings, defaults included")
    source: str = Field(description="fingerprint of the source (`jobs.job_source`)")
    seed: int | None
    inputs: dict[str, str] = Field(description="path → SHA-256; of a folder, its file of hashes")
    outputs: dict[str, str] = Field(description="path → SHA-256; of a folder, each file in it and its file of hashes")
    log: str | None = Field(description="the job's log file")
    versions: dict[str, str] = Field(description="package → version, Python's among them")
    device: Device
    wall_seconds: float
    peak_memory: int = Field(description="bytes of main memory")
    peak_device_memory: int = Field(description="bytes of GPU memory; 0 on a CPU")


def record_path(output: Path) -> Path:
    """Where the record of a job is kept: beside what its command line names as output."""
    return output.parent / f"{output.name}{SUFFIX}"


def dump_canonical(content: Any) -> str:
    """JSON in its one form: sorted, indented by one space, with a final newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def hash_inputs(paths: Iterable[Path]) -> dict[str, str]:
    """Hashes of what a job reads: of a folder that a job wrote, of its file of hashes; of a user's own, of all files in it."""
    hashes: dict[str, str] = {}
    for path in paths:
        if not path.is_dir():
            hashes[path.as_posix()] = hash_file(path)
        elif hashes_path(path).is_file():
            hashes[hashes_path(path).as_posix()] = hash_file(hashes_path(path))
        else:
            hashes |= {(path / name).as_posix(): found for name, found in hash_folder(path).items()}
    return hashes


def hash_outputs(paths: Iterable[Path]) -> dict[str, str]:
    """Hashes of what a job wrote; those of a folder are taken over from the file beside it."""
    hashes: dict[str, str] = {}
    for path in paths:
        if path.is_dir():
            recorded = hashes_path(path)
            hashes |= {(path / name).as_posix(): found for name, found in read_json(recorded).items()}
            hashes[recorded.as_posix()] = hash_file(recorded)
        else:
            hashes[path.as_posix()] = hash_file(path)
    return hashes


@contextmanager
def recording(
    rule: str,
    output: Path,
    inputs: Sequence[Path] = (),
    settings: Settings | dict[str, Any] | None = None,
    name: str | None = None,
    seed: int | None = None,
    *,
    outputs: Iterable[Path] | None = None,
) -> Iterator[None]:
    """Record the job that runs inside the context, once it has ended well.

    Args:
        rule: the workflow's rule.
        output: what the command line names as output; the record is kept beside it.
        inputs: files and folders that the job reads.
        settings: its settings.
        name: the method or the attack.
        seed: its seed, if it has one.
        outputs: what it writes, if that is not `output` itself.
    """
    start = time.monotonic()
    missing = [path for path in inputs if not path.exists()]
    if missing:
        raise ResurfaceError(f"{missing[0]}: no such file or folder; run the workflow up to it first")
    used = hash_inputs(inputs)
    yield
    made = hash_outputs([output] if outputs is None else outputs)
    record = Record(
        rule=rule,
        name=name,
        command=["resurface", *sys.argv[1:]],
        settings=settings.model_dump(mode="json") if isinstance(settings, Settings) else settings or {},
        source=job_source(rule, name),
        seed=seed,
        inputs=used,
        outputs=made,
        log=find_log(),
        versions=find_versions(),
        device=find_device(),
        wall_seconds=round(time.monotonic() - start, 3),
        peak_memory=read_peak_memory(),
        peak_device_memory=_peak_device_memory(),
    )
    with publish(record_path(output)) as temporary:
        temporary.write_text(dump_canonical(record.model_dump(mode="json")), encoding="utf-8")


def read_peak_memory() -> int:
    """The most memory that this process has held [bytes]; macOS counts in bytes, Linux in kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def find_log() -> str | None:
    """The file that this process logs to, relative to the folder in which it runs, if there is one."""
    files = [
        handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)
    ]
    return Path(os.path.relpath(files[0])).as_posix() if files else None


def find_versions() -> dict[str, str]:
    """The versions of Python, of this package and of everything that it requires."""
    required = [text for text in metadata.requires("resurface") or [] if "extra ==" not in text]
    names = ["resurface", *(text.split(";")[0].split(">")[0].split("<")[0].split("=")[0].strip() for text in required)]
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in sorted(names)}}


def note_use(used: dict[str, Any]) -> None:
    """Note what processes that this one has started used, for its record.

    Args:
        used: `device`, the GPU's name or None, and `peak_device_memory` [bytes].
    """
    _used.update(used)


def find_device() -> Device:
    """Where this process has computed, or those that it started: on a GPU if one was used."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    if _used.get("device"):
        return Device(type="cuda", name=_used["device"], threads=threads)
    if torch and torch.cuda.is_initialized():
        return Device(type="cuda", name=torch.cuda.get_device_name(), threads=threads)
    return Device(type="cpu", name=_processor_name(), threads=threads)


def _peak_device_memory() -> int:
    """The most GPU memory that this process has held, or one that it started, in bytes."""
    torch = sys.modules.get("torch")
    own = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else 0
    return max(own, _used.get("peak_device_memory", 0))


def _processor_name() -> str:
    """The processor's name as the system gives it."""
    description = Path("/proc/cpuinfo")
    if description.is_file():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
