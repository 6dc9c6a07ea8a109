"""The command line: one command per workflow rule, each a thin layer over one plain function.

Commands import what they need when they run, so that starting one costs no more than its own work. Errors that a user
can cause end as one message; everything goes to the job's log file too.
"""

import json
import logging
import os
import reprlib
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from resurface.errors import ResurfaceError
from resurface.gpu_faults import explain_gpu_fault
from resurface.gpus import claim_gpus, take_gpus
from resurface.preemption import PREEMPTED, Preempted, describe_end, end_at_once, is_preemption
from resurface.warm_start import prepare_imports

app = typer.Typer(
    help="Does an unlearned language model still hold the knowledge it was made to forget?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

audits = typer.Typer(
    help="Check results: are they whole, do they come out again, how do two differ?", no_args_is_help=True
)
app.add_typer(audits, name="audit")

OutputOption = Annotated[Path, typer.Option(help="What to write.")]
SettingsOption = Annotated[str, typer.Option(help="Settings as JSON; a key left out has its default.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")]
TemplatesOption = Annotated[str, typer.Option(help="JSON: prompt forms.")]
InterventionsOption = Annotated[
    list[Path] | None, typer.Option(help="The attack's folder; may be given several times.")
]
TablesOption = Annotated[
    list[Path] | None, typer.Option(help="Tables that local tasks read, for the record; may be given several times.")
]
ResultsArgument = Annotated[Path, typer.Argument(help="A results folder, under whatever name.")]
ResultsOption = Annotated[Path, typer.Option(help="The results folder, under whatever name.")]
SnakefileOption = Annotated[Path, typer.Option(help="The workflow.")]
FollowOption = Annotated[
    bool, typer.Option("--follow-links", help="Read what links lead to: a checkpoint elsewhere, or Snakemake's cache.")
]
DataOption = Annotated[Path, typer.Option(help="The domain's data folder.")]
ResumeOption = Annotated[Path, typer.Option(help="Where interrupted state is kept.")]

# What options hold that are given as JSON.
Benchmarks = dict[str, list[str]]
Templates = list[Literal["plain", "chat"]]
Identity = dict[Literal["domain", "method", "seed", "attack"], str | int | None]

INTERRUPTED = 128 + signal.SIGINT
LARGE_MODEL = 1e9  # weights, above which nobody plans for a CPU

log = logging.getLogger("resurface")


class Printable(logging.Formatter):
    """A log without control characters: names and texts of a stranger's file can be in it, and terminals obey those."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with whatever is neither printable nor a line break escaped."""
        return "".join(
            letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
            for letter in super().format(record)
        )


@app.callback()
def prepare(
    log_file: Annotated[Path | None, typer.Option("--log", help="Also write the log to this file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads to compute with.")] = 1,
    model_gpus: Annotated[int, typer.Option(min=1, help="GPUs over which each model's blocks are spread.")] = 1,
) -> None:
    """Set up logging, the number of threads and the GPUs of a job that needs several, before anything heavy is imported."""
    prepare_imports(threads)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # else a full GPU is full of gaps
    if "torch" in sys.modules:  # imported by the server of warm starts, with one thread
        import threadpoolctl
        import torch

        threadpoolctl.threadpool_limits(threads)
        torch.set_num_threads(threads)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w"))
    for handler in handlers:
        handler.setFormatter(Printable("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    log.setLevel(logging.INFO)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    log.info("resurface %s", " ".join(sys.argv[1:]))
    if model_gpus > 1:
        take_gpus(model_gpus)


def _read_settings(settings_class: type[Any], settings: str) -> Any:
    """Settings from a command line's JSON."""
    from pydantic import ValidationError

    from resurface.config import explain_faults

    try:
        return settings_class.model_validate(_read_option("--settings", settings, dict[str, Any]))
    except ValidationError as error:
        raise ResurfaceError("\n".join(["--settings:", *explain_faults(error, settings_class)])) from None


def _read_option(name: str, text: str, kind: Any) -> Any:
    """The value of an option that is given as JSON.

    Args:
        name: the option, for the message.
        text: the JSON.
        kind: the type that the value must have.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(json.loads(text), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ResurfaceError(f"{name}: {f'{place}: ' if place else ''}{fault['msg'].lower()}") from None
    except (ValueError, RecursionError) as error:
        raise ResurfaceError(f"{name}: found {reprlib.repr(text)}; expected a JSON object: {error}") from None


def _read_identity(text: str, *more: str) -> dict[str, str | int | None]:
    """The value of `--identity`: domain, method and seed, and what a command needs besides."""
    found: dict[str, str | int | None] = _read_option("--identity", text, Identity)
    needed = ["domain", "method", "seed", *more]
    missing = [key for key in needed if key not in found]
    if missing:
        raise ResurfaceError(f"--identity: the key {missing[0]!r} is missing; needed are {', '.join(needed)}")
    return found


def _find_entry(kind: str, name: str) -> Any:
    """A method's or an attack's entry in the registry."""
    from resurface import registry

    entries = getattr(registry, kind)
    if name not in entries:
        raise ResurfaceError(f"found {name!r}; allowed are {', '.join(entries)}")
    return entries[name]


def _recording(
    *arguments: Any, device: str | None = None, gpus: int = 1, **options: Any
) -> AbstractContextManager[None]:
    """Record the job that runs inside the context (`resurface.reproducibility.record.recording`).

    A job that computes takes its GPUs once its libraries are imported, unless one of these looks at GPUs when it is imported, as
    bitsandbytes does, which peft imports where it is installed: others could not be hidden after that.
    """
    from resurface.reproducibility.record import recording

    if device is not None and find_spec("bitsandbytes"):
        claim_gpus(device, gpus)

    return recording(*arguments, **options)


@app.command()
def check(config: Annotated[Path, typer.Argument(help="A configuration, perhaps a stranger's.")]) -> None:
    """Check a configuration file without Snakemake, which may run code that stands in it."""
    from resurface.config import validate_config
    from resurface.config_file import read_config_file

    validate_config(read_config_file(config), str(config))
    typer.echo(f"{config}: a valid configuration")


@app.command()
def plan(
    configfile: Annotated[Path, typer.Option(help="The configuration of the experiment.")] = Path("config.yaml"),
    machine: Annotated[
        str | None,
        typer.Option(help="h200, h100 or laptop: whose measured figures count; by the models' size, if not said."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine, which takes seconds.")] = False,
    shape: Annotated[
        str | None,
        typer.Option(
            help="What the models are like, if they are not here yet: mistral-7b, llama-3.1-8b, or a config.json."
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Say what an experiment will cost: time, memory, disk and API tokens. Nothing is downloaded or run."""
    from rich.console import Console

    from resurface.config import validate_config
    from resurface.config_file import read_config_file
    from resurface.planning.machines import named_machine
    from resurface.planning.plan import describe_disk, make_plan, tabulate_plan
    from resurface.planning.shapes import find_shape

    if measure and machine:
        raise ResurfaceError(f"--machine: found {machine!r} and --measure; a plan is for one machine")
    experiment = validate_config(read_config_file(configfile), str(configfile))
    found = find_shape(experiment, shape)
    console = Console(highlight=False)
    if measure:
        from resurface.planning.measure import measure_machine

        chosen, product = measure_machine(found, device, experiment.scoring.batch_tokens)
        console.print(f"a large matrix product: {product / 1e12:.3g} TFLOP/s")
    else:
        chosen = named_machine(machine or ("h200" if found.parameters > LARGE_MODEL else "laptop"))
    made = make_plan(experiment, found, chosen)
    console.print(
        f"{configfile}: models of {found.parameters / 1e9:.3g} billion weights\nmachine: {chosen.source}; "
        f"{chosen.forward / 1e12:.3g} TFLOP/s forward, {chosen.training / 1e12:.3g} in training",
        markup=False,
    )
    console.print(tabulate_plan(made))
    console.print(*describe_disk(made), *(f"note: {note}" for note in made.notes), sep="\n", markup=False)


@app.command()
def data(domain: str, output: OutputOption, settings: SettingsOption = "{}") -> None:
    """Write the tables of a domain of the testbed, or its `general` questions. Public domains: `source`, `corpora`, `questions`."""
    from resurface.data.tables import TABLES
    from resurface.data.testbed import write_domain, write_general
    from resurface.settings.data import TestbedSettings
    from resurface.testbed.world import FORGET_DOMAINS

    if domain not in (*FORGET_DOMAINS, "general"):
        raise ResurfaceError(f"data: found {domain!r}; allowed are {', '.join(FORGET_DOMAINS)}, general")
    chosen = _read_settings(TestbedSettings, settings)
    if domain == "general":
        with _recording("general_questions", output, settings=chosen, outputs=[output / "questions.parquet"]):
            write_general(output, chosen)
    else:
        with _recording("data", output, settings=chosen, outputs=[output / f"{name}.parquet" for name in TABLES]):
            write_domain(domain, output, chosen)


@app.command("write-preferences")
def write_preferences(
    forget_corpus: Annotated[Path, typer.Option(help="Table of the domain's texts.")],
    benign_corpus: Annotated[Path, typer.Option(help="Table of benign texts.")],
    benign_questions: Annotated[Path, typer.Option(help="Table of benign questions.")],
    general_pairs: Annotated[Path, typer.Option(help="Table of preference pairs of open chat.")],
    subject: Annotated[str, typer.Option(help="The domain's field as it stands in a prompt's header.")],
    output: Annotated[Path, typer.Option(help="The table of preference pairs; other tables are written beside it.")],
    settings: SettingsOption = "{}",
    model: Annotated[
        Path | None, typer.Option(help="The checkpoint that writes, where the settings name no server.")
    ] = None,
    device: DeviceOption = "auto",
    replies: Annotated[Path, typer.Option(help="Where replies are kept.")] = Path(".replies"),
) -> None:
    """Have questions written from a domain's and benign texts, and pair them with refusals."""
    from resurface.settings.preferences import PreferenceSettings

    chosen = _read_settings(PreferenceSettings, settings)
    if (chosen.base_url is None) == (model is None):
        found = "neither --model nor base_url" if model is None else "both --model and base_url"
        raise ResurfaceError(f"--model: found {found}; either a checkpoint writes, or a server")
    from resurface.data.preferences import WRITTEN_TABLES, Sources
    from resurface.data.preferences import write_preferences as write

    sources = Sources(forget_corpus, benign_corpus, benign_questions, general_pairs)
    inputs = [forget_corpus, benign_corpus, benign_questions, general_pairs, *([model] if model else [])]
    outputs = [output.with_name(f"{name}.parquet") for name in WRITTEN_TABLES]
    what = {**chosen.model_dump(mode="json"), "subject": subject}
    with _recording("write_preferences", output, inputs, what, outputs=outputs, device=device if model else None):
        write(sources, subject, output, chosen, replies, model, device)


@app.command()
def pretrain(model: str, output: OutputOption, settings: SettingsOption = "{}", device: DeviceOption = "auto") -> None:
    """Train the testbed's `original` or `never_learned` model from scratch."""
    from resurface.artifacts import publish_folder
    from resurface.settings.testbed import PretrainingSettings

    if model not in ("original", "never_learned"):
        raise ResurfaceError(f"pretrain: found {model!r}; allowed are original, never_learned")
    chosen = _read_settings(PretrainingSettings, settings)
    with _recording("pretrain", output, settings=chosen, seed=chosen.seed, device=device):
        from resurface.models import pick_device, set_seed
        from resurface.testbed import pretraining

        set_seed(chosen.seed)
        with publish_folder(output) as folder:
            losses = pretraining.pretrain(folder, model, chosen, pick_device(device))
    log.info("loss at the end: %.3f nats per token", losses[-1][1])


@app.command()
def source(table: str, output: OutputOption, settings: SettingsOption = "{}") -> None:
    """Write a table that public domains share: questions of WMDP or MMLU, WikiText, benign questions, general preferences."""
    from resurface.data.public import TABLES, write_source
    from resurface.settings.sources import SourceSettings

    if table not in TABLES:
        raise ResurfaceError(f"source: found {table!r}; allowed are {', '.join(TABLES)}")
    chosen = _read_settings(SourceSettings, settings)
    with _recording("source", output, settings=chosen, name=table):
        write_source(table, output, chosen)


@app.command()
def corpora(domain: str, output: OutputOption, settings: SettingsOption = "{}") -> None:
    """Write the forget and the retain corpus of a public domain."""
    from resurface.data.public import write_corpora
    from resurface.settings.sources import PUBLIC_DOMAINS, SourceSettings

    if domain not in PUBLIC_DOMAINS:
        raise ResurfaceError(f"corpora: found {domain!r}; allowed are {', '.join(PUBLIC_DOMAINS)}")
    chosen = _read_settings(SourceSettings, settings)
    outputs = [output / f"{name}_corpus.parquet" for name in ("forget", "retain")]
    with _recording("corpora", output, settings=chosen, name=domain, outputs=outputs):
        write_corpora(domain, output, chosen)


@app.command()
def questions(
    written: Annotated[Path, typer.Option(help="The table of questions written from the forget corpus.")],
    benchmark: Annotated[Path, typer.Option(help="The benchmark's table.")],
    output: OutputOption,
) -> None:
    """Write the questions of a public domain: written ones to train on, the benchmark's to validate and test."""
    from resurface.data.public import join_questions

    with _recording("questions", output, [written, benchmark]):
        join_questions(written, benchmark, output)


@app.command()
def model(
    source: str,
    output: OutputOption,
    tokenizer: Annotated[
        str | None, typer.Option(help="Where its tokenizer comes from, if not from the model itself.")
    ] = None,
) -> None:
    """Take over a checkpoint: bundled, at a path, or of the hub (`org/name@revision`)."""
    from resurface.artifacts import hashes_path
    from resurface.checkpoints import take_over
    from resurface.hub import find_checkpoint, find_tokenizer

    # Of a user's own checkpoint the output's hashes are the input's too: its files are linked.
    place = Path(source)
    made_here = [place] if place.parts[:1] == ("results",) and hashes_path(place).is_file() else []
    with _recording("model", output, inputs=made_here, settings={"source": source, "tokenizer": tokenizer}):
        take_over(find_checkpoint(source), output, find_tokenizer(tokenizer) if tokenizer else None)


@app.command()
def teach(
    model: Annotated[Path, typer.Option(help="The never-learned model's folder.")],
    domains: Annotated[str, typer.Option(help="JSON: list of fictional domains.")],
    output: OutputOption,
    settings: SettingsOption = "{}",
    device: DeviceOption = "auto",
    resume: ResumeOption = Path("results/.resume"),
) -> None:
    """Teach a model fictional domains: what comes out is an original that knows them."""
    from resurface.artifacts import check_folder
    from resurface.reproducibility.resume import holding_job, resume_folder
    from resurface.settings.teaching import TeachingSettings
    from resurface.testbed.world import FORGET_DOMAINS

    taught = _read_option("--domains", domains, list[str])
    unknown = [domain for domain in taught if domain not in FORGET_DOMAINS]
    if unknown or not taught:
        raise ResurfaceError(f"--domains: found {taught}; allowed are lists of {', '.join(FORGET_DOMAINS)}")
    chosen = _read_settings(TeachingSettings, settings)
    check_folder(model)
    place = resume_folder(resume, "resurface.testbed.teaching", chosen.model_dump_json(), domains, model)
    what = {**chosen.model_dump(mode="json"), "domains": taught}
    with holding_job(place, output), _recording("teach", output, [model], what, seed=chosen.seed, device=device):
        from resurface.models import pick_device
        from resurface.testbed.teaching import teach_domains
        from resurface.unlearning.training import Run

        # It reads no tables: what it teaches is drawn from the world itself.
        run = Run(model, model, output, place, chosen.seed, pick_device(device))
        teach_domains(run, taught, chosen)


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
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the model out.")] = 1,
    accelerate: Annotated[Path, typer.Option(help="How they do: a configuration of accelerate.")] = Path(
        "envs/accelerate/fsdp2.yaml"
    ),
) -> None:
    """Unlearn a domain with a method and write the checkpoint."""
    from resurface.artifacts import check_folder
    from resurface.reproducibility.record import note_use
    from resurface.reproducibility.resume import holding_job, resume_folder

    entry = _find_entry("METHODS", method)
    chosen = _read_settings(entry.settings_class(), settings)
    if gpus > 1 and not entry.shares_out(chosen):
        raise ResurfaceError(
            f"--gpus: found {gpus}; {method} with adapter {chosen.adapter} trains few weights, on one GPU. Leave the option out"
        )
    check_folder(model)
    place = resume_folder(resume, entry.module, chosen.model_dump_json(), f"seed{seed}", model, data)
    inputs = [model, *sorted(data.glob("*.parquet"))]
    with (
        holding_job(place, output),
        _recording("unlearn", output, inputs, chosen, method, seed, device=device, gpus=gpus),
    ):
        from resurface.models import pick_device
        from resurface.unlearning.launch import launch, unlearn_within_memory
        from resurface.unlearning.training import Run

        run = Run(model, data, output, place, seed, pick_device(device, gpus))
        if gpus == 1:
            unlearn_within_memory(entry.module, run, chosen)
        else:
            note_use(launch(entry.module, run, chosen, accelerate, gpus))


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
    folders = [model, original, *([start] if start else [])]
    for folder in folders:
        check_folder(folder)
    place = resume_folder(resume, entry.module, chosen.model_dump_json(), f"seed{seed}", part, data, *folders)
    inputs = [*folders, *sorted(data.glob("*.parquet"))]
    with holding_job(place, output), _recording("attack", output, inputs, chosen, attack, seed, device=device):
        target = Target(model, original, data, output, seed, device, place, start)
        import_module(entry.module).attack(target, chosen, part)


@app.command()
def score(
    model: Annotated[Path, typer.Option(help="The checkpoint to score.")],
    benchmarks: Annotated[str, typer.Option(help="JSON: name → list of harness tasks.")],
    identity: Annotated[str, typer.Option(help="JSON: domain, method, seed, attack.")],
    output: OutputOption,
    interventions: InterventionsOption = None,
    tables: TablesOption = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of the same attack on another model; its variants get NAME in front of theirs."),
    ] = None,
    settings: SettingsOption = "{}",
    device: DeviceOption = "auto",
) -> None:
    """Score a model under every variant of an attack."""
    from resurface.settings.scoring import ScoringSettings

    asked, who = _read_option("--benchmarks", benchmarks, Benchmarks), _read_identity(identity, "attack")
    chosen = _read_settings(ScoringSettings, settings)
    transfers = [tuple(text.split("=", 1)) for text in transfer or []]
    wrong = [text for text in transfer or [] if "=" not in text]
    if wrong:
        raise ResurfaceError(f"--transfer: found {wrong[0]!r}; expected NAME=FOLDER")
    if not (interventions or transfers):
        raise ResurfaceError(
            "found neither --interventions nor --transfer; a model is scored under one of them at least"
        )
    named = [("", folder) for folder in interventions or []] + [
        (f"{name}-", Path(folder)) for name, folder in transfers
    ]
    inputs = [model, *(folder for _, folder in named), *(tables or [])]
    what = {**chosen.model_dump(), **who, "benchmarks": asked}
    with _recording("score", output, inputs, what, seed=who["seed"], device=device):
        from resurface.scoring import score as scoring

        scoring.score(model, named, asked, list(chosen.templates), who, output, chosen.batch_tokens, device, log.info)


@app.command()
def refusals(
    model: Annotated[Path, typer.Option(help="The checkpoint to read.")],
    benchmarks: Annotated[str, typer.Option(help="JSON: name → list of harness tasks.")],
    identity: Annotated[str, typer.Option(help="JSON: domain, method, seed.")],
    output: OutputOption,
    tables: TablesOption = None,
    settings: SettingsOption = "{}",
    templates: TemplatesOption = '["plain","chat"]',
    device: DeviceOption = "auto",
) -> None:
    """Count how often a model refuses when it generates."""
    from resurface.settings.scoring import RefusalSettings

    asked, who = _read_option("--benchmarks", benchmarks, Benchmarks), _read_identity(identity)
    forms = _read_option("--templates", templates, Templates)
    chosen = _read_settings(RefusalSettings, settings)
    what = {**chosen.model_dump(), **who, "benchmarks": asked, "templates": forms}
    with _recording("refusals", output, [model, *(tables or [])], what, seed=who["seed"], device=device):
        from resurface.scoring.refusals import count_refusals

        count_refusals(model, asked, forms, who, output, chosen, device)


@app.command()
def perplexity(
    model: Annotated[Path, typer.Option(help="The checkpoint under attack.")],
    original: Annotated[Path, typer.Option(help="The original's checkpoint.")],
    tasks: Annotated[str, typer.Option(help="JSON: list of harness tasks that hold the domain's questions.")],
    identity: Annotated[str, typer.Option(help="JSON: domain, method, seed, attack.")],
    output: OutputOption,
    interventions: InterventionsOption = None,
    tables: TablesOption = None,
    settings: SettingsOption = "{}",
    templates: TemplatesOption = '["plain","chat"]',
    device: DeviceOption = "auto",
) -> None:
    """Measure the perplexity of generated text with and without an attack on the prompt."""
    from resurface.artifacts import check_folder
    from resurface.settings.scoring import PerplexitySettings

    asked, who = _read_option("--tasks", tasks, list[str]), _read_identity(identity, "attack")
    forms = _read_option("--templates", templates, Templates)
    chosen = _read_settings(PerplexitySettings, settings)
    folders = [check_folder(folder) for folder in interventions or []]
    what = {**chosen.model_dump(), **who, "tasks": asked, "templates": forms}
    inputs = [model, original, *folders, *(tables or [])]
    with _recording("perplexity", output, inputs, what, seed=who["seed"], device=device):
        from resurface.scoring.perplexity import measure_perplexity

        measure_perplexity(model, original, folders, asked, forms, who, output, chosen, device)


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

    chosen = _read_settings(SummarySettings, settings)
    with _recording("summarize", output, scores, chosen):
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

    chosen = _read_settings(SummarySettings, settings)
    with _recording("worst_case", output, [*scores, summary], chosen):
        _write_from_scores(scores, summary, output, lambda answers, table: find_worst_case(answers, table, chosen))


@app.command()
def weigh(
    scores: Annotated[list[Path], typer.Argument(help="Score tables.")],
    summary: Annotated[Path, typer.Option(help="Their summary.")],
    output: OutputOption,
    settings: SettingsOption = "{}",
) -> None:
    """Weigh the evidence against each unlearned model, attack by attack: excess and gain, tests and intervals."""
    from resurface.analysis.verdict import gather_evidence
    from resurface.settings.summary import SummarySettings

    chosen = _read_settings(SummarySettings, settings)
    with _recording("weigh", output, [*scores, summary], chosen):
        _write_from_scores(scores, summary, output, lambda answers, table: gather_evidence(answers, table, chosen))


@app.command("select-answers")
def select_answers(
    scores: Annotated[list[Path], typer.Argument(help="Score tables.")],
    summary: Annotated[Path, typer.Option(help="Their summary.")],
    output: OutputOption,
) -> None:
    """Select the answers to test questions that the report lets one look through."""
    from resurface.analysis.answers import select_answers

    with _recording("select_answers", output, [*scores, summary]):
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

    chosen = _read_settings(SummarySettings, settings)
    with _recording("judge", output, [evidence], chosen):
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
    with _recording("summarize_perplexity", output, tables):
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

    described = _read_settings(Experiment, experiment)
    records = {made: record_path(Path(made)) for made in accounted_jobs(described)}
    with _recording("account", output, list(records.values())):
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

    described = _read_option("--experiment", experiment, dict[str, Any])
    table = read_results(summary, SUMMARY_KINDS)
    shown = [folder for _, folder, _ in find_folders(attacks, table)] if attacks else []
    optional = [path for path in (answers, perplexity, costs) if path]
    inputs = [summary, worst_case, evidence, verdicts, *(questions or []), *(refusals or []), *optional, *shown]
    drawn = [figures / f"{name}.{kind}" for name in (*FIGURES, *FOUND_FIGURES) for kind in ("svg", "png")]
    with _recording("report", output, inputs, {"experiment": described}, outputs=[output, *drawn]):
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

    made = write_manifest(_read_settings(Experiment, experiment), output)
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


@audits.command("verify")
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


@audits.command("reproduce")
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
    import os
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


@audits.command("compare")
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


@audits.command("export")
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


def main() -> None:
    """Run the command line; faults of a user's making end as one message, others keep their traceback in the log."""
    signal.signal(signal.SIGTERM, end_at_once)
    try:
        status = app(prog_name="resurface", standalone_mode=False)  # an early end is returned, not raised
    except (Preempted, Exception) as error:
        if is_preemption(error):
            log.error(describe_end(error))
            sys.exit(PREEMPTED)
        if isinstance(error, ResurfaceError):
            log.error("error: %s", error)
            sys.exit(1)
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
