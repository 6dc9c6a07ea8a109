"""Files and folders that jobs leave behind: written whole or not at all, hashed, and checked before they are used.

A job works in a hidden temporary place beside its output, holding a lock on it, and renames at the end; whatever ends it
earlier leaves no half-written output. A folder gets a small JSON of content hashes beside it (`X.hashes.json`), because
Snakemake does not look inside folders: downstream jobs depend on that file and check the folder against it.

What is read here may come from a stranger: every fault of a file ends as one error that names it, and nothing is allocated
or followed on a file's word alone.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from resurface.errors import ResurfaceError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CHUNK_BYTES = 1 << 22
LOCK_SECONDS = 300.0  # an orphan may still have to take a step and save a large model
# A few bytes of parquet may stand for any number of rows. Ours have a million at most.
MOST_ROWS = 50_000_000
# What safetensors, tokenizers (28 is ENOSPC, 122 EDQUOT) and `torch.save` say of a full disk; none raises an OSError.
FULL_DISK_WORDS = ("os error 28", "os error 122", "No space left", "unexpected pos", "PytorchStreamWriter failed")

log = logging.getLogger("resurface")


@contextmanager
def naming_full_disk(output: Path) -> Iterator[None]:
    """Turn whatever a library raises inside the context because the disk is full into one clear error.

    Raises:
        ResurfaceError: the disk that holds `output`, whose parent folder exists, is full.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in FULL_DISK_WORDS):
            raise ResurfaceError(
                f"{output}: the disk is full ({shutil.disk_usage(output.parent).free / 1e6:.0f} MB are free); what was "
                "half written is not used. Make room and start again: finished jobs are kept"
            ) from error
        raise


