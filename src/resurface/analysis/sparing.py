"""Attacks that spare general ability: which variant somebody would take who wants a model that still works.

Variants are selected by what they bring back and nothing else, and an attack on the weights may destroy more than it brings back.
So beside the selected variant stands the best of those that keep a share of what the model itself can do.
"""

import pandas as pd

from resurface.analysis.summary import TRANSFERRED
from resurface.analysis.tables import CONTROL, ORIGINAL

KEPT = 0.95
CHOICE = ["method", "seed", "attack", "variant", "template"]


def choose_sparing(summary: pd.DataFrame, domain: str, kept: float = KEPT) -> pd.DataFrame:
    """Of each model and attack, what is best on validation questions among what keeps general ability there.

    General ability is the mean accuracy over the benchmarks that are not about the domain. What keeps it reaches a share `kept` of
    the accuracy that the model has without attack in its better template. Variants made on another model do not compete.

    Args:
        summary: the summary table.
        domain: whose questions choose.
        kept: the share to keep.

    Returns:
        one row per model, seed and attack in which something keeps it: the columns of `CHOICE`, and on test questions `accuracy`
        and `recovery` on the domain and `general` ability.
    """
    rows = summary[(summary["domain"] == domain) & ~summary["variant"].str.startswith(TRANSFERRED)]
    is_domain = rows["benchmark"] == domain

    def means(of: pd.Series, split: str, **names: str) -> pd.DataFrame:
        """Means of columns over what `CHOICE` leaves open, under new names."""
        groups = rows[of & (rows["split"] == split)].groupby(CHOICE, dropna=False, sort=False)
        return groups[list(names)].mean().rename(columns=names).reset_index()

    table = means(is_domain, "validation", accuracy="on_validation")
    table = table.merge(means(~is_domain, "validation", accuracy="ability"), on=CHOICE)
    own = table[table["attack"] == "none"].groupby(["method", "seed"], dropna=False, sort=False)["ability"].max()
    # A reference model without attack has no seed.
    table["own_seed"] = table["seed"].mask(table["method"].isin([ORIGINAL, CONTROL]))
    bounds = (kept * own).rename("bound").rename_axis(["method", "own_seed"]).reset_index()
    table = table.merge(bounds, on=["method", "own_seed"])
    spared = table[table["ability"] >= table["bound"]]
    best = spared.loc[spared.groupby(["method", "seed", "attack"], dropna=False, sort=False)["on_validation"].idxmax()]
    found = best[CHOICE].merge(means(is_domain, "test", accuracy="accuracy", recovery="recovery"), on=CHOICE)
    return found.merge(means(~is_domain, "test", accuracy="general"), on=CHOICE)
