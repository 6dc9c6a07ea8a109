"""The models that are not made by unlearning: the original, the control that never learned the domain, published checkpoints."""

import shlex
from pathlib import Path

from resurface.artifacts import hash_folder
from resurface.checkpoints import BUNDLED
from resurface.settings.sources import split_hub_id


def model_files(wildcards):
    """The files of a model that is taken over: when one of them changes, everything is made anew.

    Bundled ones are known by content instead, so that a checkout that is moved stays current, and those of the hub by their
    revision.
    """
    source = model_source(experiment, wildcards.model)
    if source in (TAUGHT, TESTBED.format(model=wildcards.model)):
        return [hashes(source)]
    places = [source, tokenizer_source(experiment, wildcards.model)]
    local = [
        place
        for place in places
        if place and not place.startswith("testbed:") and not split_hub_id(place)
    ]
    return sorted(
        str(path) for place in local for path in Path(place).glob("*") if path.is_file()
    )


def model_content(wildcards):
    """The content hashes of a bundled model."""
    if not model_source(experiment, wildcards.model).startswith("testbed:"):
        return None
    return json.dumps(hash_folder(BUNDLED / wildcards.model))


def tokenizer_option(wildcards):
    """Where the tokenizer comes from, as an option of a command line."""
    source = tokenizer_source(experiment, wildcards.model)
    return f"--tokenizer {shlex.quote(source)}" if source else ""


rule model:
    input:
        model_files,
    output:
        folder=directory(MODELS),
        hashes=hashes(MODELS),
        record=record(MODELS),
    log:
        f"{LOGS}/models/{{model}}.log",
    resources:
        mem_mb=growing(1500),
        runtime=growing(10),
    params:
        model=lambda wildcards: model_source(experiment, wildcards.model),
        content=model_content,
        tokenizer=tokenizer_option,
        source=job_source("model"),
        wildcards=list_wildcards,
    shell:
        "resurface --log {log} model {params.model:q} {params.tokenizer} --output {output.folder}"


rule pretrain:
    output:
        folder=directory(TESTBED),
        hashes=hashes(TESTBED),
        record=record(TESTBED),
    log:
        f"{LOGS}/pretrain/{{model}}.log",
    cache: True
    threads: 64  # Snakemake scales it down to the cores that there are
    resources:
        device=experiment.device,
        gpu=1 if GPUS else None,
        mem_mb=growing(6000),
        runtime=growing(1440),
    params:
        settings=job_settings(experiment, "pretrain"),
        source=job_source("pretrain"),
        wildcards=list_wildcards,
    shell:
        "resurface --log {log} --threads {threads} pretrain {wildcards.model} --output {output.folder} "
        "--settings {params.settings:q} --device {resources.device}"


rule teach:
    input:
        hashes=hashes(MODELS.format(model="never_learned")),
        model=ancient(MODELS.format(model="never_learned")),
    output:
        folder=directory(TAUGHT),
        hashes=hashes(TAUGHT),
        record=record(TAUGHT),
    log:
        f"{LOGS}/teach.log",
    cache: True
    resources:
        device=experiment.device,
        gpu=GPUS,
        model_gpus=experiment.model_gpus,
        mem_mb=growing(6000),
        runtime=growing(240),
    params:
        settings=job_settings(experiment, "teach"),
        source=job_source("teach"),
        domains=json.dumps(experiment.domains),
    shell:
        "resurface --log {log} --threads {threads} --model-gpus {resources.model_gpus} teach --model {input.model} --domains {params.domains:q} "
        "--output {output.folder} --settings {params.settings:q} --device {resources.device}"


rule pretrain_testbed:
    input:
        expand(hashes(TESTBED), model=["original", "never_learned"]),
