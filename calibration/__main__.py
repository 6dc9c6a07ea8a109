"""Audit worlds: `python -m calibration worlds --worlds 20`. One that was stopped goes on where it was."""

import argparse
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from calibration.audit import (
    SMALL,
    WHOLE,
    audit_world,
    begin_worker,
    check_place,
    kept_evidence,
    models_of_world,
    take_over,
    teach_other,
)
from calibration.count import judge_worlds
from resurface.errors import ResurfaceError


def check_device(name: str) -> str:
    """A device of this machine that processes may share: those that pick a free GPU each would wait for one another."""
    if not re.fullmatch(r"cpu|cuda:\d+", name):
        raise argparse.ArgumentTypeError(f"found {name!r}; allowed are cpu and cuda:<number>")
    count = torch.cuda.device_count()
    if name != "cpu" and int(name.removeprefix("cuda:")) >= count:
        raise argparse.ArgumentTypeError(f"found {name!r}; this machine has {count} GPUs, counted from cuda:0")
    return name


def main() -> None:
    """Audit as many worlds at once as there are cores; with more cores than worlds, each world's workflow gets several."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to work")
    parser.add_argument("--worlds", type=int, default=20, help="how many; each takes more than half an hour of a core")
    parser.add_argument("--most", type=int, help="how many of them to audit now; without, all")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="how many at once, each on a core")
    parser.add_argument(
        "--device",
        nargs="+",
        default=["cpu"],
        type=check_device,
        help="cpu, or GPUs of one kind that worlds share in turn, such as cuda:0 cuda:1",
    )
    parser.add_argument(
        "--finished",
        type=Path,
        help="a table that calibration.count wrote (calibration-evidence.parquet), whose worlds are done",
    )
    parser.add_argument("--small", action="store_true", help="the bundled models and one attack, to see that it works")
    given = parser.parse_args()
    place, size = given.folder.resolve(), SMALL if given.small else WHOLE
    devices = given.device
    shared = {"place": place, "size": size, "device": devices[0]}
    try:
        place.mkdir(parents=True, exist_ok=True)
        # A process that forks after torch has computed hangs in its threads.
        context = multiprocessing.get_context("spawn")
        with (
            FileLock(place / ".lock", timeout=0),
            # A process sees one GPU all its life, so each does one thing.
            ProcessPoolExecutor(given.cores, context, begin_worker, max_tasks_per_child=1) as pool,
        ):
            check_place(**shared)
            if given.finished:
                take_over(table=given.finished, **shared)
            missing = [world for world in range(given.worlds) if not kept_evidence(place, world).is_file()][
                : given.most
            ]
            needed = sorted({number for world in missing for number in models_of_world(world, size)})
            list(pool.map(partial(teach_other, place, size), needed, cycle(devices)))
            audit = partial(audit_world, place, size, max(1, given.cores // max(1, len(missing))))
            for world, evidence in zip(missing, pool.map(audit, missing, cycle(devices)), strict=True):
                verdicts = judge_worlds(evidence)
                shown = verdicts[["method", "truth", "unattacked_accuracy", "verdict"]].round(2).to_string(index=False)
                print(f"world {world}", shown, sep="\n", flush=True)
    except ResurfaceError as error:
        raise SystemExit(f"error: {error}") from None
    except Timeout:
        raise SystemExit(f"error: {place}: another calibration is at work there") from None


if __name__ == "__main__":
    main()
