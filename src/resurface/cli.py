"""The command line: one command per workflow rule (`resurface.commands`).

Commands import what they need when they run, so that starting one costs no more than its own work. Errors that a user
can cause end as one message; everything goes to the job's log file too.
"""

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from resurface.commands import audits, computing, inputs, planning, reporting
from resurface.errors import ResurfaceError
from resurface.gpu_faults import explain_gpu_fault
from resurface.gpus import take_gpus
from resurface.preemption import PREEMPTED, Preempted, describe_end, end_at_once, is_preemption
from resurface.warm_start import prepare_imports

app = typer.Typer(
    help="Does an unlearned language model still hold the knowledge it was made to forget?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for part in (planning, inputs, computing, reporting):
    app.add_typer(part.app)
app.add_typer(audits.app, name="audit")

INTERRUPTED = 128 + signal.SIGINT

log = logging.getLogger("resurface")


class Printable(logging.Formatter):
    """A log without control characters: names and texts of a stranger's file can be in it, and terminals obey those."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with whatever is neither printable nor a line break escaped."""
        return "".join(
            letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
            for letter in super().format(record)
        )


@app.callback()
def prepare(
    log_file: Annotated[Path | None, typer.Option("--log", help="Also write the log to this file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads to compute with.")] = 1,
    model_gpus: Annotated[int, typer.Option(min=1, help="GPUs over which each model's blocks are spread.")] = 1,
) -> None:
    """Set up logging, the number of threads and the GPUs of a job that needs several, before anything heavy is imported."""
    prepare_imports(threads)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # else a full GPU is full of gaps
    if "torch" in sys.modules:  # imported by the server of warm starts, with one thread
        import threadpoolctl
        import torch

        threadpoolctl.threadpool_limits(threads)
        torch.set_num_threads(threads)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w"))
    for handler in handlers:
        handler.setFormatter(Printable("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    log.setLevel(logging.INFO)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    log.info("resurface %s", " ".join(sys.argv[1:]))
    if model_gpus > 1:
        take_gpus(model_gpus)


def main() -> None:
    """Run the command line; faults of a user's making end as one message, others keep their traceback in the log."""
    signal.signal(signal.SIGTERM, end_at_once)
    try:
        status = app(prog_name="resurface", standalone_mode=False)  # an early end is returned, not raised
    except (Preempted, Exception) as error:
        if is_preemption(error):
            log.error(describe_end(error))
            sys.exit(PREEMPTED)
        if isinstance(error, ResurfaceError):
            log.error("error: %s", error)
            sys.exit(1)
        if hasattr(error, "show"):  # a wrong option or argument: Click knows how to say it
            error.show()
            sys.exit(2)
        gpu_fault = explain_gpu_fault(error)
        if gpu_fault:
            log.error("error: %s", gpu_fault)
            sys.exit(1)
        log.error("this is a bug in resurface, please report it:\n%s", traceback.format_exc())
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever called this shall not be thrown out of its own clean-up
    if status == INTERRUPTED:
        log.error("interrupted; the next run goes on from here")
    sys.exit(status)


if __name__ == "__main__":
    main()
