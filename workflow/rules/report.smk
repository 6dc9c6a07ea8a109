"""The summary table, the figures and the report."""

FIGURES = [
    "main_table",
    "finetuning_curves",
    "finetuning_recovery",
    "lens_by_block",
    "pruning_grid",
    "perturbations",
    "prefixes",
    "tradeoff",
]


rule summarize:
    input:
        reported(SCORES, experiment.attack_names),
    output:
        "results/summary.parquet",
    log:
        f"{LOGS}/summarize.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
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
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        source=fingerprint("resurface.analysis.worst_case"),
    shell:
        "resurface --log {log} --threads {threads} worst-case {input.scores} --summary {input.summary} --output {output}"


rule report:
    input:
        summary="results/summary.parquet",
        worst_case="results/worst_case.parquet",
        refusals=reported(REFUSALS, ["none"]),
        perplexity=reported(
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
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        refusals=lambda wildcards, input: [
            f"--refusals {path}" for path in input.refusals
        ],
        perplexity=lambda wildcards, input: [
            f"--perplexity {path}" for path in input.perplexity
        ],
        source=[
            fingerprint("resurface.analysis.report", "analysis/report.html.jinja"),
            fingerprint("resurface.analysis.figures"),
        ],
        experiment=dump_settings(experiment),
    shell:
        "resurface --log {log} report --summary {input.summary} --worst-case {input.worst_case} {params.refusals} "
        "{params.perplexity} --figures results/figures "
        "--output {output.page} --experiment {params.experiment:q}"
