"""What commands have in common: their options, how those that are JSON are read, and how a job is recorded."""

import json
import reprlib
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from resurface.errors import ResurfaceError
from resurface.gpus import claim_gpus

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


def read_settings(settings_class: type[Any], settings: str) -> Any:
    """Settings from a command line's JSON."""
    from pydantic import ValidationError

    from resurface.config import explain_faults

    try:
        return settings_class.model_validate(read_option("--settings", settings, dict[str, Any]))
    except ValidationError as error:
        raise ResurfaceError("\n".join(["--settings:", *explain_faults(error, settings_class)])) from None


def read_option(name: str, text: str, kind: Any) -> Any:
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


def read_identity(text: str, *more: str) -> dict[str, str | int | None]:
    """The value of `--identity`: domain, method and seed, and what a command needs besides."""
    found: dict[str, str | int | None] = read_option("--identity", text, Identity)
    needed = ["domain", "method", "seed", *more]
    missing = [key for key in needed if key not in found]
    if missing:
        raise ResurfaceError(f"--identity: the key {missing[0]!r} is missing; needed are {', '.join(needed)}")
    return found


def find_entry(kind: str, name: str) -> Any:
    """A method's or an attack's entry in the registry."""
    from resurface import registry

    entries = getattr(registry, kind)
    if name not in entries:
        raise ResurfaceError(f"found {name!r}; allowed are {', '.join(entries)}")
    return entries[name]


def recording_job(
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
