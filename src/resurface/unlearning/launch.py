"""Starts a method: in this process, or in several that share a model out over the GPUs of one machine.

Several processes are started by `accelerate launch`, each running this module with the run as one argument (on CPUs, which FSDP
does not know, by torchrun, each with the whole model). Who starts them
holds the locks and records the job; they train, and the first of them writes the checkpoint. The run is the same either way:
the samples of a step are shared out, and its loss is their mean.
"""

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import torch

from resurface.artifacts import read_json_object, remove
from resurface.errors import ResurfaceError
from resurface.preemption import PREEMPTED, Preempted, describe_end, end_at_once, is_preemption, postponing_end
from resurface.settings.training import TrainingSettings
from resurface.unlearning.training import Run, count_processes, share_of

log = logging.getLogger("resurface")


def unlearn_within_memory(module: str, run: Run, settings: TrainingSettings) -> None:
    """Run a method in this process. Where memory runs out, passes are halved, and the run goes on from its last saved step.

    One process among several leaves a note that it had no room (`full_path`), and who started them starts all anew.

    Args:
        module: the method's module.
        run: where it reads and writes.
        settings: its settings.

    Raises:
        torch.OutOfMemoryError: there is no room for a single sample, or for one process among several.
    """
    while not _has_room(module, run, settings):
        settings = halve_passes(settings, 1)
        gc.collect()
        torch.cuda.empty_cache()


def halve_passes(settings: TrainingSettings, processes: int) -> TrainingSettings:
    """The settings with at most half as many samples in a pass, of a number that shares out a process's part of a step evenly."""
    share, size = share_of(settings, processes)
    smaller = next(number for number in range(size // 2, 0, -1) if share % number == 0)
    log.warning("out of memory with %d samples of each kind in a pass; going on with %d", size, smaller)
    return settings.model_copy(update={"device_batch_size": smaller})


def _has_room(module: str, run: Run, settings: TrainingSettings) -> bool:
    """Run; once this is over, no exception keeps the model alive."""
    try:
        import_module(module).unlearn(run, settings)
    except torch.OutOfMemoryError:
        if count_processes() > 1:
            full_path(run).write_text("")
            raise
        if share_of(settings, 1)[1] == 1:
            raise
        return False
    return True


def launch(module: str, run: Run, settings: TrainingSettings, config: Path, processes: int) -> dict[str, object]:
    """Run a method in several processes, with what they say in this one's log.

    Args:
        module: the method's module.
        run: where it reads and writes; of its device only the kind counts.
        settings: its settings.
        config: accelerate's configuration (`envs/accelerate`).
        processes: how many, each with a GPU of its own.

    Returns:
        what they used: `device`, its name, and `peak_device_memory` of one process [bytes].

    Raises:
        Preempted: they were asked to end, and have saved.
        ResurfaceError: the configuration or a GPU is missing, or a process failed, which says why in the log.
    """
    if not config.is_file():
        raise ResurfaceError(f"{config}: no such file; expected a configuration of accelerate, as in envs/accelerate")
    found = torch.cuda.device_count()
    if run.device.type == "cuda" and found < processes:
        raise ResurfaceError(f"training_gpus: found {processes}, but this machine has {found}; take as many at most")
    if run.device.type == "cpu":  # accelerate starts processes on CPUs with MPI only
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    else:
        command = ["accelerate.commands.launch", "--config_file", str(config), "--num_processes", str(processes)]
        command += ["--main_process_port", "0"]
    command = [sys.executable, "-m", *command, "-m", __name__]
    while not _have_room(command, module, run, settings, processes):
        settings = halve_passes(settings, processes)
    used = read_json_object(use_path(run))
    remove(use_path(run))
    return used


def _have_room(command: list[str], module: str, run: Run, settings: TrainingSettings, processes: int) -> bool:
    """Run the processes to their end; False if one had too little memory and passes can be smaller.

    Raises:
        Preempted, ResurfaceError: see `launch`.
    """
    full_path(run).unlink(missing_ok=True)
    command = [*command, describe_run(module, run, settings)]
    twice = "true" if settings.gradient_checkpointing else "false"
    environment = os.environ | {"FSDP_ACTIVATION_CHECKPOINTING": twice, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (
        postponing_end() as is_asked,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        lines = process.stdout
        reader = threading.Thread(target=lambda: log_lines(lines))
        reader.start()
        is_told = False
        try:
            while process.poll() is None:
                if is_asked() and not is_told:
                    is_told = True
                    process.terminate()
                time.sleep(0.2)
        finally:
            process.terminate()
            reader.join()
    if is_told and not run.output.exists():
        raise Preempted("the next run goes on from the last saved step")
    is_full = full_path(run).exists()
    full_path(run).unlink(missing_ok=True)
    can_halve = share_of(settings, processes)[1] > 1
    if process.returncode and not (is_full and can_halve):
        raise ResurfaceError(
            f"one of {processes} processes failed (status {process.returncode}); its error stands above. If memory ran out, set "
            "gradient_checkpointing, or take more GPUs"
        )
    return not process.returncode


def describe_run(module: str, run: Run, settings: TrainingSettings) -> str:
    """What a process is given as its one argument."""
    return json.dumps(
        {
            "module": module,
            "settings": [type(settings).__module__, type(settings).__name__, settings.model_dump()],
            "folders": [str(folder) for folder in (run.model_folder, run.data_folder, run.output, run.resume_folder)],
            "seed": run.seed,
            "device": run.device.type,
        }
    )


def log_lines(lines: Iterable[str]) -> None:
    """Log what a process says, line by line."""
    for line in lines:
        log.info("%s", line.rstrip())


def use_path(run: Run) -> Path:
    """Where the processes of a run leave what they used: beside its state, which goes before."""
    return run.resume_folder.with_name(f"{run.resume_folder.name}.used.json")


def full_path(run: Run) -> Path:
    """Where one of several processes notes that memory ran out."""
    return run.resume_folder.with_name(f"{run.resume_folder.name}.full")


def write_use(run: Run) -> None:
    """Leave what this process used where who started it looks."""
    is_cuda = torch.cuda.is_initialized()
    used = {
        "device": torch.cuda.get_device_name() if is_cuda else None,
        "peak_device_memory": torch.cuda.max_memory_allocated() if is_cuda else 0,
    }
    use_path(run).write_text(json.dumps(used))


def work() -> None:
    """One of several processes."""
    signal.signal(signal.SIGTERM, end_at_once)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    rank = int(os.environ["LOCAL_RANK"])
    if rank == 0:
        log.setLevel(logging.INFO)
    given = json.loads(sys.argv[1])
    module, name, values = given["settings"]
    settings = getattr(import_module(module), name).model_validate(values)
    device = torch.device("cpu") if given["device"] == "cpu" else torch.device("cuda", rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    model, data, output, resume = map(Path, given["folders"])
    run = Run(model, data, output, resume, given["seed"], device)
    try:
        unlearn_within_memory(given["module"], run, settings)
    except (Preempted, Exception) as error:
        if is_preemption(error):
            log.error(describe_end(error))
            sys.exit(PREEMPTED)
        if not isinstance(error, ResurfaceError):
            raise
        log.error("error: %s", error)
        sys.exit(1)
    if rank == 0:
        write_use(run)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work()
