"""The tables of all benchmarks in one, and how cost grows: `python -m benchmarks.plot results/benchmarks/mistral-7b docs`.

Writes `speed.parquet`, all rows, and `speed.png`: time and GPU memory of the package's own way at growing sizes.
"""

import argparse
from pathlib import Path

import altair as alt
import pandas as pd

WAY = "resurface"
COLORS = alt.Scale(scheme="category20")  # there are more than ten lines


def read_tables(folder: Path) -> pd.DataFrame:
    """The rows of all stages that were measured there."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise SystemExit(f"{folder}: no tables of benchmarks; run some first, as `python -m benchmarks.scoring` does")
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def draw_growth(table: pd.DataFrame) -> alt.HConcatChart:
    """Seconds and memory over the size, each relative to the smallest, a line per stage and unit.

    Grey is growth in proportion to the size.
    """
    rows = table[table["way"] == WAY].sort_values("count")
    rows["measured"] = rows["stage"] + ": " + rows["unit"]
    rows = rows[rows.groupby("measured")["count"].transform("nunique") >= 3]
    relative = rows[["measured"]].copy()
    for name, column in (("size", "count"), ("time", "seconds"), ("GPU memory", "device_gib")):
        smallest = rows.groupby("measured")[column].transform("first")
        relative[name] = (rows[column] / smallest).fillna(1)  # nothing to nothing on a CPU
    largest = relative["size"].max()
    axis = alt.Scale(type="log", base=2, domain=[1, largest])
    proportional = (
        alt.Chart(pd.DataFrame({"size": [1, largest], "time": [1, largest]}))
        .mark_line(color="#999999", strokeDash=[4, 4])
        .encode(x=alt.X("size", scale=axis), y=alt.Y("time", scale=axis))
    )
    lines = (
        alt.Chart(relative)
        .mark_line(point=True)
        .encode(
            x=alt.X("size", scale=axis, title="times the smallest size"),
            color=alt.Color("measured", title=None, scale=COLORS),
        )
    )
    time = proportional + lines.encode(y=alt.Y("time", scale=axis, title="times its seconds"))
    memory = lines.encode(y=alt.Y("GPU memory", title="times its GPU memory", scale=alt.Scale(domain=[0, 2])))
    return alt.hconcat(
        time.properties(width=320, height=260), memory.properties(width=320, height=260)
    ).configure_legend(labelLimit=300)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="where the benchmarks wrote their tables")
    parser.add_argument("output", type=Path, help="where both files go")
    given = parser.parse_args()
    table = read_tables(given.tables)
    given.output.mkdir(parents=True, exist_ok=True)
    table.to_parquet(given.output / "speed.parquet", index=False)
    draw_growth(table).save(given.output / "speed.png", scale_factor=2)


if __name__ == "__main__":
    main()
