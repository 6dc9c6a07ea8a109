"""What the libraries say when a GPU breaks or goes away in the middle of a job, and what to tell a person about it.

After such a fault a process can do nothing more with the GPU, not even save: the next run goes on from what was saved before.
Faults come as several kinds of exceptions, so they are known by their words.
"""

FAULT_WORDS = (
    "CUDA error",
    "CUDA driver error",
    "CUDA out of memory",
    "CUDA-capable device",
    "CUDA GPUs are available",
    "NVIDIA driver on your system",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "CUSOLVER_STATUS_",
    "NCCL error",
    "device-side assert",
    "uncorrectable ECC",
)


def explain_gpu_fault(error: BaseException) -> str | None:
    """What to tell about an exception that a broken or vanished GPU caused, or None if it was another cause."""
    found = str(error)
    if not any(words in found for words in FAULT_WORDS):
        return None
    first = found.strip().splitlines()[0]
    if "out of memory" in found:
        return (
            f"the GPU's memory is too small: {first}. Lower the batch_size or batch_tokens that this job's settings have, or take a "
            "GPU with more memory"
        )
    return (
        f"the GPU failed: {first}. What was saved before is kept: run again, on another GPU if `nvidia-smi` does not show this one "
        "as healthy, and the job goes on from its last saved step. If it fails at the same place on a healthy GPU, it is a bug: "
        "please report it"
    )
