"""Unlearning: one checkpoint per domain, method and seed."""


def training_gpus(wildcards):
    """How many GPUs share the model out."""
    return experiment.gpus_of(wildcards.method)


def model_gpus(wildcards):
    """Over how many GPUs its blocks are spread instead."""
    return experiment.model_gpus if training_gpus(wildcards) == 1 else 1


def unlearning_gpus(wildcards):
    """How many GPUs that is."""
    return max(training_gpus(wildcards), model_gpus(wildcards))


rule unlearn:
    input:
        tables=domain_tables,
        hashes=hashes(MODELS.format(model="original")),
        model=ancient(MODELS.format(model="original")),
    output:
        folder=directory(UNLEARNED),
        hashes=hashes(UNLEARNED),
        record=record(UNLEARNED),
    log:
        f"{LOGS}/unlearn/{{domain}}/{{method}}/seed{{seed}}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    cache: True
    resources:
        device=experiment.device,
        gpu=unlearning_gpus if GPUS else None,
        training_gpus=training_gpus,
        model_gpus=model_gpus,
        mem_mb=growing(3000),
        runtime=growing(60),
    params:
        settings=lambda wildcards: job_settings(experiment, "unlearn", wildcards.method),
        source=lambda wildcards: job_source("unlearn", wildcards.method),
        wildcards=list_wildcards,
        data=DATA,
    shell:
        "resurface --log {log} --threads {threads} --model-gpus {resources.model_gpus} unlearn {wildcards.method} "
        "--model {input.model} --data {params.data} --output {output.folder} --settings {params.settings:q} --seed {wildcards.seed} "
        "--device {resources.device} --gpus {resources.training_gpus}"
