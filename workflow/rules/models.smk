"""The reference models: the original, and the control that never learned the domain."""

from pathlib import Path

from resurface.artifacts import hash_folder
from resurface.checkpoints import BUNDLED


def model_source(wildcards):
    """Where a reference model comes from, as the configuration says."""
    source = getattr(experiment.models, wildcards.model)
    if source == "testbed":
        return f"testbed:{wildcards.model}"
    return f"results/testbed/{wildcards.model}" if source == "pretrain" else source


def model_files(wildcards):
    """The files of a reference model: when one of them changes, everything is made anew.

    Bundled ones are known by content instead, so that a checkout that is moved stays current.
    """
    source = getattr(experiment.models, wildcards.model)
    if source == "testbed":
        return []
    if source == "pretrain":
        return [hashes(model_source(wildcards))]
    return sorted(path for path in Path(source).glob("*") if path.is_file())


def model_content(wildcards):
    """The content hashes of a bundled model."""
    if getattr(experiment.models, wildcards.model) != "testbed":
        return None
    return json.dumps(hash_folder(BUNDLED / wildcards.model))


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
        model=model_source,
        content=model_content,
        source=job_source("model"),
        wildcards=list_wildcards,
    shell:
        "resurface --log {log} model {params.model:q} --output {output.folder}"


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
        gpu=GPUS,
        mem_mb=growing(6000),
        runtime=growing(1440),
    params:
        settings=job_settings(experiment, "pretrain"),
        source=job_source("pretrain"),
        wildcards=list_wildcards,
    shell:
        "resurface --log {log} --threads {threads} pretrain {wildcards.model} --output {output.folder} "
        "--settings {params.settings:q} --device {resources.device}"


rule pretrain_testbed:
    input:
        expand(hashes(TESTBED), model=["original", "never_learned"]),
