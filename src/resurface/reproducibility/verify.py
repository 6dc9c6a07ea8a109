"""Verify a results folder: every file is there, is what its job wrote, and came from what its job says it read.

The folder may be anybody's. Nothing in it is run or unpickled: names, JSON and the bytes of regular files are read, links
are followed only if asked for, and names are printed with their control characters escaped.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resurface.artifacts import hash_file
from resurface.config import Experiment, explain_faults
from resurface.errors import ResurfaceError
from resurface.reproducibility.jobs import NAMED, RULES, job_outputs, job_settings, job_source
from resurface.reproducibility.manifest import (
    MANIFEST,
    ROOT,
    Manifest,
    place,
    read_manifest,
    written_by,
)
from resurface.reproducibility.record import Record, dump_canonical, record_path

Kind = Literal["missing", "changed", "stranger", "unreadable", "link", "lineage", "source", "settings"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: what is wrong: a file is missing, was changed, is a stranger, cannot be read or is a link; the lineage is broken;
            a job ran other source than this checkout's, or other settings than the configuration's.
        path: the file, as recorded.
        text: what was found, for the reader.
    """

    kind: Kind
    path: str
    text: str


def verify(
    results: Path, experiment: Experiment | None = None, follow_links: bool = False
) -> tuple[Manifest, list[Finding]]:
    """Verify a results folder.

    Args:
        results: the folder, under whatever name.
        experiment: the configuration that it must come from; None: the one that its manifest holds.
        follow_links: whether files that are links, or lie in linked folders, are read: those of a user's own checkpoint and of
            Snakemake's cache are. A stranger's links may lead anywhere.

    Returns:
        the manifest, and what is wrong, by path.

    Raises:
        ResurfaceError: there is no folder, no manifest that can be read and is as it was written, or its configuration is
            none of this checkout's.
    """
    if not results.is_dir():
        raise ResurfaceError(f"{results}: no such folder; name the folder that holds {MANIFEST}")
    manifest = read_manifest(results)
    experiment = experiment or read_experiment(manifest)
    findings = [
        *find_changes(results, manifest, follow_links),
        *find_strangers(results, manifest, follow_links),
        *find_broken_lineage(manifest),
        *find_other_source(manifest),
        *find_other_jobs(manifest, experiment),
    ]
    return manifest, sorted(findings, key=lambda finding: (finding.path, finding.kind))


def find_changes(results: Path, manifest: Manifest, follow_links: bool) -> Iterator[Finding]:
    """Recorded files that are missing, cannot be read, or have other content."""
    for path, recorded in manifest.files.items():
        file = place(results, path)
        link = find_link(file, results)
        if link and not follow_links:
            yield Finding(
                "link",
                path,
                f"{link} is a link to {link.readlink()}; --follow-links reads what it points to, wherever it is",
            )
            continue
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                yield Finding("changed", path, "this is no regular file any more")
            elif hash_file(file) != recorded:
                yield Finding("changed", path, "its content is not what was recorded")
        except (FileNotFoundError, NotADirectoryError):
            yield Finding(
                "missing", path, f"this file is recorded and is not there{f' ({link} is a link)' if link else ''}"
            )
        except OSError as error:
            yield Finding("unreadable", path, f"this file cannot be read: {error.strerror}")


def find_link(file: Path, results: Path) -> Path | None:
    """The first link on the way from a results folder to a file in it, if there is one."""
    way = [part for part in reversed((file, *file.parents)) if part != results and part.is_relative_to(results)]
    return next((part for part in way if part.is_symlink()), None)


def find_strangers(results: Path, manifest: Manifest, follow_links: bool) -> Iterator[Finding]:
    """Files that no recorded job has left. Linked folders are looked into if recorded files lie in them."""
    known = {*manifest.files, f"{ROOT}/{MANIFEST}"}
    folders = {str(parent) for path in known for parent in PurePosixPath(path).parents}
    waiting = [(results, ROOT)]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            yield Finding("unreadable", prefix, f"this folder cannot be read: {error.strerror}")
            continue
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=path in folders and follow_links)
            if is_folder and (path in folders or not entry.is_symlink()):
                waiting.append((Path(entry.path), path))
            elif path not in known and not (entry.is_symlink() and path in folders):
                yield Finding("stranger", path, "no recorded job has left this file")


