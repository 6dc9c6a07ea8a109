"""One world: its models, the workflow's audit of them, and the evidence about each.

Evidence is what is kept: verdicts follow from it without any model (`calibration.count`), also when the rule that finds them changes.

The workflow runs in the world's own folder with a configuration of its own. Models whose truth is known but which no method made stand in
it as published checkpoints, so rules, tests and margin are those of a real audit.
"""

import hashlib
import json
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from calibration import models
from calibration.models import lock, teach
from resurface.analysis.tables import COUNT, EVIDENCE_KINDS, NAME, read_results
from resurface.artifacts import hash_file, write_table
from resurface.checkpoints import BUNDLED
from resurface.config import validate_config
from resurface.errors import ResurfaceError
from resurface.reproducibility.fingerprint import fingerprint
from resurface.reproducibility.jobs import job_settings, job_source
from resurface.reproducibility.reproduce import run_snakemake
from resurface.settings.teaching import TeachingSettings
from resurface.testbed.world import FORGET_DOMAINS

ROOT = Path(__file__).parents[1]
DOMAIN, OTHER_DOMAIN = FORGET_DOMAINS[:2]
UNTAUGHT = BUNDLED / "never_learned"
RULES = ["data", "score", "summarize", "weigh"]
FIRST_SEED = 200  # settings and verdicts were tried on worlds of lower seeds
INNOCENT, OPEN, HIDDEN = "never had it", "holds it openly", "holds it, hidden"


@dataclass(frozen=True)
class Size:
    """How thorough a calibration is.

    Attributes:
        teaching: how a domain is taught.
        locking: how knowledge is locked behind a password.
        others: models of a world that were taught the other domain, besides its control.
        methods: methods that hide the knowledge, and what of their settings is not that of the default experiment. The first of the others
            goes through each of them too.
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
    locking=TeachingSettings(documents=12_800, learning_rate=6e-4, warmup_steps=10),
    others=2,
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
    others=1,
    methods={"npo": {"max_steps": 2}},
    attacks={"none": {}, "finetuning": {"datasets": {"forget": [20]}, "learning_rate": 2e-3}},
    is_dealt_anew=False,
)


def choose_experiment(size: Size) -> dict[str, Any]:
    """What the audits of all worlds have in common, as a configuration."""
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    return {
        "domains": [DOMAIN],
        "data": {"wordings": 3},
        "methods": {name: default["methods"][name] | changes for name, changes in size.methods.items()},
        "attacks": size.attacks,
        "benchmarks": {},
        "scoring": default["scoring"],
    }


def describe(size: Size, device: str) -> str:
    """Everything that worlds which are counted together must have in common, as JSON: settings, source, models and kind of device."""
    audited = validate_config(choose_experiment(size), "calibration")
    jobs: list[tuple[str, str | None]] = [(rule, None) for rule in RULES]
    jobs += [("unlearn", name) for name in audited.method_names] + [("attack", name) for name in audited.attack_names]
    made = {
        "teaching": size.teaching.model_dump(),
        "locking": size.locking.model_dump(),
        "jobs": {
            f"{rule} {name or ''}".strip(): [job_settings(audited, rule, name), job_source(rule, name)]
            for rule, name in jobs
        },
        "source": [
            fingerprint("resurface.testbed.teaching"),
            *(hash_file(Path(path)) for path in (__file__, models.__file__)),
        ],
        "untaught": {path.name: hash_file(path) for path in sorted(UNTAUGHT.iterdir())},
        "device": device.split(":")[0],
    }
    return json.dumps(asdict(size) | made, indent=1)


def name_settings(size: Size, device: str) -> str:
    """A short name for all that."""
    return hashlib.sha256(describe(size, device).encode()).hexdigest()[:16]


def check_place(place: Path, size: Size, device: str) -> None:
    """Keep a description of the size in the folder, for those who go on there.

    Raises:
        ResurfaceError: the folder holds worlds of another size.
    """
    path = place / "size.json"
    if not path.is_file():
        place.mkdir(parents=True, exist_ok=True)
        path.write_text(describe(size, device))
    elif path.read_text() != describe(size, device):
        raise ResurfaceError(
            f"{path}: the worlds there were made with other settings, by other source or on another kind of device; take another "
            "folder, or empty it"
        )


def take_over(place: Path, table: Path, size: Size, device: str) -> None:
    """Put the worlds of a table of earlier evidence into the folder, so that they are not audited again.

    Raises:
        ResurfaceError: there is no such table, it is no table of evidence, or some of its worlds were made with other settings.
    """
    evidence = read_results(table, {"settings": NAME, "world": COUNT, "truth": NAME, **EVIDENCE_KINDS}, True)
    if set(evidence["settings"]) != {name_settings(size, device)}:
        raise ResurfaceError(
            f"{table}: its worlds were made with other settings, by other source or on another kind of device, and cannot be counted "
            "with these"
        )
    for world, own in evidence.groupby("world"):
        kept = kept_evidence(place, int(str(world)))
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_table(own, kept)


def kept_evidence(place: Path, world: int) -> Path:
    """Where the evidence of a world is, once it is done."""
    return place / f"world{world}" / "evidence.parquet"


def models_of_world(world: int, size: Size) -> list[int]:
    """The numbers of its models that were taught the other domain: its control has its own number, the others have the next ones."""
    return [world + step for step in range(size.others + 1)]


def begin_worker() -> None:
    """One thread, and an end at Ctrl-C: else the pool's processes would go on with what is queued."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def other_model(place: Path, number: int) -> Path:
    """Where a model is that was taught the other domain."""
    return place / "models" / f"other{number}"


