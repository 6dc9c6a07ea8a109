"""Every method and every attack once at the shape of a 7B model, through the command line: how long, and how much memory.

    python -m benchmarks.scale /scratch/scale                      # Mistral-7B's shape, one GPU
    python -m benchmarks.scale /scratch/shared --gpus 2 --methods npo dpo
    python -m benchmarks.scale /tmp/scale --small                  # a tiny shape on the CPU, to see that it works

Weights are random, so nothing is said about knowledge: sizes are true, accuracies mean nothing. What is measured is what the
jobs' own provenance records say. Jobs are reduced in length only; what a whole one takes follows from the time of its steps. A benchmark that was stopped goes on
where it was.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.shapes import make_checkpoint

DOMAIN = "xenotoxicology"
STEPS = 20


def training(batch_size: int, device_batch_size: int, small: bool) -> dict[str, Any]:
    """What all methods' settings share."""
    size = {"batch_size": 4, "device_batch_size": 2} if small else {}
    return {"batch_size": batch_size, "device_batch_size": device_batch_size, "max_steps": STEPS, **size} | {
        "saved_dtype": "bfloat16",
        "save_steps": 1000,
        "warmup_steps": 0,
    }


def methods(small: bool) -> dict[str, dict[str, Any]]:
    """Settings of each method."""
    whole = training(32, 16, small) | {"gradient_checkpointing": True}
    return {
        "rmu": training(4, 4, small)
        | {"dtype": "bfloat16", "learning_rate": 1e-2 if small else 1e-3},  # else no answer changes
        "npo": whole,
        "dpo": whole | {"held_out": 0.0},
    }


def attacks(small: bool) -> dict[str, dict[str, Any]]:
    """Settings of each attack: those of the paper where they say how large a step is, and few of those."""
    return {
        "finetuning": {"datasets": {"forget": [20]}, "dtype": "bfloat16"},
        "orthogonalization": {
            "questions": 200,
            "skip_tokens": 16,
            "block_sets": {"5to7": [5, 6, 7]},
        },
        "pruning": {
            "datasets": {"corpora": {"forget": "corpus", "utility": "text"}},
            "p": [0.5, 20.0],
            "q": [0.5, 20.0],
            "samples": 4 if small else 64,
        },
        "perturbation": {"rounds": 2, "prompt_thresholds": [0.3], "every": [7], "probabilities": [0.1]},
        "random_prefix": {"count": 2},
        "gcg": {"num_steps": 2, "search_width": 8 if small else 128},
        "enhanced_gcg": {
            "searches": {"blocks7to9": [5, 6, 7]},
            "steps": 4 if small else 10,
            "start_length": 100,
            "minimum_lengths": [32, 100],
            "snapshots": 1,
        },
        "logit_lens": {"blocks": [0, 7]} if small else {},
    }


def run(arguments: list[str], output: Path) -> dict[str, Any]:
    """Run one command and read its record; a command that fails leaves an error in its place."""
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "resurface.cli", "--threads", "4", *arguments], capture_output=True, text=True
    )
    wall = time.monotonic() - start
    record = output.parent / f"{output.name}.provenance.json"
    if process.returncode or not record.is_file():
        print(process.stderr[-3000:], file=sys.stderr)
        with Path("errors.txt").open("a") as stream:
            stream.write(process.stderr)
        return {"seconds": wall, "error": process.stderr.strip().splitlines()[-1][:200]}
    found = json.loads(record.read_text())
    halvings = process.stderr.count("out of memory with")
    print(f"{' '.join(arguments[:2])}: {wall:.0f} s", file=sys.stderr)
    return {
        "seconds": wall,
        "device_gib": found["peak_device_memory"] / 2**30,
        "memory_gib": found["peak_memory"] / 2**30,
        "device": found["device"]["name"],
        "halvings": halvings,
    }


