"""The summary table, the figures and the report."""

FIGURES = [
    "main_table",
    "finetuning_curves",
    "finetuning_recovery",
    "lens_by_block",
    "pruning_grid",
    "perturbations",
    "prefixes",
    "search_losses",
    "pruning_sparsity",
    "tradeoff",
]


def shown_folders():
    """The folders of attacks whose search or outcome the report shows; the original is not attacked."""
    return [
        ATTACKED.format(
            domain=domain, method=method, seed=seed, attack=attack, part=part
        )
        for domain in experiment.domains
        for method in (*REFERENCES, *experiment.method_names)
        if method != "original"
        for seed in experiment.seeds
        for attack in experiment.attack_names
        if ATTACKS[attack].is_shown
        for part in experiment.parts_of(attack)
    ]


rule summarize:
    input:
        reported(SCORES, experiment.attack_names),
    output:
        "results/summary.parquet",
    log:
        f"{LOGS}/summarize.log",
    params:
        settings=dump_settings(experiment.summary),
        source=fingerprint("resurface.analysis.summary"),
    shell:
        "resurface --log {log} --threads {threads} summarize {input} --output {output} "
        "--settings {params.settings:q}"


rule worst_case:
    input:
        scores=reported(SCORES, experiment.attack_names),
        summary="results/summary.parquet",
    output:
        "results/worst_case.parquet",
    log:
        f"{LOGS}/worst_case.log",
    params:
        settings=dump_settings(experiment.summary),
        source=fingerprint("resurface.analysis.worst_case"),
    shell:
        "resurface --log {log} --threads {threads} worst-case {input.scores} --summary {input.summary} --output {output} "
        "--settings {params.settings:q}"


rule summarize_perplexity:
    input:
        reported(
            PERPLEXITY,
            [
                name
                for name in experiment.attack_names
                if ATTACKS[name].changes_prompts
            ],
            [
                name
                for name in (*REFERENCES, *experiment.method_names)
                if name != "original"
            ],
        ),
    output:
        "results/perplexity.parquet",
    log:
        f"{LOGS}/summarize_perplexity.log",
    params:
        source=fingerprint("resurface.analysis.perplexity"),
    shell:
        "resurface --log {log} --threads {threads} summarize-perplexity {input} --output {output}"


rule report:
    input:
        summary="results/summary.parquet",
        worst_case="results/worst_case.parquet",
        refusals=reported(REFUSALS, ["none"]),
        perplexity="results/perplexity.parquet",
        attack_hashes=[hashes(folder) for folder in shown_folders()],
        attacks=[ancient(folder) for folder in shown_folders()],
    output:
        report(
            expand("results/figures/{figure}.svg", figure=FIGURES),
            category="Figures",
            caption="../report/figures.rst",
        ),
        expand("results/figures/{figure}.png", figure=FIGURES),
        page=report(
            "results/report.html", category="Report", caption="../report/report.rst"
        ),
    log:
        f"{LOGS}/report.log",
    params:
        refusals=lambda wildcards, input: [
            f"--refusals {path}" for path in input.refusals
        ],
        source=[
            fingerprint("resurface.analysis.report", "analysis/report.html.jinja"),
            fingerprint("resurface.analysis.figures"),
        ],
        attacks=lambda wildcards, input: (
            "--attacks results/attacks" if input.attacks else ""
        ),
        experiment=dump_settings(experiment),
    shell:
        "resurface --log {log} report --summary {input.summary} --worst-case {input.worst_case} {params.refusals} "
        "--perplexity {input.perplexity} {params.attacks} --figures results/figures "
        "--output {output.page} --experiment {params.experiment:q}"