def find_broken_lineage(manifest: Manifest) -> Iterator[Finding]:
    """Inputs that no recorded job has written as they were read, and folders whose file of hashes says something else."""
    writers = written_by(manifest.records)
    for path, record in manifest.records.items():
        for name, read in record.inputs.items():
            if name not in writers:
                yield Finding("lineage", name, f"{path} read this file, which no recorded job has written")
            elif manifest.records[writers[name]].outputs[name] != read:
                yield Finding("lineage", name, f"{path} read other content than {writers[name]} has written")
        if (
            manifest.files.get(path)
            != hashlib.sha256(dump_canonical(record.model_dump(mode="json")).encode()).hexdigest()
        ):
            yield Finding("lineage", path, "this record is not the one that the manifest holds")
        for name, made in record.outputs.items():
            if manifest.files.get(name) != made:
                yield Finding("lineage", name, f"{path} has written other content than the manifest lists")


def find_other_source(manifest: Manifest) -> Iterator[Finding]:
    """Jobs that ran other source than this checkout's, and jobs that this checkout does not know."""
    for path, record in manifest.records.items():
        fault = check_rule(record)
        if fault:
            yield Finding("source", path, fault)
        elif record.source != job_source(record.rule, record.name):
            yield Finding(
                "source",
                path,
                f"its job ran source {record.source}; this checkout's is {job_source(record.rule, record.name)}",
            )


def check_rule(record: Record) -> str | None:
    """What is wrong with the rule and the name that a record claims, if anything."""
    if record.rule not in RULES:
        return f"found the rule {record.rule!r}; known are {', '.join(RULES)}"
    names = NAMED.get(record.rule, {None: None})
    if record.name not in names:
        return f"found {record.rule} {record.name!r}; known are {', '.join(map(str, names))}"
    return None


def read_experiment(manifest: Manifest) -> Experiment:
    """The configuration that a manifest holds.

    Raises:
        ResurfaceError: this checkout knows no such configuration.
    """
    try:
        return Experiment.model_validate(manifest.experiment)
    except ValidationError as error:
        faults = "\n".join(explain_faults(error, Experiment))
        raise ResurfaceError(f"{ROOT}/{MANIFEST}: its configuration is none of this checkout's\n{faults}") from None


def find_other_jobs(manifest: Manifest, experiment: Experiment) -> Iterator[Finding]:
    """Jobs of the configuration that are not recorded, others that are, and jobs that ran with other settings."""
    asked = {record_path(Path(output)).as_posix() for output in job_outputs(experiment)}
    for path in sorted(asked - manifest.records.keys()):
        yield Finding("missing", path, "the configuration asks for this job, and the manifest has no record of it")
    for path in sorted(manifest.records.keys() - asked):
        yield Finding("stranger", path, "the configuration does not ask for this job")
    for path, record in manifest.records.items():
        if check_rule(record):
            continue
        allowed: dict[str, Any] = json.loads(job_settings(experiment, record.rule, record.name))
        other = [key for key, value in allowed.items() if record.settings.get(key) != value]
        if other:
            yield Finding(
                "settings",
                path,
                f"its job ran with {other[0]} {record.settings.get(other[0])!r}; the configuration says "
                f"{allowed[other[0]]!r}",
            )


def tabulate_findings(findings: list[Finding]) -> Table:
    """Findings for the terminal; what a stranger's file names say to terminals is escaped."""
    table = Table("finding", "file", "what was found", box=SIMPLE_HEAD)
    for finding in findings:
        table.add_row(finding.kind, Text(show_plainly(finding.path)), Text(show_plainly(finding.text)))
    return table


def show_plainly(text: str) -> str:
    """Text with everything escaped that is not printed as it stands."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
