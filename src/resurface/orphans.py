"""Orphans: a job whose Snakemake has gone ends too, as if it were preempted.

Whoever kills Snakemake kills none of its jobs. They would compute on beside the same jobs of the next run, for hours. So the
`resurface` command of a local job looks whether the process that started it and the scheduler are still there, and sends
itself SIGTERM once one of them is not: training and searches then save first. On a cluster jobs outlive a scheduler as they
should: there none is named.
"""

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress

from resurface.preemption import CLEANUP_SECONDS

SCHEDULER_VARIABLE = "RESURFACE_SCHEDULER"
LOOK_SECONDS = 0.5


def name_scheduler() -> None:
    """Tell the commands that this process will start that they are its jobs."""
    os.environ[SCHEDULER_VARIABLE] = str(os.getpid())


def end_with_scheduler() -> None:
    """Send this process SIGTERM when its scheduler or the shell between them has gone; without a scheduler do nothing."""
    named = os.environ.get(SCHEDULER_VARIABLE)
    if named:
        threading.Thread(target=_watch, args=(int(named), os.getppid()), daemon=True).start()


def _watch(scheduler: int, parent: int) -> None:
    """Wait until one of two processes has gone, then ask this one to end, again and again, should it not hear."""
    while _is_there(scheduler) and os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(CLEANUP_SECONDS)


def _is_there(process: int) -> bool:
    """Whether a process of this user's with this number runs; one that has ended may keep its number until its parent asks."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    if sys.platform == "linux":
        with suppress(OSError):  # kernels before 5.3 cannot tell
            handle = os.pidfd_open(process)
            has_ended = bool(select.select([handle], [], [], 0)[0])
            os.close(handle)
            return not has_ended
    return True
