"""Before anything runs: is the configuration right, and what will it cost?"""

from pathlib import Path
from typing import Annotated

import typer

from resurface.commands.options import (
    DeviceOption,
)
from resurface.errors import ResurfaceError

app = typer.Typer()

LARGE_MODEL = 1e9  # weights, above which nobody plans for a CPU


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
