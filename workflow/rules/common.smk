"""Helpers of the rules: the validated configuration, and what makes a job stale.

A job depends on its own slice of the configuration (`settings`, one line of sorted JSON) and on the source of its module
and of what that imports (`source`). Both are `params`, which Snakemake compares with those of the last run. The device
and the number of threads are `resources` and `threads`, and so are the memory (MB), the minutes and the GPUs that a job asks a
cluster for: where a job runs does not make it stale.
"""

import json
import sys
from pathlib import Path

from resurface.config import dump_settings, validate_config
from resurface.errors import ResurfaceError
from resurface.gpus import DRIVER
from resurface.planning.disk import check_disk
from resurface.registry import ATTACKS, METHODS
from resurface.reproducibility import jobs
from resurface.reproducibility.fingerprint import fingerprint
from resurface.reproducibility.jobs import (
    ANSWERS,
    ATTACKED,
    COSTS,
    DATA,
    EVIDENCE,
    MODELS,
    PERPLEXITIES,
    PERPLEXITY,
    PREFERENCES,
    PUBLIC,
    QUESTIONS,
    REFUSALS,
    REPORT,
    SCORES,
    SUMMARY,
    TAUGHT,
    TESTBED,
    UNLEARNED,
    VERDICTS,
    WORST_CASE,
    attacked_models,
    domain_tasks,
    job_settings,
    job_source,
    model_source,
    prompt_attacks,
    public_domains,
    reference_models,
    shown_domains,
    shown_folders,
    task_table,
    tokenizer_source,
)
from resurface.settings.sources import PUBLIC_DOMAINS
from resurface.testbed.world import FORGET_DOMAINS

try:
    experiment = validate_config(
        config, ", ".join(map(str, workflow.configfiles)) or "--config"
    )
except ResurfaceError as error:
    raise WorkflowError(str(error)) from None

LOGS = "results/logs"

# GPUs of each job that loads a model; no more than the mention of this resource makes Kubernetes look for one, so with
# `auto` only jobs of a machine with a GPU of its own have it.
HAS_GPU = workflow.local_exec and DRIVER.exists()
IS_ON_GPU = (experiment.device == "auto" and HAS_GPU) or "cuda" in experiment.device
GPUS = experiment.model_gpus if IS_ON_GPU else None

REFERENCES = reference_models(experiment)

# Models that are taken over, not made by unlearning: the references, and published checkpoints.
TAKEN_OVER = [*REFERENCES, *experiment.published]


wildcard_constraints:
    domain="[a-z0-9_]+",
    method="[a-z0-9_]+",
    attack="|".join(ATTACKS),
    part="[a-z0-9_]+",
    model="|".join(["original", "never_learned", *experiment.published]),
    seed=r"\d+",


def refuse_full_disk():
    """Stop before the first job if the results of those that are to run would not fit on the disk."""
    jobs_to_run = workflow.dag.needrun_jobs()
    outputs = {str(path) for job in jobs_to_run for path in job.output}
    try:
        check_disk(experiment, outputs, Path("results"))
    except ResurfaceError as error:
        raise WorkflowError(str(error)) from None


def growing(amount):
    """Memory or minutes for the testbed: a job that was killed for want of them is tried again with more."""
    return lambda wildcards, attempt: amount * attempt


def hashes(folder):
    """The file of content hashes beside a folder: what downstream jobs depend on."""
    return f"{folder}.hashes.json"


def record(output):
    """The provenance record beside what a job's command line names as output."""
    return f"{output}.provenance.json"


def checkpoint(wildcards):
    """The folder of a model: an unlearned one, one of the two references, or a published one, the same for all domains and seeds."""
    if wildcards.method in TAKEN_OVER:
        return MODELS.format(model=wildcards.method)
    return UNLEARNED.format(
        **{key: wildcards[key] for key in ("domain", "method", "seed")}
    )


def list_wildcards(wildcards):
    """All wildcards of a job. The cache between workflows knows jobs by their parameters alone."""
    return list(wildcards)


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


def benchmarks(wildcards):
    """Benchmark → harness tasks: the domain's own questions, then the general ones."""
    return json.dumps(
        {
            wildcards.domain: domain_tasks(wildcards.domain),
            **experiment.benchmarks,
        }
    )


def benchmark_tables(wildcards):
    """The tables that local harness tasks read."""
    return jobs.benchmark_tables(experiment, wildcards.domain)


def reported(pattern, attacks, models=None):
    """All files of a pattern that the experiment needs (`resurface.reproducibility.jobs.reported`)."""
    return jobs.reported(experiment, pattern, attacks, models)
