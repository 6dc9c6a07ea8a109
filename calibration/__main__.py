"""Audit worlds: `python -m calibration results/calibration --worlds 20`. One that was stopped goes on where it was."""

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from calibration.audit import SMALL, WHOLE, audit_world, begin_worker, check_place, teach_other
from resurface.errors import ResurfaceError


def main() -> None:
    """Audit as many worlds at once as there are cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to work")
    parser.add_argument("--worlds", type=int, default=20, help="how many; each takes more than half an hour of a core")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="cores to compute on")
    parser.add_argument("--small", action="store_true", help="the bundled models and one attack, to see that it works")
    given = parser.parse_args()
    place, size = given.folder.resolve(), SMALL if given.small else WHOLE
    others = max(given.worlds, size.innocents + 1)
    try:
        check_place(place, size)
        # A process that forks after torch has computed hangs in its threads.
        context = multiprocessing.get_context("spawn")
        with (
            FileLock(place / ".lock", timeout=0),
            ProcessPoolExecutor(given.cores, context, begin_worker) as pool,
        ):
            list(pool.map(partial(teach_other, place, size=size), range(others)))
            audits = pool.map(partial(audit_world, place, size=size, others=others), range(given.worlds))
            for world, verdicts in enumerate(audits):
                shown = verdicts[["method", "truth", "unattacked_accuracy", "verdict"]].round(2).to_string(index=False)
                print(f"world {world}", shown, sep="\n", flush=True)
    except ResurfaceError as error:
        raise SystemExit(f"error: {error}") from None
    except Timeout:
        raise SystemExit(f"error: {place}: another calibration is at work there") from None


if __name__ == "__main__":
    main()
