"""Which numbers count: the cells that the terminal's table, the figures and the report show alike.

A cell is one model under one attack on the test questions of the forget domain, with the variant and template that were
selected on validation, as the mean over seeds. How models, attacks and shares are written for readers is here too.
"""

import re

import pandas as pd

from resurface.analysis.summary import TRANSFERRED
from resurface.analysis.tables import CONTROL, ORIGINAL

MEASURES = [
    *("accuracy", "ci_low", "ci_high"),
    *("recovery", "recovery_ci_low", "recovery_ci_high"),
    *("control_accuracy", "excess", "excess_ci_low", "excess_ci_high"),
]
SPREAD_MEASURES = ["accuracy", "recovery", "excess"]


def domains_of(summary: pd.DataFrame) -> list[str]:
    """The domains, in the summary's order."""
    return list(summary["domain"].unique())


def models_of(summary: pd.DataFrame, domain: str) -> list[str]:
    """The models of a domain: original, control, then the methods in the summary's order."""
    found = list(summary.loc[summary["domain"] == domain, "method"].unique())
    references = [model for model in (ORIGINAL, CONTROL) if model in found]
    return references + [model for model in found if model not in references]


def table_rows(summary: pd.DataFrame, domain: str) -> list[str]:
    """The models of a domain and, even if there is none, the control: a table must say so."""
    models = models_of(summary, domain)
    if CONTROL in models:
        return models
    place = 1 if ORIGINAL in models else 0
    return [*models[:place], CONTROL, *models[place:]]


def attacks_of(summary: pd.DataFrame) -> list[str]:
    """The attacks: `none`, then the others in the order in which the summary has them for the methods."""
    of_methods = summary.loc[~summary["method"].isin([ORIGINAL, CONTROL]), "attack"]
    return list(dict.fromkeys(["none", *of_methods, *summary["attack"]]))


def has_control(summary: pd.DataFrame, domain: str) -> bool:
    """Whether a never-learned model was scored on this domain."""
    return CONTROL in models_of(summary, domain)


def seeds_note(summary: pd.DataFrame) -> str:
    """What to say about seeds: nothing if there is only one."""
    count = summary["seed"].nunique()
    return f"mean of {count} seeds" if count > 1 else ""


def forget_rows(summary: pd.DataFrame, domain: str, split: str) -> pd.DataFrame:
    """The rows about the forget questions of a domain."""
    return summary[(summary["domain"] == domain) & (summary["benchmark"] == domain) & (summary["split"] == split)]


def mean_over_seeds(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean of every measure over what `keys` leave open, normally the seeds.

    The ends of intervals are averaged too: all seeds answer the same questions, so the uncertainty from the choice of
    questions does not shrink with their number. How far the seeds lie apart is in `{measure}_min` and `{measure}_max`.
    """
    rows = rows.astype(dict.fromkeys(MEASURES, "Float64")).astype(dict.fromkeys(MEASURES, "float64"))
    groups = rows.groupby(keys, sort=False, dropna=False)
    means = groups[MEASURES].mean()
    means["seeds"] = groups["seed"].nunique()
    for measure in SPREAD_MEASURES:
        means[f"{measure}_min"] = groups[measure].min()
        means[f"{measure}_max"] = groups[measure].max()
    return means.reset_index()


def main_cells(summary: pd.DataFrame, domain: str) -> pd.DataFrame:
    """One row per model and attack: the measures, what was selected, and the best on test.

    `best_accuracy` is the highest *test* accuracy over variants and templates, `best_choice` where it was reached. The
    paper reports this number; it is too high by as much as a lucky variant is. Variants made on another model
    (`from-…`) do not compete for it, as they do not for the selection.
    """
    keys = ["method", "attack"]
    test = forget_rows(summary, domain, "test")
    selected = test[test["selected"]]
    own = test[~test["variant"].str.startswith(TRANSFERRED)]
    best = own.loc[own.groupby([*keys, "seed"], dropna=False)["accuracy"].idxmax()]
    cells = mean_over_seeds(selected, keys)
    for name, rows in (("choice", selected), ("best_choice", best)):
        choices = (
            rows.assign(choice=_choice(rows)).groupby(keys)["choice"].agg(lambda found: " / ".join(found.unique()))
        )
        cells = cells.merge(choices.rename(name).reset_index(), on=keys, how="left")
    best_accuracy = mean_over_seeds(best, keys)[[*keys, "accuracy"]].rename(columns={"accuracy": "best_accuracy"})
    return cells.merge(best_accuracy, on=keys, how="left")


def _choice(rows: pd.DataFrame) -> pd.Series:
    """Variant and template as one text; the attack that does nothing has a template only."""
    named = rows["variant"] + ", " + rows["template"]
    return named.where(rows["attack"] != "none", rows["template"])


def cells_by_name(cells: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """Cells by model and attack."""
    return {(str(cell["method"]), str(cell["attack"])): cell for _, cell in cells.iterrows()}


def is_attacked_method(cell: pd.Series) -> bool:
    """Whether recovery and excess mean anything in a cell."""
    return cell["method"] not in (ORIGINAL, CONTROL) and cell["attack"] != "none"


def strongest_attacks(summary: pd.DataFrame, domain: str) -> dict[str, str]:
    """Each model's strongest attack. Chosen on validation, so that its test accuracy is not the luckiest of several."""
    rows = forget_rows(summary, domain, "validation")
    rows = rows[rows["selected"] & (rows["attack"] != "none")]
    means = mean_over_seeds(rows, ["method", "attack"])
    best = means.loc[means.groupby("method", sort=False)["accuracy"].idxmax()]
    return dict(zip(best["method"], best["attack"], strict=True))


def display_name(name: str) -> str:
    """A model's or an attack's name for readers: acronyms in capitals, no underscores."""
    if name == CONTROL:
        return "never-learned (control)"
    if name == "none":
        return "no attack"
    if re.fullmatch(r"[a-z]{2,3}", name):
        return name.upper()
    return name.replace("_", " ").replace("gcg", "GCG")


def percent(value: float) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if pd.isna(value) else f"{whole(value)}\u00a0%"


def interval(low: float, high: float) -> str:
    """An interval of shares in percent or points, without the unit."""
    if pd.isna(low) or pd.isna(high):
        return "–"
    return f"{whole(low)} to {whole(high)}" if low < 0 else f"{whole(low)}–{whole(high)}"


def points(value: float) -> str:
    """A difference of shares in percentage points, or a dash where there is none."""
    return "–" if pd.isna(value) else f"{whole(value)}\u00a0points"


def whole(value: float) -> str:
    """A share as whole percent with a real minus sign."""
    return f"{round(value * 100)}".replace("-", "−")


def tenths(value: float) -> str:
    """A difference of shares in percentage points, as exactly as verdicts compare it with the margin; a dash where there is none."""
    return "–" if pd.isna(value) else f"{100 * value:.1f}".replace("-", "−")


def p_text(value: float) -> str:
    """A p value, or a dash where there is none."""
    return "–" if pd.isna(value) else "<\u00a00.001" if value < 0.001 else f"{value:.3f}"


def range_in_tenths(low: float, high: float) -> str:
    """Two ends of differences in percentage points, which no line break divides."""
    return f"{tenths(low)}\u00a0to\u00a0{tenths(high)}"
