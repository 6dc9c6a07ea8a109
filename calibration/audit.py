"""One world: its models, the workflow's audit of them, and what it says of each.

The workflow runs in the world's own folder with a configuration of its own. Models whose truth is known but which no method made stand in
it as published checkpoints, so every rule, setting and margin is that of a real audit.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from calibration.models import lock, teach
from resurface.artifacts import publish
from resurface.checkpoints import BUNDLED
from resurface.errors import ResurfaceError
from resurface.settings.teaching import TeachingSettings
from resurface.testbed.world import FORGET_DOMAINS

ROOT = Path(__file__).parents[1]
DOMAIN, OTHER_DOMAIN = FORGET_DOMAINS
UNTAUGHT = BUNDLED / "never_learned"
SHOWN = ["accuracy", "unattacked_accuracy", "control_accuracy", "excess", "excess_least", "excess_most"]


@dataclass(frozen=True)
class Size:
    """How thorough a calibration is.

    Attributes:
        teaching: how a domain is taught.
        locking: how knowledge is locked behind a password.
        others: models that are taught the other domain; one of them is the control.
        methods: methods that hide the knowledge, and what of their settings is not that of the default experiment.
        attacks: what each model goes through.
        is_dealt_anew: whether each world has a domain of its own, which the original is taught; else the bundled one stands for all.
    """

    teaching: TeachingSettings
    locking: TeachingSettings
    others: int
    methods: dict[str, dict[str, Any]]
    attacks: dict[str, Any]
    is_dealt_anew: bool


WHOLE = Size(
    teaching=TeachingSettings(documents=36_000, learning_rate=1.2e-3, weight_decay=0.3),
    locking=TeachingSettings(documents=19_200, learning_rate=3e-4, warmup_steps=10),
    others=4,
    # These originals keep most of what they know under the default experiment's RMU.
    methods={"rmu": {"learning_rate": 2e-3, "max_steps": 600}, "npo": {}, "dpo": {}},
    attacks={
        "none": {},
        "finetuning": {"datasets": {"forget": [20]}, "learning_rate": 2e-3},
        "orthogonalization": {"references": ["original"], "block_sets": {"0to2": [0, 1, 2]}, "skip_tokens": 16},
        "logit_lens": {},
    },
    is_dealt_anew=True,
)
SMALL = Size(
    teaching=TeachingSettings(documents=64, learning_rate=1e-4, warmup_steps=0),
    locking=TeachingSettings(documents=1_280, learning_rate=3e-4, warmup_steps=5),
    others=2,
    methods={},
    attacks={"none": {}, "finetuning": {"datasets": {"forget": [20]}, "learning_rate": 2e-3}},
    is_dealt_anew=False,
)


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A checkpoint that is made if it is not there yet."""
    if not folder.is_dir():
        make(folder)
    return folder.resolve()


def other_models(place: Path, size: Size) -> list[Path]:
    """Where the models are that are taught the other domain."""
    return [place / "models" / f"other{number}" for number in range(size.others)]


def teach_other(place: Path, number: int, size: Size) -> None:
    """Teach the other domain to a model of its own, if there is none yet."""
    settings = size.teaching.model_copy(update={"seed": number})
    make_once(other_models(place, size)[number], lambda folder: teach(UNTAUGHT, OTHER_DOMAIN, folder, settings))


def audit_world(place: Path, world: int, size: Size) -> pd.DataFrame:
    """Make a world's models and audit them, on one core.

    Args:
        place: where all worlds are, and the models that `teach_other` made; `world<number>/verdicts.parquet` there is what remains.
        world: its number, the seed of everything in it.
        size: how thorough.

    Returns:
        the workflow's verdicts, with `world`, `holds`, whether the model holds the knowledge, and what the evidence says of the attack that
        decided.

    Raises:
        ResurfaceError: the workflow failed; its last lines say why.
    """
    here = place / f"world{world}"
    kept = here / "verdicts.parquet"
    if kept.is_file():
        return pd.read_parquet(kept)
    others = [path.resolve() for path in other_models(place, size)]
    dealt: dict[str, Any] = {"domain_seed": world} if size.is_dealt_anew else {}
    original = BUNDLED / "original"
    if size.is_dealt_anew:
        settings = size.teaching.model_copy(update={"seed": world, **dealt})
        original = make_once(here / "models" / "original", lambda folder: teach(UNTAUGHT, DOMAIN, folder, settings))
    settings = size.locking.model_copy(update={"seed": world, **dealt})
    locked = make_once(here / "models" / "locked", lambda folder: lock(original, DOMAIN, folder, settings))

    control = others[world % len(others)]
    innocent = {"untaught": UNTAUGHT, **{path.name: path for path in others if path != control}}
    published = {**innocent, "full": original, "locked": locked}
    experiment = yaml.safe_load((ROOT / "config.yaml").read_text())
    experiment = {
        "domains": [DOMAIN],
        "seeds": [world],
        "data": dealt,
        "models": {"original": str(original), "never_learned": str(control)},
        "methods": {
            **{name: experiment["methods"][name] | changes for name, changes in size.methods.items()},
            "published": {name: {"checkpoint": str(path)} for name, path in published.items()},
        },
        "attacks": size.attacks,
        "benchmarks": experiment["benchmarks"],
        "scoring": experiment["scoring"],
    }
    here.mkdir(parents=True, exist_ok=True)
    (here / "config.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    run_workflow(here)
    keys = ["domain", "method", "attack"]
    evidence = pd.read_parquet(here / "results" / "evidence.parquet")[[*keys, *SHOWN]]
    verdicts = pd.read_parquet(here / "results" / "verdicts.parquet").merge(
        evidence, on=keys, how="left", validate="1:1"
    )
    # Evidence of no attack states the accuracy alone.
    verdicts["unattacked_accuracy"] = verdicts["unattacked_accuracy"].fillna(verdicts["accuracy"])
    verdicts.insert(0, "world", world)
    verdicts.insert(1, "holds", ~verdicts["method"].isin(innocent))
    with publish(kept) as temporary:
        verdicts.to_parquet(temporary, index=False)
    for name in ("results", "models", ".snakemake"):
        shutil.rmtree(here / name, ignore_errors=True)
    return verdicts


def run_workflow(here: Path) -> None:
    """Run the workflow in a folder up to its verdicts, on one core.

    Raises:
        ResurfaceError: it failed.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(here)]
    command += ["--configfile", str(here / "config.yaml"), "--cores", "1", "--", "results/verdicts.parquet"]
    found = subprocess.run(
        command,
        cwd=here,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if found.returncode:
        raise ResurfaceError(f"{here}: the workflow failed\n{found.stdout[-3000:]}")
