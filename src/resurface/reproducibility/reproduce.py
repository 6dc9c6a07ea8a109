"""Reproduce jobs of a results folder: run them again from their recorded inputs, in a scratch folder, and compare.

The commands are the workflow's own, made anew from the configuration in the manifest, which is validated like any other:
no recorded command is run, and no job that asks a server, because a stranger's configuration would say which one gets the value
of which environment variable as a key. On the same device, with the same source and versions, every byte must come out the same; else
tables and tensors are compared within tolerances.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resurface.analysis.tables import COUNT, SCORE_KINDS, read_results
from resurface.artifacts import hash_file, read_table
from resurface.config import Experiment
from resurface.errors import ResurfaceError
from resurface.reproducibility.manifest import HASHES, Manifest, place, read_canonical, written_by
from resurface.reproducibility.record import SUFFIX, Record
from resurface.reproducibility.verify import read_experiment, require_verified, show_plainly

LOGPROB_TOLERANCE = 0.05  # nats: largest difference of a choice's log-probability
PREDICTION_TOLERANCE = 0.01  # share of questions that may be answered otherwise
NUMBER_TOLERANCE = 0.02  # relative, with the same absolute: other tables
TENSOR_TOLERANCE = 0.02  # norm of the difference by the norm of the tensor

ASKING_RULES = ("write_preferences",)

Verdict = Literal["identical", "within tolerance", "differs", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a job came out.

    Attributes:
        output: what its command line names as output.
        rule: the workflow's rule.
        verdict: identical bytes; on other machines or with other versions also within tolerance; else differs or failed.
        text: what differs, and by how much.
    """

    output: str
    rule: str
    verdict: Verdict
    text: str = ""


def choose_jobs(manifest: Manifest, experiment: Experiment, targets: list[str], sample: int, seed: int) -> list[str]:
    """The records of the jobs to run again.

    Args:
        manifest: of the results.
        experiment: its configuration.
        targets: outputs, or the folders that hold them; every job that has written one is chosen.
        sample: how many jobs are drawn if there are no targets.
        seed: of the draw.

    Raises:
        ResurfaceError: no job has written a target, or one that asks a server has.
    """
    asks = ASKING_RULES if experiment.preferences.base_url else ()
    asking = {path for path, record in manifest.records.items() if record.rule in asks}
    if not targets:
        drawn = sorted(manifest.records.keys() - asking)
        return sorted(random.Random(seed).sample(drawn, min(sample, len(drawn))))
    chosen: set[str] = set()
    for target in targets:
        name = target.rstrip("/")
        found = {
            path
            for path, record in manifest.records.items()
            if path.removesuffix(SUFFIX) == name
            or any(output == name or output.startswith(f"{name}/") for output in record.outputs)
        }
        if not found:
            raise ResurfaceError(f"{target}: no recorded job has written this; paths begin with results/")
        chosen |= found
        if found & asking:
            raise ResurfaceError(
                f"{target}: the job that wrote this asked {experiment.preferences.base_url} and would send it a key, buy every reply "
                "again and get other ones; it is not run again"
            )
    return sorted(chosen)


def split_into_rounds(manifest: Manifest, chosen: list[str]) -> list[list[str]]:
    """Jobs in rounds, none of which has a rule beside a job that reads what this rule writes: all read what is recorded.

    It is not enough that the jobs are apart: Snakemake may run any job of a round's rules, and would where links to what was recorded
    are in another order of time than what they lead to.
    """
    writers = written_by(manifest.records)
    rounds: list[list[str]] = []
    rules: list[set[str]] = []
    sources: list[set[str]] = []
    for path in chosen:
        record = manifest.records[path]
        source = {manifest.records[name if name in manifest.records else writers[name]].rule for name in record.inputs}
        for members, there, read in zip(rounds, rules, sources, strict=True):
            if record.rule not in read and source.isdisjoint(there):
                members.append(path)
                there.add(record.rule)
                read |= source
                break
        else:
            rounds.append([path])
            rules.append({record.rule})
            sources.append(source)
    return rounds


def check_workflow(snakefile: Path) -> None:
    """Check that a workflow is there.

    Raises:
        ResurfaceError: it is not.
    """
    if not snakefile.is_file():
        raise ResurfaceError(
            f"{snakefile}: no such file; start this in a checkout of the workflow, or name its Snakefile"
        )


