"""Scoring: a score table per model and attack, the refusals of each model without attack, perplexity under attacks on the prompt."""


def attack_folders(wildcards):
    """The folders of an attack's parts; the original is not attacked."""
    if wildcards.method == "original" and wildcards.attack != "none":
        return []
    return [
        ATTACKED.format(part=part, **wildcards)
        for part in experiment.parts_of(wildcards.attack)
    ]


def transfers(wildcards):
    """What the same attack found on other methods' models: name → folders of its parts there."""
    if not experiment.is_transferred(wildcards.attack):
        return {}
    others = experiment.others_of(wildcards.method, wildcards.domain)
    return {
        f"from-{name}-seed{wildcards.seed}": [
            ATTACKED.format(part=part, **{**wildcards, "method": name})
            for part in experiment.parts_of(wildcards.attack)
        ]
        for name in others
    }


def scored_folders(wildcards):
    """All folders of interventions that a model is scored under."""
    return [*attack_folders(wildcards), *sum(transfers(wildcards).values(), [])]


def transfer_options(wildcards):
    """What was found on other models, as options of a command line."""
    return [
        f"--transfer {name}={folder}"
        for name, folders in transfers(wildcards).items()
        for folder in folders
    ]


def intervention_hashes(wildcards):
    """The content hashes of these folders."""
    return [hashes(folder) for folder in attack_folders(wildcards)]


def intervention_options(wildcards):
    """These folders as options of a command line."""
    return [f"--interventions {folder}" for folder in attack_folders(wildcards)]


def identity(wildcards):
    """What a table says of its model, as JSON."""
    return json.dumps(
        jobs.identify(
            wildcards.domain,
            wildcards.method,
            int(wildcards.seed),
            wildcards.get("attack"),
        )
    )


def table_options(wildcards, input):
    """The tables that local tasks read, as options of a command line."""
    return [f"--tables {path}" for path in input.tables]


rule score:
    input:
        tables=benchmark_tables,
        hashes=lambda wildcards: hashes(checkpoint(wildcards)),
        model=lambda wildcards: ancient(checkpoint(wildcards)),
        intervention_hashes=lambda wildcards: [
            hashes(folder) for folder in scored_folders(wildcards)
        ],
        interventions=lambda wildcards: [
            ancient(folder) for folder in scored_folders(wildcards)
        ],
    output:
        table=SCORES,
        record=record(SCORES),
    log:
        f"{LOGS}/score/{{domain}}/{{method}}/seed{{seed}}/{{attack}}.log",
    cache: True
    resources:
        device=experiment.device,
        gpu=GPUS,
        model_gpus=experiment.model_gpus,
        mem_mb=growing(3000),
        runtime=growing(30),
    params:
        interventions=intervention_options,
        transfers=transfer_options,
        tables=table_options,
        settings=job_settings(experiment, "score"),
        source=job_source("score"),
        wildcards=list_wildcards,
        benchmarks=benchmarks,
        identity=identity,
    shell:
        "resurface --log {log} --threads {threads} --model-gpus {resources.model_gpus} score --model {input.model} {params.interventions} {params.transfers} {params.tables} "
        "--benchmarks {params.benchmarks:q} --identity {params.identity:q} --settings {params.settings:q} "
        "--output {output.table} --device {resources.device}"


rule refusals:
    input:
        tables=benchmark_tables,
        hashes=lambda wildcards: hashes(checkpoint(wildcards)),
        model=lambda wildcards: ancient(checkpoint(wildcards)),
    output:
        table=REFUSALS,
        record=record(REFUSALS),
    log:
        f"{LOGS}/refusals/{{domain}}/{{method}}/seed{{seed}}.log",
    cache: True
    resources:
        device=experiment.device,
        gpu=GPUS,
        model_gpus=experiment.model_gpus,
        mem_mb=growing(3000),
        runtime=growing(30),
    params:
        tables=table_options,
        settings=job_settings(experiment, "refusals"),
        source=job_source("refusals"),
        wildcards=list_wildcards,
        templates=json.dumps(experiment.scoring.templates),
        benchmarks=benchmarks,
        identity=identity,
    shell:
        "resurface --log {log} --threads {threads} --model-gpus {resources.model_gpus} refusals --model {input.model} {params.tables} "
        "--benchmarks {params.benchmarks:q} --identity {params.identity:q} --settings {params.settings:q} "
        "--templates {params.templates:q} --output {output.table} --device {resources.device}"


rule perplexity:
    input:
        tables=benchmark_tables,
        hashes=lambda wildcards: hashes(checkpoint(wildcards)),
        original_hashes=hashes(MODELS.format(model="original")),
        model=lambda wildcards: ancient(checkpoint(wildcards)),
        original=ancient(MODELS.format(model="original")),
        intervention_hashes=intervention_hashes,
        interventions=lambda wildcards: [
            ancient(folder) for folder in attack_folders(wildcards)
        ],
    output:
        table=PERPLEXITY,
        record=record(PERPLEXITY),
    log:
        f"{LOGS}/perplexity/{{domain}}/{{method}}/seed{{seed}}/{{attack}}.log",
    cache: True
    resources:
        device=experiment.device,
        gpu=GPUS,
        model_gpus=experiment.model_gpus,
        mem_mb=growing(3000),
        runtime=growing(30),
    params:
        interventions=intervention_options,
        tables=table_options,
        settings=job_settings(experiment, "perplexity"),
        source=job_source("perplexity"),
        wildcards=list_wildcards,
        templates=json.dumps(experiment.scoring.templates),
        tasks=lambda wildcards: json.dumps(domain_tasks(wildcards.domain)),
        identity=identity,
    shell:
        "resurface --log {log} --threads {threads} --model-gpus {resources.model_gpus} perplexity --model {input.model} --original {input.original} "
        "{params.interventions} {params.tables} --tasks {params.tasks:q} --identity {params.identity:q} "
        "--settings {params.settings:q} --templates {params.templates:q} --output {output.table} "
        "--device {resources.device}"
