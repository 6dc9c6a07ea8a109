"""Machines as a plan sees them: a few figures each, measured or named, from which the time of any job follows."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from resurface.errors import ResurfaceError

NAMED = Path(__file__).parent / "machines.json"


class Machine(BaseModel):
    """What decides how long a job takes: its arithmetic, or the steps that it consists of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="where these figures come from")
    is_gpu: bool = Field(description="whether it computes on a GPU, in bfloat16; else on one CPU core, in float32")
    forward: float = Field(gt=0, description="rate of large forward passes [FLOP/s]")
    training: float = Field(gt=0, description="rate of large forward and backward passes together [FLOP/s]")
    bandwidth: float = Field(
        gt=0, description="rate at which weights are read or written in the device's memory [bytes/s]"
    )
    block_seconds: float = Field(
        gt=0, description="what a block takes at least in one forward pass, however little it computes"
    )
    start_seconds: float = Field(ge=0, description="what a job takes before it computes")
    load: float = Field(gt=0, description="rate at which checkpoints are read and written [bytes/s]")
    memory: float = Field(gt=0, description="the device's memory [bytes]")


def named_machine(name: str) -> Machine:
    """A machine of the data file beside this module.

    Raises:
        ResurfaceError: there is none of this name.
    """
    known = json.loads(NAMED.read_text())
    if name not in known:
        raise ResurfaceError(
            f"--machine: found {name!r}; allowed are {', '.join(known)}, or --measure for this machine"
        )
    return Machine.model_validate(known[name])
