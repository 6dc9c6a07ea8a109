"""Audit worlds: `python -m calibration results/calibration --worlds 20`. One that was stopped goes on where it was."""

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from calibration.audit import SMALL, WHOLE, audit_world, teach_other
from resurface.errors import ResurfaceError


def main() -> None:
    """Audit as many worlds at once as there are cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to work")
    parser.add_argument("--worlds", type=int, default=20, help="how many; each takes half an hour of a core")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="cores to compute on")
    parser.add_argument("--small", action="store_true", help="the bundled models and one attack, to see that it works")
    given = parser.parse_args()
    place, size = given.folder.resolve(), SMALL if given.small else WHOLE
    # A process that forks after torch has computed hangs in its threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.cores, context, torch.set_num_threads, (1,)) as pool:
        try:
            list(pool.map(partial(teach_other, place, size=size), range(size.others)))
            audits = pool.map(partial(audit_world, place, size=size), range(given.worlds))
            for world, verdicts in enumerate(audits):
                shown = verdicts[["method", "holds", "unattacked_accuracy", "verdict"]].round(2).to_string(index=False)
                print(f"world {world}", shown, sep="\n", flush=True)
        except ResurfaceError as error:
            pool.shutdown(cancel_futures=True)
            raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
