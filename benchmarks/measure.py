"""What the benchmarks of all stages share: a model of a shape, a clock, and how rows are kept and shown.

A stage is measured in several ways, the plain one that is usually written (`plain`) and the package's own, one row each. The plain
way may do less of the same work, so rows are compared by their seconds per unit (question, sample, step). FLOP are those of the
linear layers of the blocks for the tokens that the *plain* way reads: what is saved by computing nothing twice counts as speed.

Everything lies below `FOLDER/<shape>/`: the checkpoint, what a stage needs beside it, and the stages' tables, so that the small mode leaves a
true run's files alone.
"""

import argparse
import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.shapes import SHAPES, make_checkpoint
from resurface.models import load_model, load_tokenizer, pick_device
from resurface.planning.measure import measure_products
from resurface.planning.shapes import Shape, read_shape
from resurface.reproducibility.record import read_peak_memory

LIBRARIES = ("torch", "transformers", "lm_eval", "trl")


def forget_peak() -> None:
    """Let `read_peak` count from now on. Linux can; elsewhere, or where it is not allowed, it counts from the process's start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> int:
    """The most memory that this process has held, in bytes, since `forget_peak`."""
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found.group(1))
    return read_peak_memory()


@dataclass
class Bench:
    """A stage's benchmark: what it is measured on, and its rows so far.

    Attributes:
        stage: its name.
        folder: checkpoint of random weights; beside it a stage may leave what it needs.
        device: where it is computed.
        shape: sizes of the model.
        is_small: whether it only has to work.
        rows: what was measured.
    """

    stage: str
    folder: Path
    device: torch.device
    shape: Shape
    is_small: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer."""
        return load_model(self.folder, self.device), load_tokenizer(self.folder)

    def choose(self, small: Any, true: Any) -> Any:
        """A size: of the small mode, or the true one."""
        return small if self.is_small else true

    def take_time(
        self,
        way: str,
        unit: str,
        count: int,
        run: Callable[[], Any],
        tokens: float = 0,
        passes: float = 1,
        is_plain: bool = False,
    ) -> Any:
        """Run once, add a row, and return what the run gives.

        Args:
            way: how the stage is written.
            unit: what is counted: question, sample, step, …
            count: how many units the run does.
            run: the work; what it needs once in a process it has done before.
            tokens: tokens that the plain way reads for all units.
            passes: forward passes that one token costs: 1; with the gradient by activations 2, by weights too 3.
            is_plain: whether this is the baseline.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        forget_peak()
        start = time.perf_counter()
        result = run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        row = {
            "stage": self.stage,
            "way": way,
            "unit": unit,
            "count": count,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "flops": 2 * self.shape.block_weights * tokens * passes / seconds,
            "device_gib": torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0,
            "memory_gib": read_peak() / 2**30,
            "is_plain": is_plain,
        }
        self.rows.append(row)
        print(f"{self.stage}: {way}, {count} {unit}s: {seconds:.2f} s", file=sys.stderr)
        return result

    def note(self, **values: Any) -> None:
        """Add values to the latest row, such as how far its results are from the plain way's."""
        self.rows[-1] |= values


def tabulate(bench: Bench) -> pd.DataFrame:
    """The rows, with `speedup`, how many times faster per unit than the plain way of the same unit, and `share` of the device's rate."""
    table = pd.DataFrame(bench.rows)
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    rate, _ = measure_products(bench.device, dtype, 8192 if bench.device.type == "cuda" else 1024)
    each = table["seconds"] / table["count"]
    plain = table[table["is_plain"]].groupby("unit").apply(lambda rows: each[rows.index].min(), include_groups=False)
    table["speedup"] = table["unit"].map(plain) / each if len(plain) else float("nan")
    table["share"] = table["flops"] / rate
    is_gpu = bench.device.type == "cuda"
    table["device"] = torch.cuda.get_device_name(bench.device) if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    table["versions"] = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {metadata.version(name)}" for name in LIBRARIES
    )
    table["date"] = str(date.today())
    return table


def main(stage: str, measure: Callable[[Bench], None]) -> None:
    """The command line of a stage's benchmark."""
    parser = argparse.ArgumentParser(description=f"How fast is this stage: {stage}?")
    parser.add_argument("--model", default="mistral-7b", choices=list(SHAPES), help="whose shape")
    parser.add_argument("--small", action="store_true", help="a tiny shape on the CPU, to see that it works")
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:<number>")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("results/benchmarks"),
        help="checkpoint and tables go there, in a folder per shape",
    )
    given = parser.parse_args()
    device = torch.device("cpu") if given.small else pick_device(given.device)
    shape = "small" if given.small else given.model
    place = given.folder / shape
    checkpoint = place / "checkpoint"
    if not checkpoint.is_dir():
        make_checkpoint(checkpoint, shape, str(device))
    bench = Bench(stage, checkpoint, device, read_shape(checkpoint / "config.json"), given.small)
    measure(bench)
    table = tabulate(bench)
    table.to_parquet(place / f"{stage}.parquet", index=False)
    print(table[["device", "versions", "date"]].iloc[0].str.cat(sep="; "))
    print(table.drop(columns=["stage", "is_plain", "device", "versions", "date"]).round(3).to_string(index=False))
