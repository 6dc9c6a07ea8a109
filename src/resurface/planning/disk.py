"""Refuses a run whose results would not fit on the disk, before its first job: a full disk ends days of work in the middle.

It is arithmetic only, on the jobs that Snakemake is about to run; what is there already needs no room. The variable
`RESURFACE_DISK_CHECK=` (set to nothing) in front of `snakemake` goes on regardless.
"""

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from resurface.config import Experiment
from resurface.errors import ResurfaceError
from resurface.planning.rules import job_work
from resurface.planning.shapes import find_shape
from resurface.planning.sizes import Facts
from resurface.reproducibility.jobs import all_jobs
from resurface.reproducibility.record import record_path

VARIABLE = "RESURFACE_DISK_CHECK"

log = logging.getLogger(__name__)


def needed_bytes(experiment: Experiment, outputs: Collection[str]) -> float:
    """Bytes that jobs leave, and that the largest of them keeps while it runs.

    Args:
        experiment: the whole configuration.
        outputs: all files that jobs are about to write, their records among them.

    Raises:
        ResurfaceError: the shape of the models is not known.
    """
    facts = Facts(experiment, find_shape(experiment), is_gpu=False)
    works = [
        job_work(facts, output, rule, name)[0]
        for output, (rule, name) in all_jobs(experiment).items()
        if record_path(Path(output)).as_posix() in outputs
    ]
    return sum(work.disk for work in works) + max((work.state for work in works), default=0)


def check_disk(experiment: Experiment, outputs: Collection[str], results: Path) -> None:
    """Check that there is room for what jobs are about to write.

    Args:
        experiment: the whole configuration.
        outputs: all files that they write.
        results: the folder that they write to, or where it will be.

    Raises:
        ResurfaceError: there is too little.
    """
    if os.environ.get(VARIABLE, "on") == "":
        return
    try:
        needed = needed_bytes(experiment, outputs)
    except ResurfaceError as error:
        log.warning("whether the disk has room for the results was not checked: %s", error)
        return
    free = shutil.disk_usage(next(place for place in (results, *results.absolute().parents) if place.exists())).free
    if needed > free:
        raise ResurfaceError(
            f"{results.absolute()}: the jobs of this run need about {needed / 1e9:,.1f} GB there, and {free / 1e9:,.1f} GB are free. "
            "`resurface plan` shows what takes them. Make room, link `results` to a larger disk, or run a part (fewer methods, "
            f"attacks or seeds). If you know better, put `{VARIABLE}=` in front of `snakemake`"
        )
