"""Preference data of public domains: questions that a language model writes from articles, paired with refusals."""

# Where no server is named, the experiment's own original writes.
WRITER = [] if experiment.preferences.base_url else [MODELS.format(model="original")]


rule write_preferences:
    input:
        forget_corpus=f"{DATA}/forget_corpus.parquet",
        benign_corpus="results/data/sources/wikitext.parquet",
        benign_questions="results/data/sources/benign_questions.parquet",
        general_pairs="results/data/sources/general_pairs.parquet",
        hashes=[hashes(folder) for folder in WRITER],
        model=[ancient(folder) for folder in WRITER],
    output:
        preferences=PREFERENCES,
        tables=[
            f"{DATA}/train_questions.parquet",
            f"{DATA}/retain_questions.parquet",
            f"{DATA}/rejects.parquet",
        ],
        record=record(PREFERENCES),
    log:
        f"{LOGS}/preferences/{{domain}}.log",
    wildcard_constraints:
        domain="|".join(public_domains(experiment)) or "(?!)",
    resources:
        device=experiment.device,
        gpu=GPUS if WRITER else None,
        model_gpus=experiment.model_gpus if WRITER else 1,
        mem_mb=growing(3000),
        runtime=growing(1440),
    params:
        settings=job_settings(experiment, "write_preferences"),
        source=job_source("write_preferences"),
        wildcards=list_wildcards,
        subject=lambda wildcards: PUBLIC_DOMAINS[wildcards.domain],
        writer=" ".join(f"--model {folder}" for folder in WRITER),
    shell:
        "resurface --log {log} --model-gpus {resources.model_gpus} write-preferences "
        "--forget-corpus {input.forget_corpus} --benign-corpus {input.benign_corpus} "
        "--benign-questions {input.benign_questions} --general-pairs {input.general_pairs} --subject {params.subject:q} "
        "--output {output.preferences} --settings {params.settings:q} {params.writer} --device {resources.device}"
