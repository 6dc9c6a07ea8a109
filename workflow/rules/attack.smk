"""Attacks: a folder of interventions per model, attack and part."""


def start_folder(wildcards):
    """What the same attack left on the model that its search starts from, if the configuration names one."""
    settings = experiment.settings_of("attacks", wildcards.attack)
    method = getattr(settings, "start_from", {}).get(wildcards.method)
    return ATTACKED.format(**{**wildcards, "method": method}) if method else []


def start_hashes(wildcards):
    """The content hashes of that folder."""
    return hashes(start_folder(wildcards)) if start_folder(wildcards) else []


def start_option(wildcards):
    """That folder as an option of a command line."""
    return f"--start {start_folder(wildcards)}" if start_folder(wildcards) else ""


rule attack:
    input:
        tables=domain_tables,
        hashes=lambda wildcards: hashes(checkpoint(wildcards)),
        original_hashes=hashes(MODELS.format(model="original")),
        model=lambda wildcards: ancient(checkpoint(wildcards)),
        original=ancient(MODELS.format(model="original")),
        start_hashes=start_hashes,
        start=lambda wildcards: ancient(start_folder(wildcards)),
    output:
        folder=directory(ATTACKED),
        hashes=hashes(ATTACKED),
        record=record(ATTACKED),
    log:
        f"{LOGS}/attack/{{domain}}/{{method}}/seed{{seed}}/{{attack}}-{{part}}.log",
    cache: True
    resources:
        device=experiment.device,
        gpu=GPUS,
        model_gpus=experiment.model_gpus,
        mem_mb=growing(3000),
        runtime=growing(60),
    params:
        settings=lambda wildcards: job_settings(experiment, "attack", wildcards.attack),
        source=lambda wildcards: job_source("attack", wildcards.attack),
        wildcards=list_wildcards,
        data=DATA,
        start=start_option,
    shell:
        "resurface --log {log} --threads {threads} --model-gpus {resources.model_gpus} attack {wildcards.attack} --part {wildcards.part} "
        "--model {input.model} --original {input.original} --data {params.data} {params.start} --output {output.folder} "
        "--settings {params.settings:q} --seed {wildcards.seed} --device {resources.device}"