def reproduce(
    results: Path,
    targets: list[str],
    sample: int,
    seed: int,
    scratch: Path,
    snakefile: Path,
    cores: int,
    follow_links: bool = False,
    device: str = "auto",
) -> Iterator[Outcome]:
    """Run jobs of a results folder again and compare what they write.

    Args:
        results: the folder; it must pass `verify`, apart from having been made by other source.
        targets: see `choose_jobs`.
        sample: likewise.
        seed: likewise.
        scratch: an empty folder to work in; inputs are linked, not copied.
        snakefile: the workflow of this checkout.
        cores: CPU cores to use.
        follow_links: see `verify`.
        device: where to compute; results made on a GPU can be run again without one, within the tolerances.

    Raises:
        ResurfaceError: the folder does not pass, a target cannot be made again, or there is no workflow.
    """
    check_workflow(snakefile)
    manifest = require_verified(results, follow_links)
    experiment = read_experiment(manifest)
    chosen = choose_jobs(manifest, experiment, targets, sample, seed)
    for number, members in enumerate(split_into_rounds(manifest, chosen)):
        folder = scratch / f"round{number}"
        lay_out(folder, results, manifest, members, experiment, device)
        output = run_again(folder, manifest, members, snakefile, cores)
        for path in members:
            yield compare_job(folder, results, manifest, path, output)


