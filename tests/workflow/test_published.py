"""Published checkpoints are methods: attacked and scored under their name, and there once, whatever they serve."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import CHECKPOINTS, snakemake

from resurface.config import validate_config
from resurface.reproducibility.jobs import SCORES, all_jobs, job_facts, reported

pytestmark = pytest.mark.slow

PUBLISHED = {
    "first": {"checkpoint": str(CHECKPOINTS / "never_learned"), "tokenizer": str(CHECKPOINTS / "original")},
    "second": {"checkpoint": "org/name@main", "domains": ["runecraft"]},
}


def change(project: Path, **sections) -> dict:
    config = yaml.safe_load((project / "config.yaml").read_text())
    for name, section in sections.items():
        config[name] = {**config[name], **section} if isinstance(section, dict) else section
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    return config


def test_one_checkpoint_serves_all_domains_and_seeds(project):
    config = change(project, methods={"published": PUBLISHED}, domains=["xenotoxicology", "runecraft"], seeds=[0, 1])
    experiment = validate_config(config, "config.yaml")
    jobs = all_jobs(experiment)
    assert jobs["results/models/first"] == jobs["results/models/second"] == ("model", None)
    facts = job_facts(experiment, "results/models/first", "model")
    assert (facts["source"], facts["tokenizer"]) == (PUBLISHED["first"]["checkpoint"], PUBLISHED["first"]["tokenizer"])
    unlearned = {path.split("/")[3] for path, (rule, _) in jobs.items() if rule == "unlearn"}
    assert unlearned == {"rmu", "npo"}
    scores = {path for path in reported(experiment, SCORES, ["none"]) if "/first/" in path or "/second/" in path}
    assert scores == {
        SCORES.format(domain=domain, method=method, seed=seed, attack="none")
        for method, domains in {"first": config["domains"], "second": ["runecraft"]}.items()
        for domain in domains
        for seed in (0, 1)
    }

    plan = snakemake(project, "--dry-run", "--quiet", "host").stdout
    models = re.findall(r"^rule model:\n(?:    .*\n)*?    wildcards: model=(\w+)", plan, flags=re.MULTILINE)
    assert sorted(models) == ["first", "second"]
    planned = set(re.findall(r"output: (results/scores/\w+/(?:first|second)/\w+/none.parquet),", plan))
    assert planned == scores
    assert not re.search(r"results/unlearned/\w+/(first|second)", plan)


def test_a_published_checkpoint_is_scored_under_its_name(project):
    change(project, methods={"published": {"first": PUBLISHED["first"]}})
    target = "results/scores/xenotoxicology/first/seed0/none.parquet"
    run = snakemake(project, target, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    table = pd.read_parquet(project / target)
    assert set(table["method"]) == {"first"}
    control = pd.read_parquet(project / "results/scores/xenotoxicology/never_learned/seed0/none.parquet")
    assert list(table["prediction"]) == list(control["prediction"]), "it is the same checkpoint by another name"
    folder = project / "results" / "models" / "first"
    assert (folder / "model.safetensors").readlink() == CHECKPOINTS / "never_learned" / "model.safetensors"
    assert (folder / "tokenizer.json").readlink() == CHECKPOINTS / "original" / "tokenizer.json"
    assert not (project / "results" / "unlearned" / "xenotoxicology" / "first").exists()
    summary = snakemake(project, "--dry-run", "results/summary.parquet").stdout
    assert re.search(rf"rule summarize:\n    input: .*{target}", summary)
