"""A Snakemake that knows clusters, in an environment of its own: its plugins would slow down every other test's Snakemake."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from conftest import ROOT


def make_environment(folder: Path, pattern: str) -> Path:
    """A Python that has this one's packages and those of `envs/cluster.lock` that match a pattern."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(packages, "outer.pth").write_text(sysconfig.get_path("purelib"))
    lines = (ROOT / "envs" / "cluster.lock").read_text().splitlines()
    chosen = [line for line in lines if not line.startswith("#") and re.search(pattern, line)]
    install = ["install", "--quiet", "--no-deps", "--disable-pip-version-check", *chosen]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    return python


def run_snakemake(
    python: Path, project: Path, *arguments: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    """Run Snakemake with such a Python in a copy of the project, with that copy's code."""
    run = subprocess.run(
        [python, "-m", "snakemake", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src"), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert not check or run.returncode == 0, run.stdout[-5000:]
    return run