def lay_out(
    folder: Path, results: Path, manifest: Manifest, members: list[str], experiment: Experiment, device: str
) -> None:
    """Make a folder that holds the recorded inputs of some jobs, as links, and the configuration.

    What was written as a folder is linked as one: a folder whose files are links to elsewhere would be refused.

    Raises:
        ResurfaceError: something lies in what is linked as a folder.
    """
    read = {name for path in members for name in manifest.records[path].inputs}
    linked = read | {name.removesuffix(HASHES) for name in read}
    written = {name for path in members for name in (path, *manifest.records[path].outputs)}
    for name in linked:
        inside = sorted(other for other in linked | written if other.startswith(f"{name}/"))
        if inside:
            raise ResurfaceError(
                f"{results}: records say that jobs read {name} as a whole, and read or write {inside[0]} besides; no rule does both"
            )
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place(results, name).resolve())
    config: dict[str, Any] = {**experiment.model_dump(mode="json"), "device": device}
    for section in (config["models"], config["sources"], *config["methods"]["published"].values()):
        section |= {key: _find_path(value) for key, value in section.items() if isinstance(value, str)}
    for kind in ("methods", "attacks"):  # a section that is null would be switched on, with its defaults
        config[kind] = {name: settings for name, settings in config[kind].items() if settings is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def _find_path(source: str) -> str:
    """Where a model or data come from, if from a path that begins here, from wherever else one looks."""
    return str(Path(source).resolve()) if "/" in source and Path(source).exists() else source


def run_again(folder: Path, manifest: Manifest, members: list[str], snakefile: Path, cores: int) -> str:
    """Let Snakemake run some jobs in a folder, and no others; what it printed."""
    # Nothing here has a history: with this trigger nothing is made anew but what is missing.
    arguments = ["--keep-going", "--rerun-triggers", "params"]
    arguments += ["--allowed-rules", *sorted({manifest.records[path].rule for path in members})]
    return run_snakemake(snakefile, folder, folder / "config.json", cores, [*arguments, "--", *members]).stdout


def run_snakemake(
    snakefile: Path, folder: Path, config: Path, cores: int, arguments: list[str]
) -> subprocess.CompletedProcess[str]:
    """Run a workflow in a folder of its own, with this Python's Snakemake and programs, here: no profile sends jobs elsewhere.

    Args:
        snakefile: the workflow.
        folder: where to work.
        config: the experiment.
        cores: CPU cores to use.
        arguments: further ones of Snakemake, with what is to be made.

    Returns:
        how it ended, with all that it printed as `stdout`.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile.resolve()), "--directory", str(folder)]
    command += ["--configfile", str(config), "--cores", str(cores), "--nocolor", "--workflow-profile", "none"]
    # Commands name accelerate's configuration from the workflow's folder.
    environments = folder / "envs"
    if not environments.exists():
        environments.symlink_to(snakefile.resolve().parent / "envs")
    kept = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
    return subprocess.run(
        [*command, *arguments],
        env={**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def compare_job(folder: Path, results: Path, manifest: Manifest, path: str, printed: str) -> Outcome:
    """Compare what a job has written with what is recorded."""
    record = manifest.records[path]
    output = path.removesuffix(SUFFIX)
    if not (folder / path).is_file() or (folder / path).is_symlink():
        lines = [line for line in printed.splitlines() if "rror" in line]
        return Outcome(output, record.rule, "failed", "; ".join(lines[:2]) or printed[-200:])
    again = read_canonical(folder / path, Record)
    other = [name for name, made in record.outputs.items() if again.outputs.get(name) != made]
    if not other and record.outputs.keys() == again.outputs.keys():
        return Outcome(output, record.rule, "identical")
    reasons = differences(record, again)
    compared = [name for name in other if not name.endswith(HASHES)]
    texts = [
        f"{name}: {text}"
        for name in compared
        if (text := compare_files(place(results, name), folder / name)) is not None
    ]
    if texts or not reasons or record.outputs.keys() != again.outputs.keys():
        where = "" if reasons else "on the same device, with the same source and versions; "
        return Outcome(output, record.rule, "differs", where + "; ".join(texts or other))
    return Outcome(output, record.rule, "within tolerance", f"other {', '.join(reasons)}")


def differences(one: Record, other: Record) -> list[str]:
    """What may explain that a job comes out otherwise: device, source, or package versions."""
    found = [
        f"device ({one.device.name}, {other.device.name})" if one.device.name != other.device.name else "",
        f"threads ({one.device.threads}, {other.device.threads})" if one.device.threads != other.device.threads else "",
        "source" if one.source != other.source else "",
        *(
            f"{name} ({one.versions.get(name)}, {other.versions.get(name)})"
            for name in sorted(one.versions.keys() | other.versions.keys())
            if one.versions.get(name) != other.versions.get(name)
        ),
    ]
    return [text for text in found if text]


def compare_files(one: Path, other: Path) -> str | None:
    """What differs between two files of a job beyond the tolerances, or None."""
    if not other.is_file():
        return "is not written any more"
    if hash_file(one) == hash_file(other):
        return None
    try:
        if one.suffix == ".parquet":
            return compare_tables(one, other)
        if one.suffix == ".safetensors":
            return compare_tensors(one, other)
    except (ResurfaceError, ValueError, TypeError) as error:
        return f"cannot be compared: {error}"
    return "has other content, and only tables and tensors have tolerances"


def read_scored(path: Path) -> pd.DataFrame:
    """Read a score table and check that its predictions and what is correct follow from its log-probabilities.

    Raises:
        ResurfaceError: they do not, or the table is broken.
    """
    table = read_results(path, {**SCORE_KINDS, "answer": COUNT, "prediction": COUNT})
    best = np.array([int(np.argmax(values)) for values in table["logprobs"]])
    is_known = np.array([bool(np.isfinite(values).all()) for values in table["logprobs"]])
    follows = (table["prediction"] == best) & (table["correct"] == (table["prediction"] == table["answer"]))
    if not (is_known & follows).all():
        raise ResurfaceError(f"{path}: what it says is correct does not follow from its log-probabilities and answers")
    return table


def compare_tables(one: Path, other: Path) -> str | None:
    """What differs between two tables beyond the tolerances, or None; rows are compared in their order."""
    is_scores = "logprobs" in read_table(one, [], True)
    a, b = (read_scored(path) if is_scores else read_table(path, [], True) for path in (one, other))
    if list(a.columns) != list(b.columns) or len(a) != len(b):
        return f"has {len(b)} rows of {len(b.columns)} columns; recorded are {len(a)} of {len(a.columns)}"
    if is_scores:
        apart = max((float(np.abs(x - y).max()) for x, y in zip(a["logprobs"], b["logprobs"], strict=True)), default=0)
        changed = float((a["prediction"] != b["prediction"]).mean())
        if not (apart <= LOGPROB_TOLERANCE and changed <= PREDICTION_TOLERANCE):
            return f"log-probabilities differ by up to {apart:.3g} nats, {changed:.1%} of the predictions"
    # What is correct follows from the predictions, in both (`read_scored`).
    for column in a.columns.difference(["logprobs", "prediction", "correct"] if is_scores else []):
        x, y = a[column], b[column]
        if pd.api.types.is_float_dtype(x) and pd.api.types.is_float_dtype(y):
            is_same = np.allclose(x, y, rtol=NUMBER_TOLERANCE, atol=NUMBER_TOLERANCE, equal_nan=True)
        else:
            is_same = x.map(repr).equals(y.map(repr))
        if not is_same:
            return f"the column {column} differs"
    return None


def compare_tensors(one: Path, other: Path) -> str | None:
    """What differs between the tensors of two safetensors files beyond the tolerance, or None."""
    from safetensors.torch import load_file

    recorded, again = load_file(one), load_file(other)
    if {name: value.shape for name, value in recorded.items()} != {name: value.shape for name, value in again.items()}:
        return "holds other tensors"
    for name, value in recorded.items():
        apart = (value.double() - again[name].double()).norm() / value.double().norm().clamp(min=1e-12)
        if not apart <= TENSOR_TOLERANCE:  # NaN is no agreement
            return f"the tensor {name} differs by {apart.item():.2g} of its norm"
    return None


def tabulate_outcomes(outcomes: list[Outcome]) -> Table:
    """Outcomes for the terminal."""
    table = Table("job", "output", "came out", "what differs", box=SIMPLE_HEAD)
    for outcome in outcomes:
        table.add_row(
            outcome.rule, Text(show_plainly(outcome.output)), outcome.verdict, Text(show_plainly(outcome.text))
        )
    return table
