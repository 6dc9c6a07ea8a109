"""The summary table, the figures and the report."""

from resurface.analysis.captions import CAPTIONS, caption_of


rule summarize:
    input:
        reported(SCORES, experiment.attack_names),
    output:
        table=SUMMARY,
        record=record(SUMMARY),
    log:
        f"{LOGS}/summarize.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        settings=job_settings(experiment, "summarize"),
        source=job_source("summarize"),
    shell:
        "resurface --log {log} --threads {threads} summarize {input} --output {output.table} "
        "--settings {params.settings:q}"


rule worst_case:
    input:
        scores=reported(SCORES, experiment.attack_names),
        summary=SUMMARY,
    output:
        table=WORST_CASE,
        record=record(WORST_CASE),
    log:
        f"{LOGS}/worst_case.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        settings=job_settings(experiment, "worst_case"),
        source=job_source("worst_case"),
    shell:
        "resurface --log {log} --threads {threads} worst-case {input.scores} --summary {input.summary} "
        "--output {output.table} --settings {params.settings:q}"


rule weigh:
    input:
        scores=reported(SCORES, experiment.attack_names),
        summary=SUMMARY,
    output:
        table=EVIDENCE,
        record=record(EVIDENCE),
    log:
        f"{LOGS}/weigh.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        settings=job_settings(experiment, "weigh"),
        source=job_source("weigh"),
    shell:
        "resurface --log {log} --threads {threads} weigh {input.scores} --summary {input.summary} "
        "--output {output.table} --settings {params.settings:q}"


rule select_answers:
    input:
        scores=reported(SCORES, experiment.attack_names),
        summary=SUMMARY,
    output:
        table=ANSWERS,
        record=record(ANSWERS),
    log:
        f"{LOGS}/select_answers.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        source=job_source("select_answers"),
    shell:
        "resurface --log {log} --threads {threads} select-answers {input.scores} --summary {input.summary} "
        "--output {output.table}"


rule judge:
    input:
        EVIDENCE,
    output:
        table=VERDICTS,
        record=record(VERDICTS),
    log:
        f"{LOGS}/judge.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        settings=job_settings(experiment, "judge"),
        source=job_source("judge"),
    shell:
        "resurface --log {log} --threads {threads} judge {input} --output {output.table} --settings {params.settings:q}"


rule summarize_perplexity:
    input:
        reported(PERPLEXITY, prompt_attacks(experiment), attacked_models(experiment)),
    output:
        table=PERPLEXITIES,
        record=record(PERPLEXITIES),
    log:
        f"{LOGS}/summarize_perplexity.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        source=job_source("summarize_perplexity"),
    shell:
        "resurface --log {log} --threads {threads} summarize-perplexity {input} --output {output.table}"


rule account:
    input:
        [record(output) for output in jobs.accounted_jobs(experiment)],
    output:
        table=COSTS,
        record=record(COSTS),
    log:
        f"{LOGS}/account.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        source=job_source("account"),
        experiment=dump_settings(experiment, without=["device"]),
    shell:
        "resurface --log {log} account --output {output.table} --experiment {params.experiment:q}"


rule report:
    input:
        summary=SUMMARY,
        worst_case=WORST_CASE,
        evidence=EVIDENCE,
        verdicts=VERDICTS,
        answers=ANSWERS,
        costs=COSTS,
        questions=[
            QUESTIONS.format(domain=domain) for domain in shown_domains(experiment)
        ],
        refusals=reported(REFUSALS, ["none"]),
        perplexity=PERPLEXITIES,
        attack_hashes=[hashes(folder) for folder in shown_folders(experiment)],
        attacks=[ancient(folder) for folder in shown_folders(experiment)],
    output:
        [
            report(
                f"results/figures/{figure}.svg",
                category="Figures",
                caption=f"../report/figures/{figure}.rst",
                labels={"figure": CAPTIONS[figure][0]},
            )
            for figure in CAPTIONS
        ],
        expand("results/figures/{figure}.png", figure=CAPTIONS),
        page=report(REPORT, category="Report", caption="../report/report.rst"),
        record=record(REPORT),
    log:
        f"{LOGS}/report.log",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        refusals=lambda wildcards, input: [
            f"--refusals {path}" for path in input.refusals
        ],
        questions=lambda wildcards, input: [
            f"--questions {path}" for path in input.questions
        ],
        source=job_source("report"),
        attacks=lambda wildcards, input: (
            "--attacks results/attacks" if input.attacks else ""
        ),
        experiment=dump_settings(experiment),
        captions={
            figure: caption_of(figure, bool(experiment.models.never_learned))
            for figure in CAPTIONS
        },
    shell:
        "resurface --log {log} report --summary {input.summary} --worst-case {input.worst_case} "
        "--evidence {input.evidence} --verdicts {input.verdicts} --answers {input.answers} --costs {input.costs} {params.questions} {params.refusals} "
        "--perplexity {input.perplexity} {params.attacks} --figures results/figures "
        "--output {output.page} --experiment {params.experiment:q}"
