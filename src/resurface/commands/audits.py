"""Checks of a results folder: is it whole, does it come out again, how do two differ?"""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from resurface.commands.options import (
    DeviceOption,
    FollowOption,
    ResultsArgument,
    ResultsOption,
    SnakefileOption,
)
from resurface.errors import ResurfaceError

app = typer.Typer(
    help="Check results: are they whole, do they come out again, how do two differ?", no_args_is_help=True
)

log = logging.getLogger("resurface")


@app.command("verify")
def audit_verify(
    results: ResultsArgument = Path("results"),
    configfile: Annotated[
        Path | None, typer.Option(help="The configuration that the results must come from; else the manifest's own.")
    ] = None,
    digest: Annotated[str | None, typer.Option(help="The digest that the manifest must have.")] = None,
    follow_links: FollowOption = False,
) -> None:
    """Verify a results folder: whole, unchanged, and each file made from those that its record names."""
    from rich.console import Console

    from resurface.config import validate_config
    from resurface.config_file import read_config_file
    from resurface.reproducibility.verify import tabulate_findings, verify

    experiment = validate_config(read_config_file(configfile), str(configfile)) if configfile else None
    found, findings = verify(results, experiment, follow_links)
    if digest is not None and digest != found.digest:
        raise ResurfaceError(f"{results}/manifest.json: its digest is {found.digest}; expected {digest}")
    console = Console(highlight=False)
    if findings:
        console.print(tabulate_findings(findings))
        raise ResurfaceError(f"{results}: {len(findings)} finding(s); digest {found.digest}")
    console.print(
        f"{results}: {len(found.files)} files of {len(found.records)} jobs are whole and unchanged\ndigest {found.digest}",
        markup=False,
    )


@app.command("reproduce")
def audit_reproduce(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Outputs, or folders of them (results/…); none: a sample is drawn.")
    ] = None,
    results: ResultsOption = Path("results"),
    sample: Annotated[int, typer.Option(min=1, help="How many jobs are drawn if no targets are named.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    cores: Annotated[int | None, typer.Option(min=1, help="CPU cores; all that there are, if not said.")] = None,
    snakefile: SnakefileOption = Path("Snakefile"),
    scratch: Annotated[
        Path | None, typer.Option(help="A new folder to work in, which is kept; else a temporary one.")
    ] = None,
    device: DeviceOption = "auto",
    follow_links: FollowOption = False,
) -> None:
    """Run jobs again from their recorded inputs, in a scratch folder, and compare what they write."""
    from contextlib import nullcontext
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from resurface.reproducibility.reproduce import reproduce, tabulate_outcomes

    if scratch is not None and scratch.exists():
        raise ResurfaceError(f"--scratch: {scratch} is there already; name a new folder")
    with TemporaryDirectory(prefix="resurface-") if scratch is None else nullcontext(scratch) as folder:
        outcomes = []
        work, workers = Path(folder), cores or os.cpu_count() or 1
        for outcome in reproduce(results, targets or [], sample, seed, work, snakefile, workers, follow_links, device):
            log.info("%s: %s", outcome.output, outcome.verdict)
            outcomes.append(outcome)
    Console(highlight=False).print(tabulate_outcomes(outcomes))
    failed = [outcome for outcome in outcomes if outcome.verdict in ("differs", "failed")]
    if failed:
        raise ResurfaceError(f"{len(failed)} of {len(outcomes)} jobs did not come out as recorded")


@app.command("compare")
def audit_compare(
    a: Annotated[Path, typer.Argument(help="A results folder.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    output: Annotated[Path | None, typer.Option(help="Also write the whole comparison as parquet.")] = None,
    follow_links: FollowOption = False,
) -> None:
    """Compare two results folders question by question, and say what explains that they differ; 1 if they do."""
    from rich.console import Console

    from resurface.artifacts import write_table
    from resurface.reproducibility.compare import (
        compare_scores,
        describe_comparison,
        explain,
        list_unshared,
        read_verified,
    )

    (manifest_a, scores_a), (manifest_b, scores_b) = (read_verified(folder, follow_links) for folder in (a, b))
    compared = compare_scores(scores_a, scores_b)
    if output is not None:
        write_table(compared, output)
    unshared, reasons = list_unshared(scores_a, scores_b), explain(manifest_a, manifest_b)
    Console(highlight=False).print(*describe_comparison(compared, unshared, reasons), sep="\n")
    if unshared or (compared["largest_gap"] > 0).any():
        sys.exit(1)


@app.command("export")
def audit_export(
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    results: ResultsOption = Path("results"),
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Copy the weights of models too.")] = False,
    sensitive: Annotated[
        bool, typer.Option("--sensitive", help="Of WMDP's domains, copy text, questions and what attacks left too.")
    ] = False,
    snakefile: SnakefileOption = Path("Snakefile"),
    follow_links: FollowOption = False,
) -> None:
    """Export results as a Workflow Run RO-Crate."""
    from resurface.reproducibility.crate import export_crate

    export_crate(results, output, snakefile, checkpoints, sensitive, follow_links)
