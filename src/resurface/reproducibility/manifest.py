"""The manifest: the records of all jobs of an experiment, and the hash of every file that these have left.

It is made last; whatever else lies in the folder is a stranger to it. Its own content is hashed into `digest`: publish that
beside a result, and nobody can change the results without it showing.

Reading trusts nothing, because an auditor reads the manifests of others: sizes, types and paths are checked first, and
nothing but JSON is read.
"""

import hashlib
import json
import stat
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from resurface.artifacts import hash_file, publish
from resurface.config import Experiment
from resurface.errors import ResurfaceError
from resurface.reproducibility.jobs import all_jobs
from resurface.reproducibility.record import Record, dump_canonical, record_path
from resurface.settings.base import Settings

ROOT = "results"
MANIFEST = "manifest.json"
MOST_BYTES = 50_000_000
TIMESTAMP = ".snakemake_timestamp"  # Snakemake's own, empty, in every folder that a rule declares
HASHES = ".hashes.json"

Content = TypeVar("Content", bound=Settings)


class Manifest(Settings):
    """All records of an experiment. Paths begin with `results/`, wherever that folder lies."""

    experiment: dict[str, Any] = Field(description="the whole configuration")
    records: dict[str, Record] = Field(description="path of the record's file → record")
    files: dict[str, str] = Field(description="every file of the results but this one: path → SHA-256")
    digest: str = Field(description="SHA-256 of the canonical JSON of everything else in here")


def compute_digest(manifest: dict[str, Any]) -> str:
    """The digest of a manifest: over its canonical JSON without the digest."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(dump_canonical(rest).encode()).hexdigest()


def is_inside(path: str) -> bool:
    """Whether a recorded path stays inside the results folder, in its one spelling."""
    parts = PurePosixPath(path).parts
    is_plain = "/".join(parts) == path and not any(ord(letter) < 32 for letter in path)
    return is_plain and len(parts) > 1 and parts[0] == ROOT and ".." not in parts


def place(results: Path, path: str) -> Path:
    """Where a recorded path lies, for a results folder that may have another name or place."""
    assert is_inside(path)
    return results.joinpath(*PurePosixPath(path).parts[1:])


def read_canonical(path: Path, content: type[Content]) -> Content:
    """Read a JSON file that must be canonical and hold just what `content` says.

    Raises:
        ResurfaceError: it is missing, is no regular file, too large, no canonical JSON, or holds something else.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ResurfaceError(f"{path}: this is no regular file")
        if status.st_size > MOST_BYTES:
            raise ResurfaceError(f"{path}: found {status.st_size} bytes; at most {MOST_BYTES} are read")
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        if dump_canonical(found) != text:
            raise ResurfaceError(f"{path}: this file was changed: its JSON is not in the form in which it is written")
        return content.model_validate(found)
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        raise ResurfaceError(f"{path}: this is no readable {content.__name__.lower()}: {error}") from error


def read_manifest(results: Path) -> Manifest:
    """Read the manifest of a results folder.

    Raises:
        ResurfaceError: it is missing, a link or was changed, or a path in it leaves the folder.
    """
    path = results / MANIFEST
    if path.is_symlink():
        raise ResurfaceError(f"{path}: this is a link; a manifest is a file")
    manifest = read_canonical(path, Manifest)
    try:
        found = compute_digest(manifest.model_dump(mode="json"))
    except (ValueError, RecursionError) as error:
        raise ResurfaceError(f"{path}: this is no readable manifest: {error}") from error
    if found != manifest.digest:
        raise ResurfaceError(
            f"{path}: this file was changed: its digest is {manifest.digest}, its content's is {found}"
        )
    read = [name for record in manifest.records.values() for name in record.inputs]
    named = (*manifest.files, *manifest.records, *written_by(manifest.records), *read)
    outside = [name for name in named if not is_inside(name)]
    if outside:
        raise ResurfaceError(f"{path}: found the path {outside[0]!r}; all must stay inside {ROOT}/")
    return manifest


def written_by(records: dict[str, Record]) -> dict[str, str]:
    """Output → the path of the record of the job that wrote it.

    Raises:
        ResurfaceError: two jobs claim the same output.
    """
    writers: dict[str, str] = {}
    for path, record in records.items():
        for output in record.outputs:
            if output in writers:
                raise ResurfaceError(f"{output}: two jobs claim to have written it, {writers[output]} and {path}")
            writers[output] = path
    return writers


def write_manifest(experiment: Experiment, output: Path) -> Manifest:
    """Collect the records of all jobs of an experiment, seen from the folder in which they ran.

    Args:
        experiment: the whole configuration.
        output: the manifest to write.

    Raises:
        ResurfaceError: a record is missing or broken.
    """
    paths = [record_path(Path(made)) for made in all_jobs(experiment)]
    records = {path.as_posix(): read_canonical(path, Record) for path in paths}
    files = {name: found for record in records.values() for name, found in record.outputs.items()}
    folders = [name.removesuffix(HASHES) for name in files if name.endswith(HASHES)]
    others = [
        *records,
        *(record.log for record in records.values() if record.log),
        *(f"{folder}/{TIMESTAMP}" for folder in folders),
        f"{ROOT}/.gitkeep",
    ]
    files |= {name: hash_file(Path(name)) for name in others if Path(name).is_file()}
    content: dict[str, Any] = {
        "experiment": experiment.model_dump(mode="json"),
        "records": {path: record.model_dump(mode="json") for path, record in records.items()},
        "files": files,
    }
    manifest = Manifest.model_validate({**content, "digest": compute_digest(content)})
    with publish(output) as temporary:
        temporary.write_text(dump_canonical(manifest.model_dump(mode="json")), encoding="utf-8")
    return manifest
