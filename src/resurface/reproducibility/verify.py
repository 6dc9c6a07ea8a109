"""Verify a results folder: every file is there, is what its job wrote, and came from what its job says it read.

The folder may be anybody's. Nothing in it is run or unpickled: names, JSON and the bytes of regular files are read, links
are followed only if asked for, and names are printed with their control characters escaped.
"""

import hashlib
import json
import os
import reprlib
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resurface.artifacts import hash_file
from resurface.config import MOST_BYTES, Experiment, dump_settings, explain_faults
from resurface.errors import ResurfaceError
from resurface.reproducibility.jobs import all_jobs, is_output, job_facts, job_settings, job_source
from resurface.reproducibility.manifest import (
    MANIFEST,
    ROOT,
    Manifest,
    place,
    read_manifest,
    written_by,
)
from resurface.reproducibility.record import SUFFIX, dump_canonical

LOGS = f"{ROOT}/logs"
MOST_ROWS = 100  # printed; more say no more

Kind = Literal["missing", "changed", "stranger", "unreadable", "link", "lineage", "job", "source", "settings"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: what is wrong: a file is missing, was changed, is a stranger, cannot be read or is a link; the lineage is broken;
            a record is not of the job whose place it has; a job ran other source than this checkout's, or other settings than
            the configuration's.
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
    recorded = read_experiment(manifest)
    jobs = all_jobs(recorded)
    findings = [
        *find_changes(results, manifest, follow_links),
        *find_strangers(results, manifest, follow_links),
        *find_broken_lineage(manifest),
        *find_other_source(manifest, jobs),
        *find_other_jobs(manifest, recorded, jobs),
        *(find_other_configuration(manifest, experiment) if experiment else ()),
    ]
    return manifest, sorted(findings, key=lambda finding: (finding.path, finding.kind))


def require_verified(results: Path, follow_links: bool, apart_from: Collection[str] = ("source",)) -> Manifest:
    """The manifest of a results folder that passes `verify`, apart from some kinds of findings.

    Raises:
        ResurfaceError: it does not pass.
    """
    manifest, findings = verify(results, follow_links=follow_links)
    grave = [finding for finding in findings if finding.kind not in apart_from]
    if grave:
        raise ResurfaceError(
            f"{results}: {grave[0].path}: {grave[0].text}; {len(grave)} finding(s) in all, see `resurface audit verify`"
        )
    return manifest


def find_changes(results: Path, manifest: Manifest, follow_links: bool) -> Iterator[Finding]:
    """Recorded files that are missing, cannot be read, or have other content."""
    for path, recorded in manifest.files.items():
        file = place(results, path)
        link = None
        try:
            link = find_link(file, results)
            if link and not follow_links:
                text = f"{link} is a link to {link.readlink()}; --follow-links reads what it points to, wherever it is"
                yield Finding("link", path, text)
            elif not stat.S_ISREG(file.stat().st_mode):
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
            entries = [
                (entry, entry.is_dir(follow_symlinks=follow_links and f"{prefix}/{entry.name}" in folders))
                for entry in os.scandir(folder)
            ]
        except OSError as error:
            yield Finding("unreadable", prefix, f"this folder cannot be read: {error.strerror}")
            continue
        for entry, is_folder in entries:
            path = f"{prefix}/{entry.name}"
            if is_folder and (path in folders or not entry.is_symlink()):
                waiting.append((Path(entry.path), path))
            elif path not in known and not (entry.is_symlink() and path in folders):
                yield Finding("stranger", path, "no recorded job has left this file")


def find_broken_lineage(manifest: Manifest) -> Iterator[Finding]:
    """Inputs that no recorded job has written as they were read, and folders whose file of hashes says something else."""
    writers = written_by(manifest.records)
    for path, record in manifest.records.items():
        for name, read in record.inputs.items():
            if name in manifest.records:
                if manifest.files.get(name) != read:
                    yield Finding("lineage", name, f"{path} read another record than the manifest lists")
            elif name not in writers:
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


def find_other_source(manifest: Manifest, jobs: dict[str, tuple[str, str | None]]) -> Iterator[Finding]:
    """Jobs that ran other source than this checkout's."""
    for path, record in manifest.records.items():
        job = jobs.get(path.removesuffix(SUFFIX))
        if job and record.source != job_source(*job):
            yield Finding("source", path, f"its job ran source {record.source}; this checkout's is {job_source(*job)}")


def read_experiment(manifest: Manifest) -> Experiment:
    """The configuration that a manifest holds.

    Raises:
        ResurfaceError: this checkout knows no such configuration.
    """
    try:
        experiment = Experiment.model_validate(manifest.experiment)
        if len(dump_settings(experiment)) > MOST_BYTES:
            raise ResurfaceError(f"{ROOT}/{MANIFEST}: its configuration is too long to have been run")
        return experiment
    except ValidationError as error:
        faults = "\n".join(explain_faults(error, Experiment))
        raise ResurfaceError(f"{ROOT}/{MANIFEST}: its configuration is none of this checkout's\n{faults}") from None


def find_other_jobs(
    manifest: Manifest, experiment: Experiment, jobs: dict[str, tuple[str, str | None]]
) -> Iterator[Finding]:
    """Jobs of the configuration that are not recorded, others that are, and jobs that were not what the configuration says."""
    records = {path.removesuffix(SUFFIX): record for path, record in manifest.records.items()}
    for output in sorted(jobs.keys() - records.keys()):
        missing = f"{output}{SUFFIX}"
        yield Finding("missing", missing, "the configuration asks for this job, and the manifest has no record of it")
    for output, record in records.items():
        path = f"{output}{SUFFIX}"
        if output not in jobs:
            yield Finding("stranger", path, "the configuration does not ask for this job")
            continue
        rule, name = jobs[output]
        if (record.rule, record.name) != (rule, name):
            yield Finding("job", path, f"it says that it is of {record.rule} {record.name}; it is of {rule} {name}")
            continue
        claimed = next((made for made in record.outputs if not is_output(made, output, rule)), None)
        if claimed or not (record.log or f"{LOGS}/").startswith(f"{LOGS}/"):
            yield Finding("job", path, f"it claims {claimed or record.log}, which {rule} does not write there")
        facts = job_facts(experiment, output, rule)
        said = {**record.settings, "seed": record.seed}
        for key, allowed in {**json.loads(job_settings(experiment, rule, name)), **facts}.items():
            if said.get(key) != allowed:
                text = f"its job ran with {key} {reprlib.repr(said.get(key))}; the configuration says {reprlib.repr(allowed)}"
                yield Finding("settings", path, text)


def find_other_configuration(manifest: Manifest, experiment: Experiment) -> Iterator[Finding]:
    """Keys at which the manifest's configuration is another; the device may differ."""
    for key, recorded, asked in find_changed(manifest.experiment, experiment.model_dump(mode="json")):
        if key != "device":
            text = f"{key}: it comes from {reprlib.repr(recorded)}; the configuration says {reprlib.repr(asked)}"
            yield Finding("settings", f"{ROOT}/{MANIFEST}", text)


def find_changed(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys at which two nested settings differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            yield from find_changed(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif a != b:
        yield key, a, b


def tabulate_findings(findings: list[Finding]) -> Table:
    """Findings for the terminal; what a stranger's file names say to terminals is escaped."""
    table = Table("finding", "file", "what was found", box=SIMPLE_HEAD)
    for finding in findings[:MOST_ROWS]:
        table.add_row(finding.kind, Text(show_plainly(finding.path)), Text(show_plainly(finding.text)))
    if len(findings) > MOST_ROWS:
        table.caption = f"and {len(findings) - MOST_ROWS} more"
    return table


def show_plainly(text: str) -> str:
    """Text with everything escaped that is not printed as it stands."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
