"""Profiles for clusters, as far as a dry run without a cluster shows: what is asked for, and how many submissions there are."""

import re

import pytest
import yaml
from conftest import ROOT, make_project, snakemake

pytestmark = pytest.mark.slow

PROFILES = {path.parent.name: path for path in ROOT.glob("profiles/*/config.yaml")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose experiment has more than a thousand jobs, and whose Slurm profile wants no Slurm."""
    project = make_project(tmp_path_factory.mktemp("project") / "resurface")
    config = yaml.safe_load((project / "config.yaml").read_text())
    config |= {"domains": ["xenotoxicology", "runecraft"], "seeds": list(range(6))}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    profile = project / "profiles" / "slurm" / "config.yaml"
    profile.write_text(profile.read_text().replace("executor: slurm\n", ""))
    return project


def plan(project, *arguments):
    return snakemake(project, "--dry-run", *arguments).stdout


def asked(plan, rule):
    """The resources of a rule's jobs in a plan: the distinct ones."""
    lines = re.findall(rf"^ *rule {rule}:\n(?: +\w.*\n)*? +resources: (.*)$", plan, flags=re.MULTILINE)
    assert lines
    return [dict(pair.split("=", 1) for pair in line.split(", ")) for line in sorted(set(lines))]


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_keeps_what_the_default_one_says(name):
    """Snakemake does not read the default profile when another one is named."""
    profile = yaml.safe_load(PROFILES[name].read_text())
    assert yaml.safe_load(PROFILES["default"].read_text()).items() <= profile.items()


def test_a_thousand_jobs_make_few_submissions(project):
    planned = plan(project, "--workflow-profile", "slurm")
    total = int(re.search(r"^total +(\d+)$", planned, flags=re.MULTILINE)[1])
    grouped = len(re.findall(r"^    rule ", planned, flags=re.MULTILINE))
    groups = len(re.findall(r"Group job ", planned))
    assert total >= 1000
    assert groups + (total - grouped) <= total / 4


def test_each_attempt_asks_for_more(project):
    first = asked(plan(project, "--workflow-profile", "slurm"), "attack")
    third = asked(plan(project, "--workflow-profile", "slurm", "--attempt", "3"), "attack")
    assert len(first) == len(third) == 1
    assert "gpu" not in first[0]
    for name in ("mem_mb", "runtime"):
        assert int(third[0][name]) == 3 * int(first[0][name])


def test_the_lines_for_large_models_work_as_they_stand(project):
    profile = project / "profiles" / "large" / "config.yaml"
    profile.parent.mkdir()
    text = (project / "profiles" / "slurm" / "config.yaml").read_text()
    profile.write_text(re.sub(r"^( *)# (set-resources:$|  \w+: \{|slurm_\w+: )", r"\1\2", text, flags=re.MULTILINE))
    planned = plan(project, "--workflow-profile", "large", "--attempt", "2")
    for rule in ("unlearn", "attack", "score", "refusals", "perplexity"):
        (resources,) = asked(planned, rule)
        assert resources["gpu"] == "1"
        assert int(resources["mem_mb"]) >= 128_000
        assert resources["slurm_partition"] == "gpu"
        assert resources["slurm_account"] == "my_account"


def test_an_experiment_on_cuda_asks_for_gpus(project):
    planned = plan(project, "--workflow-profile", "slurm", "--config", "device=cuda")
    assert asked(planned, "score")[0]["gpu"] == "1"
    assert "gpu" not in asked(planned, "data")[0]
