"""A GPU that breaks in a training: one message, and the state from which the next run goes on.

Words and kinds of the errors are those that torch 2.11 raises; there is no broken GPU to be had for a test.
"""

import subprocess
import sys

import pytest
from conftest import CHECKPOINTS, DOMAIN

from resurface.gpu_faults import explain_gpu_fault
from resurface.trainer_runs import find_last_checkpoint

FAULTS = [
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: no CUDA-capable device is detected",
    "CUDA error: unspecified launch failure",
    "No CUDA GPUs are available",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
]


@pytest.mark.parametrize("words", FAULTS)
def test_a_fault_of_a_gpu_is_known_by_its_words(words):
    told = explain_gpu_fault(RuntimeError(words))
    assert words.splitlines()[0] in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate 2.00 GiB.", "CUDA error: out of memory\nmore"]
)
def test_too_little_memory_is_told_apart(words):
    assert "Lower the batch_size or batch_tokens" in explain_gpu_fault(RuntimeError(words))


def test_other_errors_are_none_of_it():
    assert explain_gpu_fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")) is None


FAILING = f"""
import torch
from resurface import cli
from resurface.unlearning.rmu import RMUTrainer

compute_loss = RMUTrainer.compute_loss


def fail(trainer, *arguments, **more):
    if trainer.state.global_step == 3:
        raise torch.AcceleratorError({FAULTS[0]!r})
    return compute_loss(trainer, *arguments, **more)


RMUTrainer.compute_loss = fail
cli.main()
"""


def test_a_gpu_that_fails_in_a_training_leaves_its_state(data, tmp_path):
    settings = '{"block": 2, "trained_blocks": [2], "max_steps": 5, "batch_size": 1, "save_steps": 2}'
    arguments = ["unlearn", "rmu", "--model", CHECKPOINTS / "original", "--data", data / "results" / "data" / DOMAIN]
    arguments += ["--output", "model", "--resume", "resume", "--settings", settings]
    run = subprocess.run(
        [sys.executable, "-c", FAILING, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "the GPU failed: CUDA error: device-side assert triggered. What was saved before is kept" in run.stderr
    assert "Traceback" not in run.stderr
    (state,) = (tmp_path / "resume").iterdir()
    assert find_last_checkpoint(state).name == "checkpoint-2"
    assert not (tmp_path / "model").exists()
