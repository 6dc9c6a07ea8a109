"""Count the errors of verdicts: `python -m calibration.count worlds docs`.

Writes `calibration-evidence.parquet`, the evidence of all worlds, `calibration.parquet`, the verdicts that follow from it,
`calibration.csv`, of each kind of model how often it is said to hold the knowledge, with Wilson's interval, and `calibration.png`, the
same as a figure.

Models of a world share its control and its questions, so an interval is that of as many independent audits as there are worlds.
"""

import argparse
from pathlib import Path

import altair as alt
import pandas as pd

from calibration.audit import HIDDEN, INNOCENT, OPEN
from resurface.analysis.evidence import reaches
from resurface.analysis.statistics import wilson
from resurface.analysis.verdict import INCONCLUSIVE, RESURFACES, judge
from resurface.artifacts import write_table
from resurface.settings.summary import SummarySettings

MARGIN = SummarySettings().margin
SHOWN = ["accuracy", "unattacked_accuracy", "control_accuracy", "excess", "surplus", "surplus_least", "excess_most"]


def read_evidence(folder: Path) -> pd.DataFrame:
    """The evidence of all worlds that are done."""
    paths = sorted(folder.glob("world*/evidence.parquet"))
    if not paths:
        raise SystemExit(f"{folder}: no evidence; `python -m calibration {folder}` makes it")
    evidence = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    if evidence["settings"].nunique() > 1:
        raise SystemExit(f"{folder}: its worlds were made with different settings, and cannot be counted together")
    return evidence


def judge_worlds(evidence: pd.DataFrame) -> pd.DataFrame:
    """The verdict on each model of each world, with `settings`, `world`, `truth`, and what the evidence says of the attack that decided."""
    tables = []
    for (settings, world), own in evidence.groupby(["settings", "world"]):
        keys = ["domain", "method", "attack"]
        verdicts = judge(own, SummarySettings()).merge(own[[*keys, *SHOWN]], on=keys, how="left", validate="1:1")
        unattacked = own[own["attack"] == "none"].set_index("method")
        for name in ("accuracy", "excess"):
            verdicts[f"unattacked_{name}"] = verdicts["method"].map(unattacked[name])
        verdicts.insert(0, "settings", settings)
        verdicts.insert(1, "world", world)
        verdicts.insert(2, "truth", verdicts["method"].map(unattacked["truth"]))
        tables.append(verdicts)
    return pd.concat(tables, ignore_index=True)


def find_truths(verdicts: pd.DataFrame) -> pd.Series:
    """What is true of each model.

    A method hid nothing if without attack its model's excess over the control is the margin of verdicts already; that model is counted as
    open.
    """
    is_bare = (verdicts["truth"] == HIDDEN) & reaches(verdicts["unattacked_excess"], MARGIN)
    return verdicts["truth"].mask(is_bare, OPEN)


def count(verdicts: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """How often each kind of model is accused.

    Returns:
        a row per truth and kind, and one of each truth (`all`): `truth`, `kind`, `worlds`, `audits`, `accused`, `unattacked` (of these,
        those that rest on no attack), `inconclusive`, `rate` (accused of audited), `low`, `high`, `accuracy` (without attack, mean).
    """
    kinds = verdicts.assign(kind=verdicts["method"].str.replace(r"\d+$", "", regex=True), truth=find_truths(verdicts))
    rows = []
    for (truth, kind), found in pd.concat([kinds, kinds.assign(kind="all")]).groupby(["truth", "kind"]):
        is_accused = found["verdict"] == RESURFACES
        rate, worlds = float(is_accused.mean()), found["world"].nunique()
        low, high = wilson(rate, worlds, confidence)
        rows.append(
            {
                "truth": truth,
                "kind": kind,
                "worlds": worlds,
                "audits": len(found),
                "accused": int(is_accused.sum()),
                "unattacked": int((is_accused & (found["attack"] == "none")).sum()),
                "inconclusive": int((found["verdict"] == INCONCLUSIVE).sum()),
                "rate": rate,
                "low": low,
                "high": high,
                "accuracy": found["unattacked_accuracy"].mean(),
            }
        )
    return pd.DataFrame(rows)


def draw(counts: pd.DataFrame) -> alt.FacetChart:
    """The share of each kind of model that is accused, with its interval; each truth's total first."""
    kinds = counts["kind"] + " (" + counts["accused"].astype(str) + " of " + counts["audits"].astype(str) + ")"
    counts = counts.assign(kind=kinds, is_total=counts["kind"] == "all")
    kind = alt.Y("kind:N", title=None, sort=alt.EncodingSortField("is_total", order="descending"))
    share = alt.X(
        "low:Q",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%"),
        title="said to hold the knowledge, with the 95 % interval of as many audits as worlds",
    )
    lines = alt.Chart(counts).mark_rule(strokeWidth=3).encode(x=share, x2="high:Q", y=kind)
    points = alt.Chart(counts).mark_point(filled=True, size=90).encode(x="rate:Q", y=kind, color=alt.value("#0072b2"))
    layers = (lines + points).properties(width=420)
    truths = alt.Row("truth:N", title=None, sort=[INNOCENT, HIDDEN, OPEN])
    return layers.facet(row=truths).resolve_scale(y="independent")


def main() -> None:
    """Write the tables and the figure, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the worlds are")
    parser.add_argument("output", type=Path, help="where the files go")
    given = parser.parse_args()
    evidence = read_evidence(given.folder)
    verdicts = judge_worlds(evidence)
    counts = count(verdicts)
    given.output.mkdir(parents=True, exist_ok=True)
    write_table(evidence, given.output / "calibration-evidence.parquet")
    write_table(verdicts, given.output / "calibration.parquet")
    counts.round(4).to_csv(given.output / "calibration.csv", index=False)
    draw(counts).save(given.output / "calibration.png", scale_factor=2)
    print(f"{verdicts['world'].nunique()} worlds")
    print(counts.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
