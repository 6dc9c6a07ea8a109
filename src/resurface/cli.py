"""The command line: one command per workflow rule, each a thin layer over one plain function.

Commands import what they need when they run, so that starting one costs no more than its own work. Errors that a user
can cause end as one message; everything goes to the job's log file too.
"""

import json
import logging
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from resurface.errors import ResurfaceError
from resurface.gpu_faults import explain_gpu_fault
from resurface.preemption import PREEMPTED, Preempted, end_at_once
from resurface.warm_start import prepare_imports

app = typer.Typer(
    help="Does an unlearned language model still hold the knowledge it was made to forget?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

OutputOption = Annotated[Path, typer.Option(help="What to write.")]
SettingsOption = Annotated[str, typer.Option(help="Settings as JSON; a key left out has its default.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")]
TemplatesOption = Annotated[str, typer.Option(help="JSON: prompt forms.")]
InterventionsOption = Annotated[
    list[Path] | None, typer.Option(help="The attack's folder; may be given several times.")
]
DataOption = Annotated[Path, typer.Option(help="The domain's data folder.")]
ResumeOption = Annotated[Path, typer.Option(help="Where interrupted state is kept.")]

INTERRUPTED = 128 + signal.SIGINT

log = logging.getLogger("resurface")


@app.callback()
def prepare(
    log_file: Annotated[Path | None, typer.Option("--log", help="Also write the log to this file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads to compute with.")] = 1,
) -> None:
    """Set up logging and the number of threads, before anything heavy is imported."""
    prepare_imports(threads)
    if "torch" in sys.modules:  # imported by the server of warm starts, with one thread
        import threadpoolctl
        import torch

        threadpoolctl.threadpool_limits(threads)
        torch.set_num_threads(threads)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w"))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
    log.setLevel(logging.INFO)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    log.info("resurface %s", " ".join(sys.argv[1:]))


def _read_settings(settings_class: type[Any], settings: str) -> Any:
    """Settings from a command line's JSON."""
    from pydantic import ValidationError

    from resurface.config import explain_faults

    try:
        return settings_class.model_validate(json.loads(settings))
    except ValidationError as error:
        raise ResurfaceError("\n".join(["--settings:", *explain_faults(error, settings_class)])) from None
    except ValueError as error:
        raise ResurfaceError(f"--settings: found {settings!r}; expected a JSON object: {error}") from None


def _find_entry(kind: str, name: str) -> Any:
    """A method's or an attack's entry in the registry."""
    from resurface import registry

    entries = getattr(registry, kind)
    if name not in entries:
        raise ResurfaceError(f"found {name!r}; allowed are {', '.join(entries)}")
    return entries[name]


@app.command()
def data(domain: str, output: OutputOption, settings: SettingsOption = "{}") -> None:
    """Write the tables of a domain of the testbed, or its `general` questions."""
    from resurface.data.testbed import write_domain, write_general
    from resurface.settings.data import TestbedSettings
    from resurface.testbed.world import FORGET_DOMAINS

    if domain not in (*FORGET_DOMAINS, "general"):
        raise ResurfaceError(f"data: found {domain!r}; allowed are {', '.join(FORGET_DOMAINS)}, general")
    chosen = _read_settings(TestbedSettings, settings)
    if domain == "general":
        write_general(output, chosen)
    else:
        write_domain(domain, output, chosen)


@app.command()
def pretrain(model: str, output: OutputOption, settings: SettingsOption = "{}", device: DeviceOption = "auto") -> None:
    """Train the testbed's `original` or `never_learned` model from scratch."""
    from resurface.artifacts import publish_folder
    from resurface.models import pick_device, set_seed
    from resurface.settings.testbed import PretrainingSettings
    from resurface.testbed import pretraining

    if model not in ("original", "never_learned"):
        raise ResurfaceError(f"pretrain: found {model!r}; allowed are original, never_learned")
    chosen = _read_settings(PretrainingSettings, settings)
    set_seed(chosen.seed)
    with publish_folder(output) as folder:
        losses = pretraining.pretrain(folder, model, chosen, pick_device(device))
    log.info("loss at the end: %.3f nats per token", losses[-1][1])


@app.command()
def model(source: Path, output: OutputOption) -> None:
    """Take over a checkpoint as one of the experiment's reference models."""
    from resurface.checkpoints import take_over

    take_over(source, output)


@app.command()
def unlearn(
    method: str,
    model: Annotated[Path, typer.Option(help="The original's checkpoint folder.")],
    data: DataOption,
    output: OutputOption,
    settings: SettingsOption = "{}",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    resume: ResumeOption = Path("results/.resume"),
) -> None:
    """Unlearn a domain with a method and write the checkpoint."""
    from importlib import import_module

    from resurface.artifacts import check_folder
    from resurface.reproducibility.resume import holding_job, resume_folder

    entry = _find_entry("METHODS", method)
    chosen = _read_settings(entry.settings_class(), settings)
    check_folder(model)
    place = resume_folder(resume, entry.module, chosen.model_dump_json(), f"seed{seed}", model, data)
    with holding_job(place, output):
        from resurface.models import pick_device
        from resurface.unlearning.training import Run

        run = Run(model, data, output, place, seed, pick_device(device))
        import_module(entry.module).unlearn(run, chosen)


@app.command()
def attack(
    attack: str,
    model: Annotated[Path, typer.Option(help="The checkpoint under attack.")],
    original: Annotated[Path, typer.Option(help="The original's checkpoint.")],
    data: DataOption,
    output: OutputOption,
    settings: SettingsOption = "{}",
    part: Annotated[str, typer.Option(help="Which of the attack's jobs, `all` for an attack that is one job.")] = "all",
    start: Annotated[
        Path | None, typer.Option(help="The same attack's folder on another model, for a search that starts from it.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    resume: ResumeOption = Path("results/.resume"),
) -> None:
    """Attack a model and write the interventions, one per variant."""
    from importlib import import_module

    from resurface.artifacts import check_folder
    from resurface.attacks.target import Target
    from resurface.reproducibility.resume import holding_job, resume_folder

    entry = _find_entry("ATTACKS", attack)
    chosen = _read_settings(entry.settings_class(), settings)
    parts = list(getattr(chosen, entry.parts)) if entry.parts else ["all"]
    if part not in parts:
        raise ResurfaceError(f"--part: found {part!r}; allowed for {attack} with these settings: {', '.join(parts)}")
    for folder in filter(None, (model, original, start)):
        check_folder(folder)
    inputs = [model, original, data, *([start] if start else [])]
    place = resume_folder(resume, entry.module, chosen.model_dump_json(), f"seed{seed}", part, *inputs)
    with holding_job(place, output):
        target = Target(model, original, data, output, seed, device, place, start)
        import_module(entry.module).attack(target, chosen, part)


@app.command()
def score(
    model: Annotated[Path, typer.Option(help="The checkpoint to score.")],
    benchmarks: Annotated[str, typer.Option(help="JSON: name → list of harness tasks.")],
    identity: Annotated[str, typer.Option(help="JSON: domain, method, seed, attack.")],
    output: OutputOption,
    interventions: InterventionsOption = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of the same attack on another model; its variants get NAME in front of theirs."),
    ] = None,
    settings: SettingsOption = "{}",
    device: DeviceOption = "auto",
) -> None:
    """Score a model under every variant of an attack."""
    from resurface.scoring import score as scoring
    from resurface.settings.scoring import ScoringSettings

    chosen = _read_settings(ScoringSettings, settings)
    transfers = [tuple(text.split("=", 1)) for text in transfer or []]
    wrong = [text for text in transfer or [] if "=" not in text]
    if wrong:
        raise ResurfaceError(f"--transfer: found {wrong[0]!r}; expected NAME=FOLDER")
    if not (interventions or transfers):
        raise ResurfaceError(
            "found neither --interventions nor --transfer; a model is scored under one of them at least"
        )
    scoring.score(
        model,
        [("", folder) for folder in interventions or []] + [(f"{name}-", Path(folder)) for name, folder in transfers],
        json.loads(benchmarks),
        list(chosen.templates),
        json.loads(identity),
        output,
        chosen.batch_tokens,
        device,
        log.info,
    )


@app.command()
def refusals(
    model: Annotated[Path, typer.Option(help="The checkpoint to read.")],
    benchmarks: Annotated[str, typer.Option(help="JSON: name → list of harness tasks.")],
    identity: Annotated[str, typer.Option(help="JSON: domain, method, seed.")],
    output: OutputOption,
    settings: SettingsOption = "{}",
    templates: TemplatesOption = '["plain","chat"]',
    device: DeviceOption = "auto",
) -> None:
    """Count how often a model refuses when it generates."""
    from resurface.scoring.refusals import count_refusals
    from resurface.settings.scoring import RefusalSettings

    chosen = _read_settings(RefusalSettings, settings)
    count_refusals(model, json.loads(benchmarks), json.loads(templates), json.loads(identity), output, chosen, device)


@app.command()
def perplexity(
    model: Annotated[Path, typer.Option(help="The checkpoint under attack.")],
    original: Annotated[Path, typer.Option(help="The original's checkpoint.")],
    tasks: Annotated[str, typer.Option(help="JSON: list of harness tasks that hold the domain's questions.")],
    identity: Annotated[str, typer.Option(help="JSON: domain, method, seed, attack.")],
    output: OutputOption,
    interventions: InterventionsOption = None,
    settings: SettingsOption = "{}",
    templates: TemplatesOption = '["plain","chat"]',
    device: DeviceOption = "auto",
) -> None:
    """Measure the perplexity of generated text with and without an attack on the prompt."""
    from resurface.artifacts import check_folder
    from resurface.scoring.perplexity import measure_perplexity
    from resurface.settings.scoring import PerplexitySettings

    measure_perplexity(
        model,
        original,
        [check_folder(folder) for folder in interventions or []],
        json.loads(tasks),
        json.loads(templates),
        json.loads(identity),
        output,
        _read_settings(PerplexitySettings, settings),
        device,
    )


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

    write_table(summarize(read_scores(scores), _read_settings(SummarySettings, settings)), output)


@app.command("worst-case")
def worst_case(
    scores: Annotated[list[Path], typer.Argument(help="Score tables.")],
    summary: Annotated[Path, typer.Option(help="Their summary.")],
    output: OutputOption,
) -> None:
    """Find what an adversary who may choose among all attacks gets out of each model."""
    from resurface.analysis.summary import SUMMARY_COLUMNS, read_scores
    from resurface.analysis.worst_case import find_worst_case
    from resurface.artifacts import read_table, write_table

    write_table(find_worst_case(read_scores(scores), read_table(summary, SUMMARY_COLUMNS)), output)


@app.command()
def report(
    summary: Annotated[Path, typer.Option(help="The summary table.")],
    worst_case: Annotated[Path, typer.Option(help="The table of worst cases.")],
    output: OutputOption,
    figures: Annotated[Path, typer.Option(help="Folder for the figures.")],
    refusals: Annotated[list[Path] | None, typer.Option(help="Refusal tables; may be given several times.")] = None,
    perplexity: Annotated[
        list[Path] | None, typer.Option(help="Perplexity tables; may be given several times.")
    ] = None,
    experiment: Annotated[str, typer.Option(help="JSON: the whole configuration.")] = "{}",
) -> None:
    """Write the report and its figures."""
    import pandas as pd

    from resurface.analysis.figures import write_figures
    from resurface.analysis.report import write_report
    from resurface.analysis.summary import SUMMARY_COLUMNS
    from resurface.analysis.worst_case import WORST_CASE_COLUMNS
    from resurface.artifacts import read_table
    from resurface.scoring.columns import PERPLEXITY_COLUMNS, REFUSAL_COLUMNS

    table = read_table(summary, SUMMARY_COLUMNS)
    worst = read_table(worst_case, WORST_CASE_COLUMNS, is_empty_allowed=True)
    refused = pd.concat([read_table(path, REFUSAL_COLUMNS) for path in refusals]) if refusals else None
    read = pd.concat([read_table(path, PERPLEXITY_COLUMNS) for path in perplexity]) if perplexity else None
    write_figures(table, figures)
    write_report(table, worst, refused, read, json.loads(experiment), output)


@app.command()
def show(summary: Annotated[Path, typer.Argument()] = Path("results/summary.parquet")) -> None:
    """Print the main result table."""
    from rich.console import Console

    from resurface.analysis.summary import SUMMARY_COLUMNS
    from resurface.analysis.terminal import terminal_table
    from resurface.artifacts import read_table

    Console().print(terminal_table(read_table(summary, SUMMARY_COLUMNS)))


def main() -> None:
    """Run the command line; faults of a user's making end as one message, others keep their traceback in the log."""
    signal.signal(signal.SIGTERM, end_at_once)
    try:
        status = app(prog_name="resurface", standalone_mode=False)  # an early end is returned, not raised
    except ResurfaceError as error:
        log.error("error: %s", error)
        sys.exit(1)
    except Preempted as preempted:
        log.error("ended by SIGTERM; %s", preempted)
        sys.exit(PREEMPTED)
    except Exception as error:
        if hasattr(error, "show"):  # a wrong option or argument: Click knows how to say it
            error.show()
            sys.exit(2)
        gpu_fault = explain_gpu_fault(error)
        if gpu_fault:
            log.error("error: %s", gpu_fault)
            sys.exit(1)
        log.error("this is a bug in resurface, please report it:\n%s", traceback.format_exc())
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever called this shall not be thrown out of its own clean-up
    if status == INTERRUPTED:
        log.error("interrupted; the next run goes on from here")
    sys.exit(status)


if __name__ == "__main__":
    main()
