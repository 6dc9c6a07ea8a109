"""What computes on models: unlearning, attacks, and what is measured under them."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from resurface.commands.options import (
    Benchmarks,
    DataOption,
    DeviceOption,
    InterventionsOption,
    OutputOption,
    ResumeOption,
    SeedOption,
    SettingsOption,
    TablesOption,
    Templates,
    TemplatesOption,
    find_entry,
    read_identity,
    read_option,
    read_settings,
    recording_job,
)
from resurface.errors import ResurfaceError

app = typer.Typer()

log = logging.getLogger("resurface")


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

    entry = find_entry("METHODS", method)
    chosen = read_settings(entry.settings_class(), settings)
    if gpus > 1 and not entry.shares_out(chosen):
        raise ResurfaceError(
            f"--gpus: found {gpus}; {method} with adapter {chosen.adapter} trains few weights, on one GPU. Leave the option out"
        )
    check_folder(model)
    place = resume_folder(resume, entry.module, chosen.model_dump_json(), f"seed{seed}", model, data)
    inputs = [model, *sorted(data.glob("*.parquet"))]
    with (
        holding_job(place, output),
        recording_job("unlearn", output, inputs, chosen, method, seed, device=device, gpus=gpus),
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

    entry = find_entry("ATTACKS", attack)
    chosen = read_settings(entry.settings_class(), settings)
    parts = list(getattr(chosen, entry.parts)) if entry.parts else ["all"]
    if part not in parts:
        raise ResurfaceError(f"--part: found {part!r}; allowed for {attack} with these settings: {', '.join(parts)}")
    folders = [model, original, *([start] if start else [])]
    for folder in folders:
        check_folder(folder)
    place = resume_folder(resume, entry.module, chosen.model_dump_json(), f"seed{seed}", part, data, *folders)
    inputs = [*folders, *sorted(data.glob("*.parquet"))]
    with holding_job(place, output), recording_job("attack", output, inputs, chosen, attack, seed, device=device):
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

    asked, who = read_option("--benchmarks", benchmarks, Benchmarks), read_identity(identity, "attack")
    chosen = read_settings(ScoringSettings, settings)
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
    with recording_job("score", output, inputs, what, seed=who["seed"], device=device):
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

    asked, who = read_option("--benchmarks", benchmarks, Benchmarks), read_identity(identity)
    forms = read_option("--templates", templates, Templates)
    chosen = read_settings(RefusalSettings, settings)
    what = {**chosen.model_dump(), **who, "benchmarks": asked, "templates": forms}
    with recording_job("refusals", output, [model, *(tables or [])], what, seed=who["seed"], device=device):
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

    asked, who = read_option("--tasks", tasks, list[str]), read_identity(identity, "attack")
    forms = read_option("--templates", templates, Templates)
    chosen = read_settings(PerplexitySettings, settings)
    folders = [check_folder(folder) for folder in interventions or []]
    what = {**chosen.model_dump(), **who, "tasks": asked, "templates": forms}
    inputs = [model, original, *folders, *(tables or [])]
    with recording_job("perplexity", output, inputs, what, seed=who["seed"], device=device):
        from resurface.scoring.perplexity import measure_perplexity

        measure_perplexity(model, original, folders, asked, forms, who, output, chosen, device)
