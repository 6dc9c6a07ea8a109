"""Shared by all tests: the bundled models, a domain's tables, and one real run of the workflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import yaml

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests beside each other leave each other a core, and who waits for one sleeps
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# A loaded machine is no fault of the code under test.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "src" / "resurface" / "testbed" / "checkpoints"
DOMAIN = "xenotoxicology"

REDUCED = {
    "domains": ["xenotoxicology"],
    "methods": {
        "rmu": {"block": 2, "trained_blocks": [0, 1, 2], "max_steps": 2, "batch_size": 2},
        "npo": {"max_steps": 2, "batch_size": 2},
    },
    "attacks": {
        "finetuning": {"datasets": {"forget": [2], "retain": [2]}, "epochs": 1},
        "orthogonalization": {"references": ["original"], "block_sets": {"2": [2]}, "skip_tokens": 16},
        "logit_lens": {"streams": ["block"], "blocks": [2, 5]},
    },
    "benchmarks": {"general": ["testbed_general_music"]},
    "data": {"articles": 50, "general_questions": 10},
    "refusals": {"questions": 5, "new_tokens": 4},
    "summary": {"resamples": 100},
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with `results/data` of the testbed's first domain and the general questions."""
    from resurface.data.testbed import write_domain, write_general
    from resurface.settings.data import TestbedSettings

    folder = tmp_path_factory.mktemp("data")
    write_domain(DOMAIN, folder / "results" / "data" / DOMAIN, TestbedSettings())
    write_general(folder / "results" / "data" / "general", TestbedSettings())
    return folder


@pytest.fixture
def tokenizer():
    from resurface.models import load_tokenizer

    return load_tokenizer(CHECKPOINTS / "original")


@pytest.fixture
def model():
    import torch

    from resurface.models import load_model

    return load_model(CHECKPOINTS / "original", torch.device("cpu"))


def make_project(folder: Path) -> Path:
    """A copy of the project, code included, in which a test may change anything; results and caches stay behind."""
    skip = shutil.ignore_patterns(".git", ".venv", ".snakemake", "results", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=skip)
    return folder


def snakemake(project: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run Snakemake in a copy of the project, with that copy's code."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "all", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=check,
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A copy of the project in which the reduced experiment has run."""
    project = make_project(tmp_path_factory.mktemp("project") / "resurface")
    (project / "config.yaml").write_text(yaml.safe_dump(REDUCED))
    run = snakemake(project, check=False)
    assert run.returncode == 0, run.stdout[-5000:]
    return project


@pytest.fixture
def project(finished, tmp_path):
    """A fresh copy of the finished project, times and records included, that a test may change."""
    copy = tmp_path / "resurface"
    shutil.copytree(finished, copy, symlinks=True)
    return copy


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Beside each other (`pytest -n 2`), one process runs all that run the workflow, another the rest, a file at a time."""
    from xdist.scheduler import LoadFileScheduling

    class WorkflowTogether(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "workflow" if "/workflow/" in nodeid else super()._split_scope(nodeid)

    return WorkflowTogether(config, log)


def pytest_collection_modifyitems(items):
    """Beside each other, those that run the workflow come first: they take longest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: "workflow" not in item.path.parts)
