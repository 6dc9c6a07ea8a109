"""The experiments at paper scale: each is planned whole, without a network, and with the paper's settings."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from resurface.config import validate_config
from resurface.registry import ATTACKS, METHODS
from resurface.reproducibility.jobs import all_jobs
from resurface.settings.sources import split_hub_id

FILES = {path.stem: path for path in (ROOT / "workflow" / "experiments").glob("*.yaml")}
EXPERIMENTS = {
    name: path for name, path in FILES.items() if name != "first-audit"
}  # the testbed's (test_documentation.py)


def test_there_is_an_experiment_for_each_of_these():
    paper = {"zephyr-7b-bio", "zephyr-7b-cyber", "llama-3.1-8b-bio", "zephyr-7b-fictional"}
    assert set(FILES) == {"first-audit", *paper}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_method_and_attack_is_in_it_and_every_revision_is_pinned(name):
    experiment = validate_config(yaml.safe_load(EXPERIMENTS[name].read_text()), name)
    assert set(experiment.trained_methods) == set(METHODS)
    assert set(experiment.attack_names) == set(ATTACKS)
    named = [experiment.models.original, experiment.models.never_learned]
    named += [place for one in experiment.published.values() for place in (one.checkpoint, one.tokenizer)]
    for source in named:
        hub_id = split_hub_id(source or "")
        assert hub_id is None or re.fullmatch("[0-9a-f]{40}", hub_id[1]), source


@pytest.mark.parametrize("name", ["zephyr-7b-bio", "zephyr-7b-cyber"])
def test_settings_are_the_paper_s(name):
    experiment = validate_config(yaml.safe_load(EXPERIMENTS[name].read_text()), name)
    methods, attacks = experiment.methods, experiment.attacks
    rmu = methods.rmu
    assert (rmu.block, rmu.trained_blocks, rmu.coefficient, rmu.alpha) == (7, [5, 6, 7], 6.5, 1200.0)
    assert (rmu.learning_rate, rmu.batch_size, rmu.max_steps) == (5e-5, 4, 150)
    npo, dpo = methods.npo, methods.dpo
    assert (npo.batch_size, npo.epochs, npo.forget_loss_over, npo.adapter) == (72, 3.0, "sequence", "full")
    assert 1e-5 <= npo.learning_rate <= 5e-4
    assert 0.05 <= npo.beta <= 0.5
    assert 0.5 <= npo.retain_weight <= 5
    assert (dpo.batch_size, dpo.warmup_steps, dpo.length, dpo.forget_share, dpo.retain_share) == (
        32,
        150,
        1024,
        0.5,
        0.25,
    )
    assert dpo.learning_rate in (1e-6, 5e-6)
    finetuning = attacks.finetuning
    counts = [5, 10, 50, 100, 500, 1000]
    assert finetuning.datasets == {"forget": counts, "retain": counts, "text": [5000, 10000]}
    assert (finetuning.lora_rank, finetuning.lora_alpha, finetuning.learning_rate) == (128, 16.0, 2e-4)
    assert set(attacks.orthogonalization.references) == {"original", "benign", "text", "principal"}
    assert sum(q <= p for p in attacks.pruning.p for q in attacks.pruning.q) == 45
    assert attacks.pruning.samples == 512
    assert (attacks.enhanced_gcg.steps, attacks.enhanced_gcg.searches) == (1500, {"5to7": [5, 6, 7], "18": [18]})
    assert attacks.logit_lens.blocks is None
    assert experiment.benchmarks == {"mmlu": ["resurface_mmlu"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_is_planned_without_a_network(name, tmp_path):
    arguments = ["--dry-run", "--quiet", "host", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments, "--configfile", EXPERIMENTS[name]],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            **{"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")},
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", run.stdout, flags=re.MULTILINE)}
    experiment = validate_config(yaml.safe_load(EXPERIMENTS[name].read_text()), name)
    assert counts["total"] == len(all_jobs(experiment)) + 2, (
        "audits know all of them; the manifest and `all` have no record"
    )
    assert counts["unlearn"] == len(METHODS)
    taken_over = [experiment.models.original, experiment.models.never_learned, *experiment.published]
    assert counts["model"] == sum(model is not None for model in taken_over)
    assert counts.get("teach", 0) == (experiment.models.original == "teach")
    if experiment.models.original != "teach":
        assert counts["corpora"] == counts["questions"] == 1
        assert counts["source"] == 5, "questions of the domain and of MMLU, WikiText, ARC and OASST2"
    assert not (tmp_path / "home").exists()