@contextmanager
def holding_lock(path: Path, output: Path) -> Iterator[None]:
    """Hold a lock file, which exists only as long as somebody holds it, while `output` is made; wait for who holds it.

    Raises:
        ResurfaceError: another process holds it and does not end, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        with naming_full_disk(path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("%s: waiting for another process that is writing it", output)
                lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise ResurfaceError(
            f"{output}: another process has been writing it for {LOCK_SECONDS:.0f} seconds; wait for it, or end it, then start this job again"
        ) from None
    try:
        yield
    finally:
        # Unlinked while still held: whoever waits for this file finds that it has no name any more and opens a new one.
        # Unlinked after the release, it could be theirs already, and a third process would lock yet another file.
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def publish(output: Path) -> Iterator[Path]:
    """Give a temporary path to write a file or a folder to, and rename it to `output` on success.

    Raises:
        ResurfaceError: another process is writing the same output, or the disk is full.
    """
    temporary = output.parent / f".{output.name}.partial"
    with holding_lock(output.parent / f".{output.name}.lock", output):
        try:
            with naming_full_disk(output):
                remove(temporary)
                yield temporary
                flush(temporary)
                if temporary.is_dir() or output.is_dir():
                    remove(output)
                temporary.replace(output)  # a file takes another's place at once: there always is one of them
        finally:
            remove(temporary)


def flush(path: Path) -> None:
    """Have the disk hold a file, or every file below a folder, so that it is whole after a power cut too."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_folder(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by relative path, sorted; Snakemake's own mark in it does not count.

    Links to folders are followed: Snakemake's cache between workflows links what is in a folder.
    """
    files = sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name != ".snakemake_timestamp"
    )
    files = [path for path in files if path.is_file()]
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock alone, and a large checkpoint is several files
        hashes = pool.map(hash_file, files)
        return {path.relative_to(folder).as_posix(): found for path, found in zip(files, hashes, strict=True)}


def hashes_path(folder: Path) -> Path:
    """Where the hashes of a folder are kept: beside it."""
    return folder.parent / f"{folder.name}.hashes.json"


@contextmanager
def publish_folder(output: Path) -> Iterator[Path]:
    """Like `publish` for a folder, which exists from the start; its hashes are written beside it."""
    with publish(output) as temporary:
        temporary.mkdir()
        yield temporary
        hashes = hash_folder(temporary)
    with publish(hashes_path(output)) as temporary:
        temporary.write_text(json.dumps(hashes, indent=1) + "\n")


def check_folder(folder: Path) -> Path:
    """Check a folder against the hashes beside it and return it; a folder without any is a user's own and passes.

    Raises:
        ResurfaceError: the folder is missing, a file in it is missing, new or changed, or the hashes cannot be read.
    """
    if not folder.is_dir():
        raise ResurfaceError(f"{folder}: no such folder; run the workflow up to it first")
    recorded_path = hashes_path(folder)
    if not recorded_path.is_file():
        return folder
    recorded = read_json_object(recorded_path)
    found = hash_folder(folder)
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            what = "is missing" if name not in found else "is new" if name not in recorded else "was changed"
            raise ResurfaceError(
                f"{folder / name}: this file {what} since the job that made it ended; delete {folder} and run the workflow"
            )
    return folder


def write_table(table: "pd.DataFrame | pa.Table", output: Path) -> None:
    """Write a table as parquet, whole or not at all, with checksums that readers can hold its pages against."""
    import pyarrow as pa
    import pyarrow.parquet

    with publish(output) as temporary:
        pyarrow.parquet.write_table(
            table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False),
            temporary,
            write_page_checksum=True,
        )


def read_table(path: Path, columns: list[str], is_empty_allowed: bool = False) -> "pd.DataFrame":
    """Read a parquet table and check that it has rows and the columns that its readers need.

    Raises:
        ResurfaceError: the file is missing, is no parquet, has a damaged page or more than `MOST_ROWS` rows, lacks a column, or
            has no rows although it must.
    """
    import pandas as pd

    if not path.is_file():
        raise ResurfaceError(f"{path}: no such file; expected a parquet table with the columns {', '.join(columns)}")
    with naming_unreadable(path, "parquet"):
        check_row_count(path)
        table = pd.read_parquet(path, page_checksum_verification=True)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ResurfaceError(
            f"{path}: the column {missing[0]!r} is missing; found {', '.join(map(str, table.columns)) or 'none'}; "
            f"needed are {', '.join(columns)}"
        )
    if not table.columns.is_unique:
        raise ResurfaceError(f"{path}: two columns have the same name; found {', '.join(map(str, table.columns))}")
    if table.empty and not is_empty_allowed:
        raise ResurfaceError(f"{path}: the table has no rows; delete it and run the workflow again")
    return table


def check_row_count(path: Path) -> None:
    """Check by a parquet file's footer that the table fits into memory.

    Raises:
        ResurfaceError: it has more than `MOST_ROWS` rows. What pyarrow says of a broken footer passes through.
    """
    import pyarrow.parquet

    rows = pyarrow.parquet.read_metadata(path).num_rows
    if not 0 <= rows <= MOST_ROWS:
        raise ResurfaceError(f"{path}: found {rows:,} rows; a table of this workflow has at most {MOST_ROWS:,}")


@contextmanager
def naming_unreadable(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises inside the context into one error that names the file.

    Readers of parquet, safetensors and JSON raise dozens of kinds of exceptions for damaged files, some of them (panics of
    Rust) outside `Exception`.

    Args:
        path: the file, or the folder, that is read.
        kind: what it should be, for the message.

    Raises:
        ResurfaceError: it cannot be read.
    """
    try:
        yield
    except ResurfaceError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        what = str(error) or type(error).__name__
        raise ResurfaceError(f"{path}: this is no readable {kind} file: {what[:1000]}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file. A key that stands twice in an object is an error: two readers could take different ones.

    Raises:
        ResurfaceError: the file is missing or is no JSON.
    """

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
        return found

    if not path.is_file():
        raise ResurfaceError(f"{path}: no such file; expected JSON")
    with naming_unreadable(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_repeats)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ResurfaceError: the file is missing, is no JSON, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ResurfaceError(f"{path}: found a {type(found).__name__}; expected a JSON object")
    return found


def path_inside(folder: Path, name: str) -> Path:
    """The file or folder `name` below a folder that names it itself.

    Raises:
        ResurfaceError: the name leads out of the folder: it is absolute, has `..` in it, or is a link to elsewhere.
    """
    try:
        place, home = (folder / name).resolve(), folder.resolve()
        place.exists()  # asks the file system whether there can be such a name
    except (OSError, RuntimeError, ValueError) as error:
        raise ResurfaceError(f"{folder}: found the name {name!r}, which can be no file's: {error}") from error
    if home not in place.parents:
        raise ResurfaceError(
            f"{folder}: found the name {name!r}, which leads out of this folder; allowed are names of what lies in it"
        )
    return folder / name
