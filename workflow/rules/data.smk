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
    log:
        f"{LOGS}/data/{{domain}}.log",
    wildcard_constraints:
        domain="|".join(experiment.domains),
    resources:
        mem_mb=growing(1500),
        runtime=growing(10),
    params:
        settings=dump_settings(experiment.data, without=["general_questions"]),
        source=fingerprint("resurface.data.testbed"),
        folder="results/data/{domain}",
    shell:
        "resurface --log {log} data {wildcards.domain} --output {params.folder} --settings {params.settings:q}"


rule general_questions:
    output:
        "results/data/general/questions.parquet",
    log:
        f"{LOGS}/data/general.log",
    resources:
        mem_mb=growing(1500),
        runtime=growing(10),
    params:
        settings=dump_settings(
            experiment.data, without=["articles", "preference_draws"]
        ),
        source=fingerprint("resurface.data.testbed"),
    shell:
        "resurface --log {log} data general --output results/data/general --settings {params.settings:q}"
