"""A real Slurm of one node: what it computes, how much it is asked for, and what happens to a job that needs more.

`make cluster` runs them, apart from all others: while Slurm's commands are there, whatever looks for a cluster takes longer.
"""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from cluster import make_environment, run_snakemake
from conftest import make_project, snakemake

pytestmark = pytest.mark.cluster

SCRIPTS = Path(__file__).parent / "slurm"
SOON = ["--slurm-status-command=squeue", "--slurm-init-seconds-before-status-checks=2"]
OPTIONS = ["--workflow-profile", "slurm", *SOON]
EXPERIMENT = {
    "domains": ["xenotoxicology"],
    "models": {"never_learned": None},
    "methods": {"rmu": {"block": 2, "trained_blocks": [0, 1, 2], "max_steps": 2, "batch_size": 2}},
    "attacks": {"orthogonalization": {"references": ["original"], "block_sets": {"2": [2]}, "skip_tokens": 16}},
    "benchmarks": {"general": ["testbed_general_music"]},
    "data": {"articles": 50, "general_questions": 10},
    "scoring": {"templates": ["plain"]},
    "refusals": {"questions": 5, "new_tokens": 4},
    "summary": {"resamples": 100},
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The Python whose Snakemake submits to a Slurm that runs here."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        start = subprocess.run([SCRIPTS / "start.sh", folder], text=True, capture_output=True)
        if start.returncode == 77:
            pytest.skip(start.stdout.splitlines()[-1])
        assert start.returncode == 0, start.stdout + start.stderr
        yield make_environment(tmp_path_factory.mktemp("environment"), "slurm")
    finally:
        subprocess.run([SCRIPTS / "stop.sh", folder], check=True)


def new_project(folder):
    project = make_project(folder / "resurface")
    (project / "config.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return project


@pytest.fixture(scope="module")
def project(slurm, tmp_path_factory):
    """A copy of the project in which the reduced experiment has run on Slurm."""
    project = new_project(tmp_path_factory.mktemp("on_slurm"))
    run_snakemake(slurm, project, *OPTIONS)
    return project


def submissions(project):
    """What Slurm knows of the jobs that were submitted from a project, in order."""
    jobs = subprocess.run(["scontrol", "show", "jobs", "--oneliner"], text=True, capture_output=True, check=True).stdout
    fields = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in jobs.splitlines()]
    return sorted((job for job in fields if job.get("WorkDir") == str(project)), key=lambda job: int(job["JobId"]))


def test_slurm_computes_what_this_machine_computes(project, tmp_path):
    local = new_project(tmp_path)
    run = snakemake(local, check=False)
    assert run.returncode == 0, run.stdout[-5000:]
    tables = sorted(path.relative_to(local) for path in local.glob("results/scores/**/*.parquet"))
    assert len(tables) == 3
    for table in [*tables, "results/summary.parquet", "results/refusals/xenotoxicology/rmu/seed0.parquet"]:
        assert (project / table).read_bytes() == (local / table).read_bytes(), table


def test_jobs_are_submitted_in_groups_that_ask_for_no_more_than_one_job(project):
    submitted = submissions(project)
    assert len(submitted) == 8, "19 jobs"
    for job in submitted:
        assert job["JobState"] == "COMPLETED"
        assert job["NumCPUs"] == "1"
        assert job["MinMemoryNode"] in ("1500M", "2000M", "3000M")
    scores = [job for job in submitted if "score_none" in job["Comment"]]
    assert [job["TimeLimit"] for job in scores] == ["01:00:00"], "two jobs of 30 minutes, in turn"


@pytest.mark.parametrize("options", [["--cores=1"], [*OPTIONS, "--set-resources", "attack:mem_mb=9000", "score:gpu=1"]])
def test_where_a_job_ran_and_what_it_asked_for_makes_nothing_stale(slurm, project, options):
    assert "Nothing to be done" in run_snakemake(slurm, project, "--dry-run", *options).stdout


def test_a_job_that_is_killed_for_memory_is_tried_again_with_more(slurm, tmp_path):
    project = new_project(tmp_path)
    asked = ["--set-resources", "general_questions:mem_mb=110 * attempt ** 4", "general_questions:gpu=1"]
    run = run_snakemake(slurm, project, *OPTIONS, *asked, "--", "results/data/general/questions.parquet")
    assert (project / "results/data/general/questions.parquet").is_file()
    assert "Trying to restart" in run.stdout
    first, second = submissions(project)
    assert (first["JobState"] in ("FAILED", "OUT_OF_MEMORY"), second["JobState"]) == (True, "COMPLETED")
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("110M", "1760M")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("00:10:00", "00:20:00")
    assert second["TresPerJob"] == "gres:gpu:1"
    assert "exceeded memory limit" in Path(first["StdOut"]).read_text()