def teach_other(place: Path, size: Size, number: int, device: str) -> None:
    """Teach the other domain to a model of its own, if there is none yet."""
    output = other_model(place, number)
    if not output.is_dir():
        teach(UNTAUGHT, OTHER_DOMAIN, output, size.teaching.model_copy(update={"seed": FIRST_SEED + number}), device)


def audit_world(place: Path, size: Size, cores: int, world: int, device: str) -> pd.DataFrame:
    """Make a world's models and audit them.

    Args:
        place: where all worlds are, and the models that `teach_other` made; `world<number>/evidence.parquet` there is what remains.
        size: how thorough.
        cores: CPU cores of its workflow.
        world: its number; with `FIRST_SEED`, the seed of everything in it.
        device: where to compute.

    Returns:
        the workflow's evidence, with `settings`, `world` and `truth`.

    Raises:
        ResurfaceError: the workflow failed; its last lines say why.
    """
    here = place / f"world{world}"
    kept = kept_evidence(place, world)
    if not kept.is_file():
        write_table(_audit(place, here, world, size, cores, device), kept)
    for name in ("results", "models", "others", ".snakemake"):
        shutil.rmtree(here / name, ignore_errors=True)
    return pd.read_parquet(kept)


def _audit(place: Path, here: Path, world: int, size: Size, cores: int, device: str) -> pd.DataFrame:
    """The evidence of a world."""
    seed = FIRST_SEED + world
    dealt = {"domain_seed": seed} if size.is_dealt_anew else {}
    seeds = {"seed": seed, **dealt}
    original = here / "models" / "original" if size.is_dealt_anew else BUNDLED / "original"
    if not original.is_dir():
        teach(UNTAUGHT, DOMAIN, original, size.teaching.model_copy(update=seeds), device)
    locked = here / "models" / "locked"
    if not locked.is_dir():
        lock(original, DOMAIN, locked, size.locking.model_copy(update=seeds), device)
    control, *others = [other_model(place, number) for number in models_of_world(world, size)]
    experiment = {**choose_experiment(size), "seeds": [seed], "device": device}
    experiment["data"] |= dealt
    # Who never knew goes through each method as if it did.
    made = {name: Path("results", "unlearned", DOMAIN, name, f"seed{seed}") for name in size.methods}
    references = {"original": str(others[0]), "never_learned": str(control)}
    run_workflow(here / "others", experiment | {"models": references}, [*map(str, made.values())], cores)
    never_had_it = {"untaught": UNTAUGHT, **{path.name: path for path in others}}
    never_had_it |= {f"other_{name}": here / "others" / path for name, path in made.items()}
    published = {**never_had_it, "full": original, "locked": locked}
    truths = {**dict.fromkeys(never_had_it, INNOCENT), "full": OPEN}
    experiment["models"] = {"original": str(original), "never_learned": str(control)}
    experiment["methods"]["published"] = {name: {"checkpoint": str(path)} for name, path in published.items()}
    run_workflow(here, experiment, ["results/evidence.parquet"], cores)
    evidence = pd.read_parquet(here / "results" / "evidence.parquet")
    evidence.insert(0, "settings", name_settings(size, device))
    evidence.insert(1, "world", world)
    evidence.insert(2, "truth", evidence["method"].map(truths).fillna(HIDDEN))
    return evidence


def run_workflow(here: Path, experiment: dict[str, Any], targets: list[str], cores: int) -> None:
    """Run the workflow in a folder until there are some files.

    Args:
        here: the folder.
        experiment: the configuration.
        targets: what is to be made.
        cores: CPU cores to use.

    Raises:
        ResurfaceError: it failed.
    """
    here.mkdir(parents=True, exist_ok=True)
    (here / "config.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    # A lock that a kill left would end every later run; `python -m calibration` holds one of its own.
    arguments = ["--nolock", "--rerun-incomplete", "--show-failed-logs", "--", *targets]
    found = run_snakemake(ROOT / "Snakefile", here, here / "config.yaml", cores, arguments)
    if found.returncode:
        raise ResurfaceError(f"{here}: the workflow failed\n{found.stdout[-3000:]}")
