"""What attacks leave in their folders besides interventions: how a search went, which prefixes, what was pruned or rewritten.

The summary knows how well a variant does, not what it is. An attack's folder does; which of them are read is said in the
registry, and what is in one is known by its files, so that this module knows no attack. Only folders whose variants are in the
summary count: others are left from an earlier configuration.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resurface.artifacts import check_folder, read_table
from resurface.interventions import Prepend, Pruning, Variant, read_variants
from resurface.registry import ATTACKS

MODEL = ["domain", "method", "seed", "attack"]
LOSSES = [*MODEL, "search", "step", "loss", "best_loss"]
PREFIXES = [*MODEL, "variant", "prefix"]
SPARSITY = [*MODEL, "variant", "layer", "weights", "pruned"]
REWRITES = [*MODEL, "variant", "prompts", "changed", "rounds", "exceeds", "text_rounds", "text_exceeds"]


@dataclass(frozen=True)
class Findings:
    """Tables that say to which model and attack each row belongs; empty where no attack leaves such a thing.

    Attributes:
        losses: the columns of `LOSSES`, a row per search and step; losses in nats and weighed parts.
        prefixes: the columns of `PREFIXES`, a row per variant that puts a text in front of the prompt.
        sparsity: the columns of `SPARSITY`, a row per variant that removes weights and layer: how many weights it has, and how
            many are removed.
        rewrites: the columns of `REWRITES`, a row per variant that rewrites prompts until something is reached: the number of
            `prompts`, the shares that were `changed` and that still exceed, and mean rounds.
    """

    losses: pd.DataFrame
    prefixes: pd.DataFrame
    sparsity: pd.DataFrame
    rewrites: pd.DataFrame


def read_findings(attacks: Path | None, summary: pd.DataFrame) -> Findings:
    """Read what the attacks of a summary left.

    Args:
        attacks: the folder that holds `{domain}/{method}/seed{seed}/{attack}/{part}/`; None reads nothing.
        summary: which models and attacks there are.

    Raises:
        ResurfaceError: a folder is not as its job left it, or holds a broken table.
    """
    losses, prefixes, sparsity, rewrites = [], [], [], []
    for model, folder, variants in find_folders(attacks, summary) if attacks else ():
        if (folder / "losses.parquet").is_file():
            table = read_table(folder / "losses.parquet", ["step", "loss", "best_loss"])
            losses.append(table.assign(**model, search=table.get("search", folder.name))[LOSSES])
        prefixes += [
            {**model, "variant": one.variant, "prefix": one.prompt.text}
            for one in variants
            if isinstance(one.prompt, Prepend)
        ]
        if (folder / "sparsity.parquet").is_file():
            table = read_table(folder / "sparsity.parquet", ["score", "p", "q", "layer", "weights", "pruned"])
            sparsity += [
                _rows_of(table, one).assign(**model, variant=one.variant)[SPARSITY]
                for one in variants
                if isinstance(one.model, Pruning)
            ]
        if (folder / "prompts.parquet").is_file():
            rewrites.append(_count_rewrites(folder / "prompts.parquet").assign(**model)[REWRITES])
    return Findings(
        _join(losses, LOSSES),
        pd.DataFrame(prefixes, columns=PREFIXES),
        _join(sparsity, SPARSITY),
        _join(rewrites, REWRITES),
    )


def find_folders(attacks: Path, summary: pd.DataFrame) -> Iterator[tuple[dict[str, Any], Path, list[Variant]]]:
    """The folders of attacks that are shown: whose they are, where they are, and their variants."""
    shown = [name for name, entry in ATTACKS.items() if entry.is_shown]
    rows = summary[summary["attack"].isin(shown) & summary["seed"].notna()]
    for key, own in rows.groupby(MODEL, sort=False):
        model: dict[str, Any] = dict(zip(MODEL, key, strict=True))
        place = attacks / model["domain"] / model["method"] / f"seed{model['seed']}" / model["attack"]
        scored = set(own["variant"])
        for hashes in sorted(place.glob("*.hashes.json")):
            folder = check_folder(place / hashes.name.removesuffix(".hashes.json"))
            variants = read_variants(folder)
            if scored.issuperset(one.variant for one in variants):
                yield model, folder, variants


def _rows_of(sparsity: pd.DataFrame, variant: Variant) -> pd.DataFrame:
    """The rows of a table of sparsity about one variant."""
    assert isinstance(variant.model, Pruning), "only variants that remove weights have such rows"
    score, p, q = Path(variant.model.file).stem, variant.model.p, variant.model.q
    return sparsity[(sparsity["score"] == score) & (sparsity["p"] == p) & (sparsity["q"] == q)]


def _count_rewrites(path: Path) -> pd.DataFrame:
    """Of each variant of a table of prompts that says how often they were perturbed, numbers and shares of prompts."""
    columns = ["variant", "prompt", "rewritten", "rounds", "exceeds", "text_rounds", "text_exceeds"]
    table = read_table(path, columns).dropna(subset="rounds")
    table["changed"] = table["prompt"] != table["rewritten"]
    groups = table.groupby("variant", sort=False)
    means = groups[["changed", "rounds", "exceeds", "text_rounds", "text_exceeds"]].mean().astype(float)
    return means.assign(prompts=groups.size()).reset_index()


def _join(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Tables one after the other."""
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
