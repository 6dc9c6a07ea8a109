"""Preemption: a job that is asked to end (SIGTERM) saves its state at the next step, and says so.

Clusters send SIGTERM some time before they take a node away. What runs in steps puts the end off (`postponing_end`), asks
between its steps whether it came, and then saves and raises `Preempted`. Everything else raises it at once, and what is half
written goes, as after Ctrl-C. Transformers has such a thing too (`enable_jit_checkpoint`), but waits three seconds, and may
save between a gradient and its step, so that a resumed run would not be the same.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PREEMPTED = 128 + signal.SIGTERM
CLEANUP_SECONDS = 20.0
NEXT_RUN = "the next run starts this job again, from its last saved step if there is one"

_raised_at = -CLEANUP_SECONDS


class Preempted(BaseException):
    """The job ends because it was asked to; the message says from where the next run goes on."""


def end_at_once(_signal: int, _frame: FrameType | None) -> None:
    """A handler of SIGTERM for everything that does not run in steps.

    A second SIGTERM must not break off what the first one cleans up. A later one counts again, because Python loses an exception
    that is raised in a finalizer or a callback of a library.

    Raises:
        Preempted: unless it was raised less than `CLEANUP_SECONDS` ago.
    """
    global _raised_at
    now = time.monotonic()
    if now - _raised_at < CLEANUP_SECONDS:
        return
    _raised_at = now
    raise Preempted(NEXT_RUN)


def is_preemption(error: BaseException) -> bool:
    """Whether an error is the end that SIGTERM asked for, or what a library made of it on its way up.

    An import that `Preempted` breaks off can end as `ModuleNotFoundError`, and a compiled module as any error of its own.
    """
    return isinstance(error, Preempted) or time.monotonic() - _raised_at < CLEANUP_SECONDS


def describe_end(error: BaseException) -> str:
    """What to tell of an end that SIGTERM asked for, on one line."""
    return f"ended by SIGTERM; {error if isinstance(error, Preempted) else NEXT_RUN}"


@contextmanager
def postponing_end() -> Iterator[Callable[[], bool]]:
    """Put off the end that SIGTERM asks for inside the context; the value tells whether it was asked for."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main one can set handlers
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
