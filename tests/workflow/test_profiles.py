"""Profiles for clusters, as far as a dry run without a cluster shows: what is asked for, and how many submissions there are."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from cluster import make_environment, run_snakemake
from conftest import ROOT, make_project, snakemake

pytestmark = pytest.mark.audit

PROFILES = {path.parent.name: path for path in ROOT.glob("profiles/*/config.yaml")}


def uncomment(profile):
    """A profile with its settings for large models and its lines for partition and account in force."""
    return re.sub(r"^( *)# (set-resources:$|  \w+: \{|slurm_\w+: )", r"\1\2", profile, flags=re.MULTILINE)


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


@pytest.fixture(scope="module")
def planned(project):
    """What would be submitted to Slurm."""
    return plan(project, "--workflow-profile", "slurm")


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


def test_a_thousand_jobs_make_few_submissions(planned):
    total = int(re.search(r"^total +(\d+)$", planned, flags=re.MULTILINE)[1])
    grouped = len(re.findall(r"^    rule ", planned, flags=re.MULTILINE))
    groups = len(re.findall(r"Group job ", planned))
    assert total >= 1000
    assert groups + (total - grouped) <= total / 4


def test_each_attempt_asks_for_more(project, planned):
    first = asked(planned, "attack")
    third = asked(plan(project, "--workflow-profile", "slurm", "--attempt", "3"), "attack")
    assert len(first) == len(third) == 1
    assert "gpu" not in first[0]
    for name in ("mem_mb", "runtime"):
        assert int(third[0][name]) == 3 * int(first[0][name])


def test_the_lines_for_large_models_work_as_they_stand(project):
    profile = project / "profiles" / "large" / "config.yaml"
    profile.parent.mkdir()
    profile.write_text(uncomment((project / "profiles" / "slurm" / "config.yaml").read_text()))
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


def test_a_model_that_is_spread_asks_for_as_many(project):
    planned = plan(
        project, "--workflow-profile", "slurm", "--printshellcmds", "--config", "device=cuda", "model_gpus=3"
    )
    for rule in ("unlearn", "attack", "score", "refusals", "perplexity"):
        assert {resources["gpu"] for resources in asked(planned, rule)} == {"3"}
        assert f"--model-gpus 3 {rule}" in planned


class EmptyStorage(BaseHTTPRequestHandler):
    """An S3 without any bucket."""

    def do_HEAD(self):
        self.send_error(404)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def test_kubernetes_with_files_in_s3(tmp_path):
    project = make_project(tmp_path / "resurface")
    python = make_environment(tmp_path / "environment", "^(?!.*slurm)")
    profile = project / "profiles" / "kubernetes" / "config.yaml"
    profile.write_text(uncomment(profile.read_text()))
    settings = yaml.safe_load(profile.read_text())
    place = settings["default-storage-prefix"].replace("s3://", ".snakemake/storage/s3/") + "/results"
    assert settings["precommand"] == f"mkdir -p {place} && ln -sfn {place} results"
    server = ThreadingHTTPServer(("127.0.0.1", 0), EmptyStorage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    storage = {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "ACCESS_KEY": "key", "SECRET_KEY": "secret"}
    environment = {f"SNAKEMAKE_STORAGE_S3_{name}": value for name, value in storage.items()}
    run = run_snakemake(
        python, project, "--dry-run", "--printshellcmds", "--workflow-profile", "kubernetes", **environment
    )
    server.shutdown()
    (resources,) = asked(run.stdout, "unlearn")
    assert (resources["gpu"], resources["gpu_manufacturer"], resources["scale"]) == ("1", "nvidia", "0")
    assert "output: s3://my-bucket/resurface/results/summary.parquet (send to storage)" in run.stdout
    assert f"--output {place}/summary.parquet" in run.stdout
