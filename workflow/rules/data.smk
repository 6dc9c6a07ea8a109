"""Tables of the domains and the general questions: the testbed's, and those made of public data."""

from pathlib import Path

from resurface.settings.sources import SHARED_TABLES, data_sets, split_hub_id


rule data:
    output:
        expand(
            "results/data/{{domain}}/{table}.parquet",
            table=[
                "forget_corpus",
                "retain_corpus",
                "questions",
                "retain_questions",
                "preferences",
            ],
        ),
        record=record(DATA),
    log:
        f"{LOGS}/data/{{domain}}.log",
    wildcard_constraints:
        domain="|".join(FORGET_DOMAINS),
    resources:
        mem_mb=growing(1500),
        runtime=growing(10),
    params:
        settings=job_settings(experiment, "data"),
        source=job_source("data"),
        folder=DATA,
    shell:
        "resurface --log {log} data {wildcards.domain} --output {params.folder} --settings {params.settings:q}"


rule general_questions:
    output:
        "results/data/general/questions.parquet",
        record=record("results/data/general"),
    log:
        f"{LOGS}/data/general.log",
    resources:
        mem_mb=growing(1500),
        runtime=growing(10),
    params:
        settings=job_settings(experiment, "general_questions"),
        source=job_source("general_questions"),
    shell:
        "resurface --log {log} data general --output results/data/general --settings {params.settings:q}"


def source_files(name):
    """The local files of the data sets that a table is made of; what the hub has under a revision does not change."""
    named = [getattr(experiment.sources, key) for key in data_sets(name)]
    places = [Path(source) for source in named if source and not split_hub_id(source)]
    return sorted(
        str(path)
        for place in places
        for path in ([place] if place.is_file() else place.rglob("*"))
        if path.is_file()
    )


rule source:
    input:
        lambda wildcards: source_files(wildcards.table),
    output:
        table=PUBLIC,
        record=record(PUBLIC),
    log:
        f"{LOGS}/data/sources/{{table}}.log",
    wildcard_constraints:
        table="|".join(SHARED_TABLES),
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        settings=lambda wildcards: job_settings(experiment, "source", wildcards.table),
        source=job_source("source"),
    shell:
        "resurface --log {log} source {wildcards.table} --output {output.table} --settings {params.settings:q}"


rule corpora:
    input:
        lambda wildcards: source_files(wildcards.domain),
    output:
        forget="results/data/{domain}/forget_corpus.parquet",
        retain="results/data/{domain}/retain_corpus.parquet",
        record=record(DATA),
    log:
        f"{LOGS}/data/{{domain}}.log",
    wildcard_constraints:
        domain="|".join(PUBLIC_DOMAINS),
    resources:
        mem_mb=growing(16000),
        runtime=growing(120),
    params:
        settings=lambda wildcards: job_settings(experiment, "corpora", wildcards.domain),
        source=job_source("corpora"),
        folder=DATA,
    shell:
        "resurface --log {log} corpora {wildcards.domain} --output {params.folder} --settings {params.settings:q}"


rule questions:
    input:
        written="results/data/{domain}/train_questions.parquet",
        benchmark=lambda wildcards: task_table(domain_tasks(wildcards.domain)[0]),
    output:
        table=QUESTIONS,
        record=record(QUESTIONS),
    log:
        f"{LOGS}/data/{{domain}}_questions.log",
    wildcard_constraints:
        domain="|".join(PUBLIC_DOMAINS),
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        source=job_source("questions"),
    shell:
        "resurface --log {log} questions --written {input.written} --benchmark {input.benchmark} --output {output.table}"
