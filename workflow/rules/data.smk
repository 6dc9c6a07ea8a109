"""Tables of the domains and the general questions."""


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
        domain="|".join(experiment.domains),
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
