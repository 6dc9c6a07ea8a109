"""Public domains from end to end: made-up data of the public schema, a scripted server that writes questions, published checkpoints."""

import re
import shutil
from functools import partial

import pandas as pd
import pytest
import yaml
from chat_server import ChatServer, complete, good_question
from conftest import CHECKPOINTS, make_project, snakemake
from public_data import write_public_data

from resurface.errors import ResurfaceError
from resurface.reproducibility.crate import export_crate
from resurface.reproducibility.manifest import read_manifest
from resurface.reproducibility.reproduce import choose_jobs, reproduce
from resurface.reproducibility.verify import read_experiment, verify

pytestmark = pytest.mark.audit

EXPERIMENT = {
    "domains": ["bio", "cyber"],
    "methods": {
        "rmu": {"block": 2, "trained_blocks": [0, 1, 2], "max_steps": 2, "batch_size": 2, "length": 64},
        "published": {
            "both": {"checkpoint": "./theirs", "tokenizer": str(CHECKPOINTS / "original")},
            "one": {"checkpoint": str(CHECKPOINTS / "original"), "domains": ["bio"]},
        },
    },
    "attacks": {"finetuning": {"datasets": {"forget": [2]}, "epochs": 1}, "logit_lens": {"blocks": [2]}},
    "benchmarks": {"mmlu": ["resurface_mmlu_abstract_algebra"]},
    "refusals": {"questions": 2, "new_tokens": 2},
    "summary": {"resamples": 100},
}


def test_a_public_experiment_runs_and_passes_its_audit(tmp_path, monkeypatch):
    project = make_project(tmp_path / "resurface")
    shutil.copytree(CHECKPOINTS / "never_learned", project / "theirs")
    rows = {"wmdp_bio": 60, "wmdp_cyber": 60, "mmlu": 40, "bio_forget": 20, "cyber_forget": 20}
    sources = write_public_data(tmp_path / "public", **rows)
    with ChatServer(lambda article, _: complete([good_question(article, place) for place in range(3)])) as server:
        preferences = {"base_url": server.address, "model": "scripted", "key_variable": None}
        preferences |= {"forget_questions": 20, "benign_questions": 4, "shortest_article": 10}
        (project / "config.yaml").write_text(
            yaml.safe_dump({**EXPERIMENT, "sources": sources, "preferences": preferences})
        )
        run = snakemake(project, check=False)
        assert run.returncode == 0, run.stdout[-5000:]
    results = project / "results"
    for domain, subject in (("bio", "biology"), ("cyber", "cybersecurity")):
        questions = pd.read_parquet(results / "data" / domain / "questions.parquet")
        assert set(questions["subject"]) == {subject}
        counts = questions["split"].value_counts()
        assert counts["train"] == 20
        assert counts["validation"] + counts["test"] == 60
    summary = pd.read_parquet(results / "summary.parquet")
    scored = summary[summary["benchmark"] == summary["domain"]].groupby("domain")["method"].unique()
    assert set(scored["bio"]) == {"original", "never_learned", "rmu", "both", "one"}
    assert set(scored["cyber"]) == {"original", "never_learned", "rmu", "both"}
    assert (results / "models" / "both" / "model.safetensors").is_symlink()
    assert {path.name for path in (results / "unlearned").glob("*/*")} == {"rmu"}

    _, findings = verify(results, follow_links=True)
    assert findings == []
    for name, options in (("open", {}), ("whole", {"with_sensitive": True})):
        export_crate(results, tmp_path / name, project / "Snakefile", follow_links=True, **options)
    crate, whole = (
        {path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("open", "whole")
    )
    kept = {path for path in crate if re.match("results/(data/(bio|cyber|sources)|attacks)/", path)}
    assert all(path.endswith((".hashes.json", ".provenance.json")) for path in kept)
    assert "results/report.html" in whole - crate
    assert whole > {"results/data/bio/questions.parquet", "results/data/sources/wmdp_bio.parquet"}
    assert any(re.match("results/attacks/bio/rmu/seed0/finetuning/.*safetensors", path) for path in whole - crate)

    monkeypatch.chdir(project)  # where paths of the configuration begin
    again = partial(reproduce, results, snakefile=project / "Snakefile", cores=2, follow_links=True)
    (outcome,) = again(["results/models/both"], 1, 0, tmp_path / "scratch")
    assert (outcome.verdict, outcome.text) == ("identical", "")
    manifest = read_manifest(results)
    experiment = read_experiment(manifest)
    drawn = choose_jobs(manifest, experiment, [], len(manifest.records), 0)
    asked = {path for path, record in manifest.records.items() if record.rule == "write_preferences"}
    assert len(asked) == 2
    assert set(drawn) == manifest.records.keys() - asked
    with pytest.raises(ResurfaceError, match="would send it a key"):
        list(again([sorted(asked)[0].removesuffix(".provenance.json")], 1, 0, tmp_path / "other"))

    plan = snakemake(project, "--dry-run").stdout
    assert re.search("Nothing to be done", plan)
    texts = [*pd.read_parquet(results / "data/bio/forget_corpus.parquet")["text"]]
    logs = "".join(path.read_text() for path in (results / "logs").rglob("*.log"))
    assert not any(text[:40] in logs for text in texts)
