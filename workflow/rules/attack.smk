"""Attacks: a folder of interventions per model, attack and part."""


rule attack:
    input:
        tables=domain_tables,
        hashes=lambda wildcards: hashes(checkpoint(wildcards)),
        original_hashes=hashes(MODELS.format(model="original")),
        model=lambda wildcards: ancient(checkpoint(wildcards)),
        original=ancient(MODELS.format(model="original")),
    output:
        folder=directory(ATTACKED),
        hashes=hashes(ATTACKED),
    log:
        f"{LOGS}/attack/{{domain}}/{{method}}/seed{{seed}}/{{attack}}-{{part}}.log",
    resources:
        device=experiment.device,
    params:
        settings=lambda wildcards: dump_settings(
            experiment.settings_of("attacks", wildcards.attack)
        ),
        source=lambda wildcards: fingerprint(ATTACKS[wildcards.attack].module),
        data="results/data/{domain}",
    shell:
        "resurface --log {log} --threads {threads} attack {wildcards.attack} --part {wildcards.part} "
        "--model {input.model} --original {input.original} --data {params.data} --output {output.folder} "
        "--settings {params.settings:q} --seed {wildcards.seed} --device {resources.device}"
