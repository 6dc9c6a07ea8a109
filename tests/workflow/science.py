"""The science on the testbed: the experiment that is run, and how its bars are measured.

Accuracies are on the domain's test questions, in the better of the two templates; under attacks they are those of the
variant and template that were selected on validation questions. Intervals come from a bootstrap over facts (each asked in
several wordings) and seeds.
"""

import numpy as np
import pandas as pd
import yaml
from conftest import DOMAIN, ROOT, make_project, snakemake

from resurface.analysis.sparing import choose_sparing
from resurface.analysis.summary import read_scores, summarize
from resurface.settings.summary import SummarySettings

SEEDS = [0, 1, 2]


def make_experiment(folder):
    """The default experiment over three seeds, with more questions; finetuning and orthogonalization cut to one variant, ten random
    prefixes, and all that is found scored on all models.

    With three wordings instead of two the control's gains are known to 0.08; the default experiment waits for fewer minutes.
    """
    project = make_project(folder)
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["seeds"] = SEEDS
    del config["transfers"]
    config["data"] |= {"wordings": 3, "general_questions": 30}
    config["attacks"]["finetuning"]["datasets"] = {"forget": [20]}
    config["attacks"]["orthogonalization"] |= {"references": ["original"], "block_sets": {"0to2": [0, 1, 2]}}
    config["attacks"]["random_prefix"]["count"] = 10
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    return project


def run(project, *targets):
    finished = snakemake(project, *targets, check=False)
    assert finished.returncode == 0, finished.stdout[-5000:]


def score_tables(methods, attacks, seeds=SEEDS):
    """Score tables of an experiment; a reference without attack has no seed and is kept under the first."""
    return [
        f"results/scores/{DOMAIN}/{method}/seed{seed}/{attack}.parquet"
        for method in methods
        for attack in attacks
        for seed in (SEEDS[:1] if attack == "none" and method in ("original", "never_learned") else seeds)
    ]


def read(project, tables):
    """Scores, and their summary."""
    scores = read_scores([project / table for table in tables])
    return scores, summarize(scores, SummarySettings(resamples=100))


def of_test(summary, method, attack, benchmark=DOMAIN):
    return summary[
        (summary["method"] == method)
        & (summary["attack"] == attack)
        & (summary["benchmark"] == benchmark)
        & (summary["split"] == "test")
    ]


def accuracy(summary, method, benchmark=DOMAIN):
    """Mean over seeds of the accuracy without attack, in the better template."""
    rows = of_test(summary, method, "none", benchmark)
    by_template = rows.groupby(["seed", "template"], dropna=False)["accuracy"].mean()
    return by_template.groupby("seed", dropna=False).max().mean()


def recovery(summary, method, attack, seeds=SEEDS):
    """Mean over seeds of the recovery of the selected variant."""
    rows = of_test(summary, method, attack)
    rows = rows[rows["selected"]]
    assert sorted(rows["seed"]) == seeds
    return rows["recovery"].mean()


def sparing_recovery(summary, method, attack, kept, seeds=SEEDS):
    """Mean recovery, and mean general accuracy, of what spares general ability (`resurface.analysis.sparing`)."""
    best = choose_sparing(summary, DOMAIN, kept)
    best = best[(best["method"] == method) & (best["attack"] == attack)]
    assert sorted(best["seed"]) == seeds
    return best["recovery"].mean(), best["general"].mean()


def control_gain(summary, scores, attack, seeds=SEEDS):
    """What an attack adds to the control's accuracy, each as validation chose it: the upper end of the 95 % interval."""
    test = scores[(scores["method"] == "never_learned") & (scores["benchmark"] == DOMAIN) & (scores["split"] == "test")]

    def answers(chosen):
        variant, template = chosen[["variant", "template"]]
        rows = test[
            (test["attack"] == chosen["attack"]) & (test["variant"] == variant) & (test["template"] == template)
        ]
        rows = rows[rows["seed"].isna() if pd.isna(chosen["seed"]) else rows["seed"] == chosen["seed"]]
        rows = rows.sort_values("question_id")
        return rows["correct"].to_numpy(float), rows["cluster"].to_numpy()

    alone, attacked = (of_test(summary, "never_learned", name).query("selected") for name in ("none", attack))
    assert sorted(attacked["seed"]) == seeds
    before, clusters = answers(alone.iloc[0])
    gains = np.stack([answers(chosen)[0] - before for _, chosen in attacked.iterrows()])
    facts = [np.flatnonzero(clusters == fact) for fact in np.unique(clusters)]
    by_fact = np.stack([gains[:, questions].mean(1) for questions in facts], axis=1)
    generator = np.random.default_rng(0)
    resampled = [
        by_fact[generator.integers(0, len(seeds), len(seeds))][:, generator.integers(0, len(facts), len(facts))].mean()
        for _ in range(2000)
    ]
    return np.percentile(resampled, 97.5)
