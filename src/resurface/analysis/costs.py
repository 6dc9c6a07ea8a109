"""What an experiment cost: what the jobs' records say of time, memory and machines, as a table with a row per job.

A record says much more; this is what a reader asks of a stage. The time is the job's own, from its first step to its last, on the machine that
ran it. Starting Python and waiting for a place are not in it. A job that was interrupted counts from where it went on.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resurface.artifacts import read_json
from resurface.errors import ResurfaceError


class Device(BaseModel):
    """Where a job computed, as its record says."""

    model_config = ConfigDict(strict=True)

    name: str
    threads: int = Field(ge=1)


class Spent(BaseModel):
    """What is read of a record."""

    model_config = ConfigDict(strict=True)

    rule: str
    name: str | None
    settings: dict[str, Any]
    versions: dict[str, str]
    device: Device
    wall_seconds: float = Field(ge=0, allow_inf_nan=False)
    peak_memory: int = Field(ge=0)
    peak_device_memory: int = Field(ge=0)


def tabulate_costs(records: dict[str, Path]) -> pd.DataFrame:
    """What each job took.

    Args:
        records: what a job's command line names as output → the job's record.

    Returns:
        a row per job: `output`, `rule`, `name` (the method that it ran, the attack that it ran or scored, or the table or domain that it read; empty where it is about none),
        `wall_seconds`, `peak_memory` and `peak_device_memory` [bytes], `device`, `threads`, and `versions`, of Python and packages, as
        JSON.

    Raises:
        ResurfaceError: a record is missing or broken.
    """
    rows = []
    for output, path in records.items():
        try:
            spent = Spent.model_validate(read_json(path))
        except ValidationError as error:
            raise ResurfaceError(f"{path}: this is no record of a job: {error}") from error
        rows.append(
            {
                "output": output,
                "rule": spent.rule,
                "name": spent.name or spent.settings.get("attack") or "",
                "wall_seconds": spent.wall_seconds,
                "peak_memory": spent.peak_memory,
                "peak_device_memory": spent.peak_device_memory,
                "device": spent.device.name,
                "threads": spent.device.threads,
                "versions": json.dumps(spent.versions, sort_keys=True),
            }
        )
    return pd.DataFrame(rows)


def sum_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """Costs by stage: a row per rule and name, in the order of the jobs.

    Returns:
        `rule`, `name`, `jobs`, `seconds` (of all of them), `longest` [seconds], `peak_memory` and `peak_device_memory` [bytes] of the job
        that took most.
    """
    groups = costs.groupby(["rule", "name"], sort=False)
    return groups.agg(
        jobs=("output", "size"),
        seconds=("wall_seconds", "sum"),
        longest=("wall_seconds", "max"),
        peak_memory=("peak_memory", "max"),
        peak_device_memory=("peak_device_memory", "max"),
    ).reset_index()


def list_versions(costs: pd.DataFrame) -> dict[str, list[str]]:
    """Package → the versions that jobs ran with; more than one where they did not agree."""
    found: dict[str, set[str]] = {}
    for text in costs["versions"].unique():
        for name, version in json.loads(text).items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}