def measure(given: argparse.Namespace) -> pd.DataFrame:
    """Run everything in the current folder and return one row per command."""
    device = "cpu" if given.small else given.device
    place = ["--resume", "results/.resume", "--device", device]
    original, data = Path("results/models/original"), Path(f"results/data/{DOMAIN}")
    original.parent.mkdir(parents=True, exist_ok=True)
    if given.original and not original.exists():
        original.symlink_to(given.original.resolve())
    if not original.is_dir():
        make_checkpoint(original, "small" if given.small else "mistral-7b", "cpu" if given.small else "cuda")
    done = Path("rows.jsonl")
    rows = {row["job"]: row for row in map(json.loads, done.read_text().splitlines())} if done.is_file() else {}

    def add(job: str, arguments: list[str], output: Path) -> None:
        if job not in rows or "error" in rows[job]:
            rows[job] = {"job": job, "gpus": given.gpus, **run(arguments, output), "bytes": folder_bytes(output)}
            with done.open("a") as stream:
                stream.write(json.dumps(rows[job]) + "\n")

    run(["data", DOMAIN, "--output", str(data)], data)
    run(["data", "general", "--output", "results/data/general"], Path("results/data/general"))
    for method in given.methods:
        output = Path(f"results/unlearned/{DOMAIN}/{method}/seed0")
        arguments = ["unlearn", method, "--model", str(original), "--data", str(data), "--output", str(output)]
        arguments += ["--settings", json.dumps(methods(given.small)[method]), "--gpus", str(given.gpus), *place]
        add(method, arguments, output)
        for attack in given.attacks if method == "rmu" and output.is_dir() else []:
            attack_once(add, attack, original, output, data, place, given)
        shutil.rmtree(output, ignore_errors=True)
    return pd.DataFrame(list(rows.values()))


def attack_once(
    add: Any, attack: str, original: Path, model: Path, data: Path, place: list[str], given: argparse.Namespace
) -> None:
    """Attack an unlearned model, and score it under what the attack leaves."""
    settings = attacks(given.small)[attack]
    part = next(iter(settings.get("datasets", settings.get("searches", ["all"]))))
    output = Path(f"results/attacks/{DOMAIN}/rmu/seed0/{attack}/{part}")
    arguments = ["attack", attack, "--part", part, "--model", str(model), "--original", str(original)]
    arguments += ["--data", str(data), "--output", str(output), "--settings", json.dumps(settings)]
    add(attack, [*arguments, *place], output)
    if attack not in given.scored or not output.is_dir():
        return
    scores = Path(f"results/scores/{DOMAIN}/rmu/seed0/{attack}.parquet")
    arguments = ["score", "--model", str(model), "--interventions", str(output)]
    arguments += ["--benchmarks", json.dumps({DOMAIN: [f"testbed_{DOMAIN}"]}), "--output", str(scores)]
    arguments += ["--identity", json.dumps({"domain": DOMAIN, "method": "rmu", "seed": 0, "attack": attack})]
    add(f"score {attack}", [*arguments, "--settings", json.dumps({"templates": ["plain"]}), *place[-2:]], scores)


def folder_bytes(output: Path) -> int:
    """What an output takes on the disk [bytes]."""
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(path.stat().st_size for path in files if path.is_file())


def main() -> None:
    """Measure, print a table and write it beside the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to work: 60 GB of room")
    parser.add_argument("--small", action="store_true", help="a tiny shape on the CPU")
    parser.add_argument("--original", type=Path, help="a checkpoint to use instead of a new one with random weights")
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:<number>")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the model out while it is trained")
    parser.add_argument("--methods", nargs="*", default=["rmu", "npo", "dpo"], help="which methods")
    parser.add_argument("--attacks", nargs="*", default=list(attacks(True)), help="which attacks, on RMU's model")
    parser.add_argument("--scored", nargs="*", default=list(attacks(True)), help="which of them are scored")
    given = parser.parse_args()
    accelerate = Path("envs/accelerate").resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.folder)
    if not Path("envs/accelerate").exists():
        Path("envs").mkdir(exist_ok=True)
        Path("envs/accelerate").symlink_to(accelerate)
    table = measure(given)
    table.to_parquet("scale.parquet", index=False)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"{date.today()}, Python {platform.python_version()}, {versions}")
    print(table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
