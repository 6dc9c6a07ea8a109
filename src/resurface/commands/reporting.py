"""From what was measured to the report: tables that summarize, verdicts, costs, the manifest."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from resurface.commands.options import (
    OutputOption,
    SettingsOption,
    read_option,
    read_settings,
    recording_job,
)
from resurface.errors import ResurfaceError

app = typer.Typer()

log = logging.getLogger("resurface")


@app.command()
def summarize(
    scores: Annotated[list[Path], typer.Argument(help="Score tables.")],
    output: OutputOption,
    settings: SettingsOption = "{}",
) -> None:
    """Summarize score tables: accuracy, recovery and excess with intervals."""
    from resurface.analysis.summary import read_scores, summarize
    from resurface.artifacts import write_table
    from resurface.settings.summary import SummarySettings

    chosen = read_settings(SummarySettings, settings)
    with recording_job("summarize", output, scores, chosen):
        write_table(summarize(read_scores(scores), chosen), output)


def _write_from_scores(scores: list[Path], summary: Path, output: Path, make: Callable[[Any, Any], Any]) -> None:
    """Write the table that `make` makes of score tables and their summary; its faults are faults of the summary."""
    from resurface.analysis.summary import read_scores
    from resurface.analysis.tables import SUMMARY_KINDS, read_results
    from resurface.artifacts import write_table

    answers, table = read_scores(scores), read_results(summary, SUMMARY_KINDS)
    try:
        found = make(answers, table)
    except ResurfaceError as error:
        raise ResurfaceError(f"{summary}: {error}") from None
    write_table(found, output)


@app.command("worst-case")
def worst_case(
    scores: Annotated[list[Path], typer.Argument(help="Score tables.")],
    summary: Annotated[Path, typer.Option(help="Their summary.")],
    output: OutputOption,
    settings: SettingsOption = "{}",
) -> None:
    """Find what an adversary who may choose among all attacks gets out of each model."""
    from resurface.analysis.worst_case import find_worst_case
    from resurface.settings.summary import SummarySettings

    chosen = read_settings(SummarySettings, settings)
    with recording_job("worst_case", output, [*scores, summary], chosen):
        _write_from_scores(scores, summary, output, lambda answers, table: find_worst_case(answers, table, chosen))


@app.command()
def weigh(
    scores: Annotated[list[Path], typer.Argument(help="Score tables.")],
    summary: Annotated[Path, typer.Option(help="Their summary.")],
    output: OutputOption,
    settings: SettingsOption = "{}",
) -> None:
    """Weigh the evidence against each unlearned model, attack by attack: excess and gain, tests and intervals."""
    from resurface.analysis.evidence import gather_evidence
    from resurface.settings.summary import SummarySettings

    chosen = read_settings(SummarySettings, settings)
    with recording_job("weigh", output, [*scores, summary], chosen):
        _write_from_scores(scores, summary, output, lambda answers, table: gather_evidence(answers, table, chosen))


@app.command("select-answers")
def select_answers(
    scores: Annotated[list[Path], typer.Argument(help="Score tables.")],
    summary: Annotated[Path, typer.Option(help="Their summary.")],
    output: OutputOption,
) -> None:
    """Select the answers to test questions that the report lets one look through."""
    from resurface.analysis.answers import select_answers

    with recording_job("select_answers", output, [*scores, summary]):
        _write_from_scores(scores, summary, output, select_answers)


@app.command()
def judge(
    evidence: Annotated[Path, typer.Argument(help="The table of evidence.")],
    output: OutputOption,
    settings: SettingsOption = "{}",
) -> None:
    """Judge each unlearned model by the evidence: does the knowledge resurface?"""
    from resurface.analysis.tables import EVIDENCE_KINDS, read_results
    from resurface.analysis.verdict import judge
    from resurface.artifacts import write_table
    from resurface.settings.summary import SummarySettings

    chosen = read_settings(SummarySettings, settings)
    with recording_job("judge", output, [evidence], chosen):
        write_table(judge(read_results(evidence, EVIDENCE_KINDS), chosen), output)


@app.command("summarize-perplexity")
def summarize_perplexity(
    output: OutputOption,
    perplexity: Annotated[list[Path] | None, typer.Argument(help="Perplexity tables; none is an empty table.")] = None,
) -> None:
    """Summarize perplexity tables: the five numbers of each variant."""
    import pandas as pd

    from resurface.analysis.perplexity import summarize_perplexity
    from resurface.analysis.tables import PERPLEXITY_KINDS, read_results
    from resurface.artifacts import write_table

    tables = perplexity or []
    with recording_job("summarize_perplexity", output, tables):
        replies = pd.concat([read_results(path, PERPLEXITY_KINDS) for path in tables]) if tables else None
        write_table(summarize_perplexity(replies), output)


@app.command()
def account(
    output: OutputOption,
    experiment: Annotated[str, typer.Option(help="JSON: the whole configuration.")] = "{}",
) -> None:
    """Tabulate what the jobs of an experiment took, as their records say."""
    from resurface.analysis.costs import tabulate_costs
    from resurface.artifacts import write_table
    from resurface.config import Experiment
    from resurface.reproducibility.jobs import accounted_jobs
    from resurface.reproducibility.record import record_path

    described = read_settings(Experiment, experiment)
    records = {made: record_path(Path(made)) for made in accounted_jobs(described)}
    with recording_job("account", output, list(records.values())):
        write_table(tabulate_costs(records), output)


@app.command()
def report(
    summary: Annotated[Path, typer.Option(help="The summary table.")],
    worst_case: Annotated[Path, typer.Option(help="The table of worst cases.")],
    evidence: Annotated[Path, typer.Option(help="The table of evidence.")],
    verdicts: Annotated[Path, typer.Option(help="The table of verdicts.")],
    output: OutputOption,
    figures: Annotated[Path, typer.Option(help="Folder for the figures.")],
    answers: Annotated[Path | None, typer.Option(help="The table of selected answers.")] = None,
    costs: Annotated[Path | None, typer.Option(help="The table of costs.")] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="Tables of questions that the page may hold as text; may be given several times."),
    ] = None,
    refusals: Annotated[list[Path] | None, typer.Option(help="Refusal tables; may be given several times.")] = None,
    perplexity: Annotated[
        Path | None, typer.Option(help="The summary of perplexities; without, the report has none.")
    ] = None,
    attacks: Annotated[
        Path | None,
        typer.Option(help="The folder of all attacks: loss curves, prefixes, what was pruned and rewritten."),
    ] = None,
    experiment: Annotated[str, typer.Option(help="JSON: the whole configuration.")] = "{}",
) -> None:
    """Write the report and its figures."""
    import pandas as pd

    from resurface.analysis.answers import question_texts
    from resurface.analysis.figures import FIGURES, FOUND_FIGURES, write_figures
    from resurface.analysis.findings import find_folders, read_findings
    from resurface.analysis.report import Tables, write_report
    from resurface.analysis.tables import (
        ANSWER_KINDS,
        COST_KINDS,
        EVIDENCE_KINDS,
        PERPLEXITY_SUMMARY_KINDS,
        REFUSAL_KINDS,
        SUMMARY_KINDS,
        VERDICT_KINDS,
        WORST_CASE_KINDS,
        read_results,
    )
    from resurface.artifacts import hash_file
    from resurface.data.tables import read_question_table

    described = read_option("--experiment", experiment, dict[str, Any])
    table = read_results(summary, SUMMARY_KINDS)
    shown = [folder for _, folder, _ in find_folders(attacks, table)] if attacks else []
    optional = [path for path in (answers, perplexity, costs) if path]
    inputs = [summary, worst_case, evidence, verdicts, *(questions or []), *(refusals or []), *optional, *shown]
    drawn = [figures / f"{name}.{kind}" for name in (*FIGURES, *FOUND_FIGURES) for kind in ("svg", "png")]
    with recording_job("report", output, inputs, {"experiment": described}, outputs=[output, *drawn]):
        tables = Tables(
            summary=table,
            worst_case=read_results(worst_case, WORST_CASE_KINDS, is_empty_allowed=True),
            evidence=read_results(evidence, EVIDENCE_KINDS),
            verdicts=read_results(verdicts, VERDICT_KINDS),
            refusals=pd.concat([read_results(path, REFUSAL_KINDS) for path in refusals]) if refusals else None,
            perplexity=read_results(perplexity, PERPLEXITY_SUMMARY_KINDS, is_empty_allowed=True)
            if perplexity
            else None,
            findings=read_findings(attacks, table),
            answers=read_results(answers, ANSWER_KINDS) if answers else None,
            costs=read_results(costs, COST_KINDS) if costs else None,
            hashes={path.as_posix(): hash_file(path) for path in (summary, worst_case, evidence, verdicts, *optional)},
            questions={path.parent.name: question_texts(read_question_table(path)) for path in questions or []},
        )
        write_figures(table, tables.findings, figures)
        write_report(tables, described, output)


@app.command()
def manifest(
    output: OutputOption = Path("results/manifest.json"),
    experiment: Annotated[str, typer.Option(help="JSON: the whole configuration.")] = "{}",
) -> None:
    """Collect the provenance records of all jobs of an experiment."""
    from resurface.config import Experiment
    from resurface.reproducibility.manifest import write_manifest

    made = write_manifest(read_settings(Experiment, experiment), output)
    log.info("%s: %d jobs, %d files, digest %s", output, len(made.records), len(made.files), made.digest)


@app.command()
def show(results: Annotated[Path, typer.Argument(help="The results folder.")] = Path("results")) -> None:
    """Print the verdicts and the main result table."""
    from rich.console import Console

    from resurface.analysis.tables import SUMMARY_KINDS, VERDICT_KINDS, read_results
    from resurface.analysis.terminal import terminal_table, terminal_verdicts

    verdicts = read_results(results / "verdicts.parquet", VERDICT_KINDS)
    summary = read_results(results / "summary.parquet", SUMMARY_KINDS)
    Console().print(terminal_verdicts(verdicts), terminal_table(summary))
