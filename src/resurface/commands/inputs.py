"""What experiments start from: data and models."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from resurface.commands.options import (
    DeviceOption,
    OutputOption,
    ResumeOption,
    SettingsOption,
    read_option,
    read_settings,
    recording_job,
)
from resurface.errors import ResurfaceError

app = typer.Typer()

log = logging.getLogger("resurface")


@app.command()
def data(domain: str, output: OutputOption, settings: SettingsOption = "{}") -> None:
    """Write the tables of a domain of the testbed, or its `general` questions. Public domains: `source`, `corpora`, `questions`."""
    from resurface.data.tables import TABLES
    from resurface.data.testbed import write_domain, write_general
    from resurface.settings.data import TestbedSettings
    from resurface.testbed.world import FORGET_DOMAINS

    if domain not in (*FORGET_DOMAINS, "general"):
        raise ResurfaceError(f"data: found {domain!r}; allowed are {', '.join(FORGET_DOMAINS)}, general")
    chosen = read_settings(TestbedSettings, settings)
    if domain == "general":
        with recording_job("general_questions", output, settings=chosen, outputs=[output / "questions.parquet"]):
            write_general(output, chosen)
    else:
        with recording_job("data", output, settings=chosen, outputs=[output / f"{name}.parquet" for name in TABLES]):
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

    chosen = read_settings(PreferenceSettings, settings)
    if (chosen.base_url is None) == (model is None):
        found = "neither --model nor base_url" if model is None else "both --model and base_url"
        raise ResurfaceError(f"--model: found {found}; either a checkpoint writes, or a server")
    from resurface.data.preferences import WRITTEN_TABLES, Sources
    from resurface.data.preferences import write_preferences as write

    sources = Sources(forget_corpus, benign_corpus, benign_questions, general_pairs)
    inputs = [forget_corpus, benign_corpus, benign_questions, general_pairs, *([model] if model else [])]
    outputs = [output.with_name(f"{name}.parquet") for name in WRITTEN_TABLES]
    what = {**chosen.model_dump(mode="json"), "subject": subject}
    with recording_job("write_preferences", output, inputs, what, outputs=outputs, device=device if model else None):
        write(sources, subject, output, chosen, replies, model, device)


@app.command()
def pretrain(model: str, output: OutputOption, settings: SettingsOption = "{}", device: DeviceOption = "auto") -> None:
    """Train the testbed's `original` or `never_learned` model from scratch."""
    from resurface.artifacts import publish_folder
    from resurface.settings.testbed import PretrainingSettings

    if model not in ("original", "never_learned"):
        raise ResurfaceError(f"pretrain: found {model!r}; allowed are original, never_learned")
    chosen = read_settings(PretrainingSettings, settings)
    with recording_job("pretrain", output, settings=chosen, seed=chosen.seed, device=device):
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
    chosen = read_settings(SourceSettings, settings)
    with recording_job("source", output, settings=chosen, name=table):
        write_source(table, output, chosen)


@app.command()
def corpora(domain: str, output: OutputOption, settings: SettingsOption = "{}") -> None:
    """Write the forget and the retain corpus of a public domain."""
    from resurface.data.public import write_corpora
    from resurface.settings.sources import PUBLIC_DOMAINS, SourceSettings

    if domain not in PUBLIC_DOMAINS:
        raise ResurfaceError(f"corpora: found {domain!r}; allowed are {', '.join(PUBLIC_DOMAINS)}")
    chosen = read_settings(SourceSettings, settings)
    outputs = [output / f"{name}_corpus.parquet" for name in ("forget", "retain")]
    with recording_job("corpora", output, settings=chosen, name=domain, outputs=outputs):
        write_corpora(domain, output, chosen)


@app.command()
def questions(
    written: Annotated[Path, typer.Option(help="The table of questions written from the forget corpus.")],
    benchmark: Annotated[Path, typer.Option(help="The benchmark's table.")],
    output: OutputOption,
) -> None:
    """Write the questions of a public domain: written ones to train on, the benchmark's to validate and test."""
    from resurface.data.public import join_questions

    with recording_job("questions", output, [written, benchmark]):
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
    with recording_job("model", output, inputs=made_here, settings={"source": source, "tokenizer": tokenizer}):
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

    taught = read_option("--domains", domains, list[str])
    unknown = [domain for domain in taught if domain not in FORGET_DOMAINS]
    if unknown or not taught:
        raise ResurfaceError(f"--domains: found {taught}; allowed are lists of {', '.join(FORGET_DOMAINS)}")
    chosen = read_settings(TeachingSettings, settings)
    check_folder(model)
    place = resume_folder(resume, "resurface.testbed.teaching", chosen.model_dump_json(), domains, model)
    what = {**chosen.model_dump(mode="json"), "domains": taught}
    with holding_job(place, output), recording_job("teach", output, [model], what, seed=chosen.seed, device=device):
        from resurface.models import pick_device
        from resurface.testbed.teaching import teach_domains
        from resurface.unlearning.training import Run

        # It reads no tables: what it teaches is drawn from the world itself.
        run = Run(model, model, output, place, chosen.seed, pick_device(device))
        teach_domains(run, taught, chosen)
