"""The plan of an experiment: what its jobs will cost, by rule, method and attack, and the total.

The jobs are those that an audit expects (`resurface.reproducibility.jobs.all_jobs`), so Snakemake need not be asked. Times are
within a factor of about two; bytes of checkpoints and adapters are exact but for tokenizers and headers.
"""

from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Table

from resurface.config import Experiment
from resurface.planning.machines import Machine
from resurface.planning.rules import job_work
from resurface.planning.shapes import Shape
from resurface.planning.sizes import ASSUMED_QUESTIONS, Facts
from resurface.planning.work import GIB, Work, work_seconds
from resurface.reproducibility.jobs import all_jobs

CHECKPOINT_BYTES = 2  # of a weight: a checkpoint in bfloat16
LARGEST_SHARE = 0.1  # of a checkpoint, that the interventions of a variant may take


@dataclass(frozen=True)
class Line:
    """The jobs of one kind.

    Attributes:
        rule: their rule.
        name: the method or the attack, where a rule has several.
        works: what each of them does.
        hours: what all of them take, on a GPU or a CPU core each [hours].
    """

    rule: str
    name: str | None
    works: list[Work]
    hours: float

    @property
    def shown(self) -> str:
        """Rule and name as the reader sees them."""
        return f"{self.rule} {self.name or ''}".strip()

    @property
    def memory(self) -> float:
        """Bytes of the device's memory at the peak of the largest job."""
        return max(work.memory for work in self.works)


@dataclass(frozen=True)
class Plan:
    """What an experiment costs.

    Attributes:
        lines: by rule, method and attack.
        machine: what the times are for.
        shape: of the models.
        notes: what is only assumed, not known, or does not fit.
    """

    lines: list[Line]
    machine: Machine
    shape: Shape
    notes: list[str]

    @property
    def works(self) -> list[Work]:
        """What all jobs do."""
        return [work for line in self.lines for work in line.works]

    @property
    def hours(self) -> float:
        """What all jobs take together [hours]."""
        return sum(line.hours for line in self.lines)

    @property
    def shares(self) -> list[float]:
        """Of each variant that changes weights its part of its job's interventions, as a share of a checkpoint in bfloat16."""
        checkpoint = CHECKPOINT_BYTES * self.shape.parameters
        return [work.interventions / work.changing / checkpoint for work in self.works for _ in range(work.changing)]


def make_plan(experiment: Experiment, shape: Shape, machine: Machine) -> Plan:
    """Plan an experiment on a machine."""
    facts = Facts(experiment, shape, machine.is_gpu)
    grouped: dict[tuple[str, str | None], list[Work]] = {}
    for output, (rule, name) in all_jobs(experiment).items():
        work, shown = job_work(facts, output, rule, name)
        grouped.setdefault((rule, shown), []).append(work)
    lines = [
        Line(
            rule,
            name,
            works,
            sum(work_seconds(work, shape, machine) * work.gpus * work.spread for work in works) / 3600,
        )
        for (rule, name), works in grouped.items()
    ]
    return Plan(lines, machine, shape, _list_notes(facts, lines, machine))


def _list_notes(facts: Facts, lines: list[Line], machine: Machine) -> list[str]:
    """What is only assumed, not known, or does not fit."""
    notes = [
        f"the size of the benchmark {task} is not known here; {ASSUMED_QUESTIONS:,} questions are assumed"
        for task in facts.assumed_tasks()
    ]
    for line in lines:
        if not all(work.is_known for work in line.works):
            notes.append(
                f"the cost of {line.shown} is not known; only the start of its {len(line.works)} job(s) is counted"
            )
        if line.memory > machine.memory:
            notes.append(
                f"{line.shown} needs about {line.memory / GIB:,.0f} GiB of memory at its peak, the machine has {machine.memory / GIB:,.0f}"
            )
    return notes


def tabulate_plan(plan: Plan) -> Table:
    """The plan as a table for the terminal: a row per rule, method and attack, and the total."""
    device = "GPU" if plan.machine.is_gpu else "CPU"
    table = Table(box=SIMPLE, show_footer=True)
    table.add_column("rule", footer="total", no_wrap=True)
    columns = ["jobs", f"{device} hours", f"{device} GiB at peak", "disk GB", "API tokens"]
    for name, total in zip(columns, _figures(plan.works, plan.hours), strict=True):
        table.add_column(name, footer=total, justify="right")
    for line in plan.lines:
        table.add_row(line.shown, *_figures(line.works, line.hours))
    return table


def _figures(works: list[Work], hours: float) -> list[str]:
    """Jobs, hours, peak memory, disk and tokens of some jobs."""
    memory, disk, tokens = (
        max((work.memory for work in works), default=0),
        sum(work.disk for work in works),
        sum(work.tokens for work in works),
    )
    return [
        f"{len(works):,}",
        show_number(hours),
        show_number(memory / GIB) if memory else "",
        show_number(disk / 1e9),
        f"{tokens:,.0f}" if tokens else "",
    ]


def show_number(value: float) -> str:
    """A number with the digits that a plan is good for."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def describe_disk(plan: Plan) -> list[str]:
    """What takes the disk, and how interventions compare with checkpoints."""
    checkpoints, interventions, downloaded = (
        sum(getattr(work, name) for work in plan.works) / 1e9 for name in ("checkpoint", "interventions", "downloaded")
    )
    state = max(work.state for work in plan.works) / 1e9
    checkpoint = CHECKPOINT_BYTES * plan.shape.parameters / 1e9
    lines = [
        f"checkpoints {show_number(checkpoints)} GB, interventions {show_number(interventions)} GB, and while the largest training "
        f"runs {show_number(state)} GB to go on from"
    ]
    if downloaded:
        lines.append(f"downloads into the cache of the Hugging Face hub: {show_number(downloaded)} GB")
    if plan.shares:
        mean, largest = sum(plan.shares) / len(plan.shares), max(plan.shares)
        lines.append(
            f"a variant that changes weights ({len(plan.shares):,} of them) takes {show_number(100 * mean)} % of a checkpoint in bfloat16 "
            f"({show_number(checkpoint)} GB) on average and {show_number(100 * largest)} % at most; "
            f"{'within' if largest <= LARGEST_SHARE else 'above'} the bound of {100 * LARGEST_SHARE:.0f} %"
        )
    return lines
