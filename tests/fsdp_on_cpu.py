"""One of several processes that share a model out by FSDP2 on CPUs; torch can, accelerate asks for GPUs.

Only the choice of the backend is in the way: everything after it runs as on GPUs.
"""

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from resurface.unlearning.launch import work


def choose_gloo(state: PartialState, *_: object, **__: object) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def choose_cpu(state: PartialState) -> None:
    state.device = torch.device("cpu")


if __name__ == "__main__":
    PartialState._prepare_backend = choose_gloo
    PartialState.set_device = choose_cpu
    torch.distributed.init_process_group("gloo")
    work()
