"""Count the errors of verdicts: `python -m calibration.count results/calibration docs`.

Writes `calibration.parquet`, all verdicts, and `calibration.png`, and prints a table: of each kind of model how often it is said to hold the
knowledge, with Wilson's interval.
"""

import argparse
from pathlib import Path

import altair as alt
import pandas as pd

from resurface.analysis.statistics import wilson
from resurface.analysis.verdict import INCONCLUSIVE, RESURFACES


def read_verdicts(folder: Path) -> pd.DataFrame:
    """The verdicts of all worlds that are done."""
    paths = sorted(folder.glob("world*/verdicts.parquet"))
    if not paths:
        raise SystemExit(f"{folder}: no verdicts; `python -m calibration {folder}` makes them")
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def count(verdicts: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """How often each kind of model is accused.

    Returns:
        a row per kind, and one of each truth (`all`): `holds`, `model`, `audits`, `accused`, `inconclusive`, `rate` (accused of
        audited), `low`, `high`.
    """
    kinds = verdicts.assign(model=verdicts["method"].str.replace(r"\d+$", "", regex=True))
    both = pd.concat([kinds, kinds.assign(model="all")])
    rows = []
    for (holds, model), found in both.groupby(["holds", "model"], sort=False):
        accused = int((found["verdict"] == RESURFACES).sum())
        low, high = wilson(accused / len(found), len(found), confidence)
        unsure = int((found["verdict"] == INCONCLUSIVE).sum())
        rows.append((holds, model, len(found), accused, unsure, accused / len(found), low, high))
    columns = ["holds", "model", "audits", "accused", "inconclusive", "rate", "low", "high"]
    return pd.DataFrame(rows, columns=columns).sort_values(["holds", "model"], ignore_index=True)


def draw(counts: pd.DataFrame) -> alt.FacetChart:
    """The share of each kind of model that is accused, with its interval."""
    rows = counts.assign(truth=counts["holds"].map({True: "holds the knowledge", False: "does not"}))
    kind = alt.Y("model:N", title=None)
    share = alt.Scale(domain=[0, 1])
    lines = (
        alt.Chart(rows)
        .mark_rule(strokeWidth=3)
        .encode(
            x=alt.X("low:Q", scale=share, axis=alt.Axis(format="%"), title="said to hold the knowledge"),
            x2="high:Q",
            y=kind,
        )
    )
    points = alt.Chart(rows).mark_point(filled=True, size=90).encode(x="rate:Q", y=kind, color=alt.value("#0072b2"))
    return (
        (lines + points).properties(width=420).facet(row=alt.Row("truth:N", title=None)).resolve_scale(y="independent")
    )


def main() -> None:
    """Write the table and the figure, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the worlds are")
    parser.add_argument("output", type=Path, help="where both files go")
    given = parser.parse_args()
    verdicts = read_verdicts(given.folder)
    counts = count(verdicts)
    given.output.mkdir(parents=True, exist_ok=True)
    verdicts.to_parquet(given.output / "calibration.parquet", index=False)
    draw(counts).save(given.output / "calibration.png", scale_factor=2)
    print(f"{verdicts['world'].nunique()} worlds")
    print(counts.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
