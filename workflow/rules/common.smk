"""Helpers of the rules: the validated configuration, and what makes a job stale.

A job depends on its own slice of the configuration (`settings`, one line of sorted JSON) and on the source of its module
and of what that imports (`source`). Both are `params`, which Snakemake compares with those of the last run. The device
and the number of threads are `resources` and `threads`: where a job runs does not make it stale.
"""

import json
import sys

from resurface.config import dump_settings, validate_config
from resurface.errors import ResurfaceError
from resurface.registry import ATTACKS, METHODS
from resurface.reproducibility.fingerprint import fingerprint

try:
    experiment = validate_config(
        config, ", ".join(map(str, workflow.configfiles)) or "--config"
    )
except ResurfaceError as error:
    raise WorkflowError(str(error)) from None

MODELS = "results/models/{model}"
UNLEARNED = "results/unlearned/{domain}/{method}/seed{seed}"
ATTACKED = "results/attacks/{domain}/{method}/seed{seed}/{attack}/{part}"
SCORES = "results/scores/{domain}/{method}/seed{seed}/{attack}.parquet"
PERPLEXITY = "results/perplexity/{domain}/{method}/seed{seed}/{attack}.parquet"
REFUSALS = "results/refusals/{domain}/{method}/seed{seed}.parquet"
LOGS = "results/logs"

REFERENCES = [
    name for name in ("original", "never_learned") if getattr(experiment.models, name)
]


wildcard_constraints:
    domain="[a-z0-9_]+",
    method="[a-z0-9_]+",
    attack="|".join(ATTACKS),
    part="[a-z0-9_]+",
    model="original|never_learned",
    seed=r"\d+",


def hashes(folder):
    """The file of content hashes beside a folder: what downstream jobs depend on."""
    return f"{folder}.hashes.json"


def checkpoint(wildcards):
    """The folder of a model: an unlearned one, or one of the two references."""
    if wildcards.method in REFERENCES:
        return MODELS.format(model=wildcards.method)
    return UNLEARNED.format(
        **{key: wildcards[key] for key in ("domain", "method", "seed")}
    )


def domain_tables(wildcards):
    """The tables that methods and attacks read."""
    names = [
        "forget_corpus",
        "retain_corpus",
        "questions",
        "retain_questions",
        "preferences",
    ]
    return [f"results/data/{wildcards.domain}/{name}.parquet" for name in names]


def domain_tasks(wildcards):
    """The harness tasks of a domain's own questions."""
    return [f"testbed_{wildcards.domain}"]


def benchmarks(wildcards):
    """Benchmark → harness tasks: the domain's own questions, then the general ones."""
    return json.dumps(
        {wildcards.domain: domain_tasks(wildcards), **experiment.benchmarks}
    )


def benchmark_tables(wildcards):
    """The tables that local harness tasks read."""
    return [
        f"results/data/{name}/questions.parquet"
        for name in (wildcards.domain, "general")
    ]


def is_reported(method, seed, attack):
    """Whether a combination is part of the experiment.

    A reference model without attack does not depend on a seed; the original is not attacked, but what attacks found on others
    may be scored on it.
    """
    if attack == "none" and method in REFERENCES:
        return seed == experiment.seeds[0]
    return method != "original" or experiment.is_transferred(attack)


def reported(pattern, attacks, models=(*REFERENCES, *experiment.method_names)):
    """All files of a pattern that the experiment needs."""
    return [
        pattern.format(domain=domain, method=method, seed=seed, attack=attack)
        for domain in experiment.domains
        for method in models
        for seed in experiment.seeds
        for attack in attacks
        if is_reported(method, seed, attack)
    ]
