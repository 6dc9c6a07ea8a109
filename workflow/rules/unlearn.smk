"""Unlearning: one checkpoint per domain, method and seed."""


rule unlearn:
    input:
        tables=domain_tables,
        hashes=hashes(MODELS.format(model="original")),
        model=ancient(MODELS.format(model="original")),
    output:
        folder=directory(UNLEARNED),
        hashes=hashes(UNLEARNED),
    log:
        f"{LOGS}/unlearn/{{domain}}/{{method}}/seed{{seed}}.log",
    wildcard_constraints:
        method="|".join(METHODS),
    resources:
        device=experiment.device,
        gpu=GPUS,
        mem_mb=growing(3000),
        runtime=growing(60),
    params:
        settings=lambda wildcards: dump_settings(
            experiment.settings_of("methods", wildcards.method)
        ),
        source=lambda wildcards: fingerprint(METHODS[wildcards.method].module),
        data="results/data/{domain}",
    shell:
        "resurface --log {log} --threads {threads} unlearn {wildcards.method} --model {input.model} "
        "--data {params.data} --output {output.folder} --settings {params.settings:q} --seed {wildcards.seed} "
        "--device {resources.device}"
