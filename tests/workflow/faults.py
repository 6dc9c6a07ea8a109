"""Kills at random moments: a chain of runs of which each is hit somewhere, and what it must come to in the end.

A run is the command that `docs/crashes.md` tells people to use. Victims and moments are drawn from a seed; what runs at a
moment depends on the machine, so a chain is not the same each time, but its end must be.
"""

import os
import random
import shlex
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import yaml
from conftest import make_project

RESUME = "snakemake --unlock && snakemake --cores all"  # docs/crashes.md, README.md
LONGEST_RUN_SECONDS = 1800  # far more than it takes: a loaded machine is no fault
KINDS = ["worker", "command", "scheduler", "everything"]
COMPARED = ["scores/**/*.parquet", "perplexity/**/*.parquet", "refusals/**/*.parquet", "*.parquet", "**/*.hashes.json"]


def make_experiment(folder: Path, config: dict) -> Path:
    """A copy of the project with a configuration of its own."""
    project = make_project(folder)
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    return project


def start(project: Path, log: Path) -> subprocess.Popen:
    """Start a run as a terminal would: in a process group of its own, all output in a file."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    with log.open("a") as stream:
        return subprocess.Popen(
            ["bash", "-c", RESUME],
            cwd=project,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_unbroken(project: Path) -> None:
    """Run to the end, without a kill."""
    log = project / "runs.log"
    run = start(project, log)
    assert run.wait(timeout=LONGEST_RUN_SECONDS) == 0, log.read_text()[-5000:]


def find_victims(run: subprocess.Popen) -> dict[str, list[psutil.Process]]:
    """The processes of a run by kind, once it has jobs; a job's shell (most give their process to the command) is a command too."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(run.pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                words, parent = process.cmdline(), process.parent()
                if process.status() == psutil.STATUS_ZOMBIE or not words:
                    continue
                line = shlex.join(words)
                if "resurface.warm_start" in line:
                    if parent is not None and "resurface.warm_start" in shlex.join(parent.cmdline()):
                        found["worker"].append(process)
                elif "--log" in words or "resurface --log" in line:
                    found["command"].append(process)
                elif "snakemake" in line and "--cores" in words:
                    found["scheduler"].append(process)
    jobs = [*found["worker"], *found["command"]]
    if not jobs:
        return {kind: [] for kind in KINDS}
    return found | {"everything": [*found["scheduler"], *jobs]}


def kill_some(victims: dict[str, list[psutil.Process]], hits: Counter[str], draw: random.Random) -> str | None:
    """Kill one process, or all of them as when a node dies, of a kind that was hit least before.

    Returns:
        the kind that was hit, None if nothing was there.
    """
    kinds = [kind for kind in KINDS if victims[kind]]
    if not kinds:
        return None
    kind = min(draw.sample(kinds, len(kinds)), key=hits.__getitem__)
    hit = 0
    for process in victims[kind] if kind == "everything" else [draw.choice(victims[kind])]:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                process.send_signal(signal.SIGKILL)
                hit += 1
    return kind if hit else None


def run_chain(project: Path, kills: int, longest_wait: float, draw: random.Random) -> Counter[str]:
    """Run, kill, run again, until `kills` have hit or the experiment is done; then run to the end.

    Args:
        project: where.
        kills: after how many kills the chain is left alone.
        longest_wait: seconds between a moment at which jobs run and the kill, at most.
        draw: the source of victims and moments.

    Returns:
        how many kills hit, by kind.
    """
    hits: Counter[str] = Counter()
    log = project / "runs.log"
    seen: set[psutil.Process] = set()
    while True:
        run = start(project, log)
        hits_before = hits.total()
        moment = (
            None  # counted from when jobs run, or from when they run in workers: before that, each imports for itself
        )
        awaited = draw.choice(["command", "worker"])
        end = time.monotonic() + LONGEST_RUN_SECONDS
        while run.poll() is None:
            assert time.monotonic() < end, log.read_text()[-5000:]
            time.sleep(0.25 if moment is None else 0.02)
            if hits.total() == kills or (moment is not None and time.monotonic() < moment):
                continue
            victims = find_victims(run)  # takes a while, so it is not asked all the time
            seen.update(process for processes in victims.values() for process in processes)
            if moment is None and victims[awaited]:
                moment = time.monotonic() + draw.uniform(0, longest_wait)
            elif moment is not None:
                kind = kill_some(victims, hits, draw)
                if kind is not None:
                    hits[kind] += 1
                    moment, awaited = None, draw.choice(["command", "worker"])
        if run.returncode == 0:
            break
        assert hits.total() > hits_before, f"this run failed although nothing hit it:\n{log.read_text()[-8000:]}"
    _, alive = psutil.wait_procs(seen, timeout=30)
    assert not alive, "orphans go on"
    return hits


def differing(project: Path, reference: Path) -> list[str]:
    """The results (score tables above all, and the hashes of what every job left) that are not the same bytes in both."""
    names = {
        path.relative_to(root / "results").as_posix()
        for root in (project, reference)
        for pattern in COMPARED
        for path in (root / "results").glob(pattern)
        if path.name != "costs.parquet"  # what jobs took is never the same twice
    }
    assert sum(name.startswith("scores/") for name in names) >= 4

    def read(root: Path, name: str) -> bytes | None:
        path = root / "results" / name
        return path.read_bytes() if path.is_file() else None

    return sorted(name for name in names if read(project, name) != read(reference, name))


def leftovers(project: Path) -> list[str]:
    """What must not be left below `results/`: partial and temporary files, locks, state."""
    results = project / "results"
    return sorted(
        path.relative_to(results).as_posix()
        for path in results.rglob(".*")
        if path.name not in (".snakemake_timestamp", ".resume") or (path.name == ".resume" and any(path.iterdir()))
    )
