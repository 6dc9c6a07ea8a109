"""What all figures share: the common style, colours, axes, and which rows of the summary are drawn.

Colours stay apart for colour-blind readers: viridis (Smith & van der Walt 2015), and those of Okabe & Ito (2008).
"""

import io
import re
from collections.abc import Callable
from typing import Any

import altair as alt
import pandas as pd

from resurface.analysis.cells import (
    display_name,
    domains_of,
    forget_rows,
    main_cells,
    mean_over_seeds,
    models_of,
    percent,
    table_rows,
)
from resurface.analysis.tables import CONTROL, ORIGINAL

DARK_BELOW = 0.45  # up to this share viridis is so dark that white text is easier to read than black
CONTROL_COLOUR = "#777777"
METHOD_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
# The first comes with vl-convert, which measures texts with it; the second is as wide.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


def with_best_template(rows: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Test rows on the forget questions, each variant with the template that is better on validation (ties: plain)."""
    keys = ["domain", "method", "seed", "attack", "variant"]
    validation = forget_rows(rows, domain, "validation").sort_values(
        ["accuracy", "template"], ascending=False, kind="stable"
    )
    best = validation.drop_duplicates(keys)[[*keys, "template"]]
    return forget_rows(rows, domain, "test").merge(best, on=[*keys, "template"])


def general_ability(summary: pd.DataFrame, domain: str, keys: list[str]) -> pd.Series:
    """General ability `general` of what `keys` tell apart, as means over benchmarks and seeds.

    Each benchmark counts in the template in which it is answered better.
    """
    rows = summary[(summary["domain"] == domain) & (summary["split"] == "test") & (summary["benchmark"] != domain)]
    best = rows.groupby([*dict.fromkeys([*keys, "seed", "benchmark"])], dropna=False, sort=False)["accuracy"].max()
    return best.groupby(keys, dropna=False, sort=False).mean().rename("general")


def selected_ability(summary: pd.DataFrame, domain: str, keys: list[str]) -> pd.Series:
    """General ability, as `general_ability` has it, of each model under the selected variant of each attack."""
    choice = ["domain", "method", "seed", "attack", "variant"]
    chosen = summary.loc[summary["selected"], choice].drop_duplicates()
    return general_ability(summary.merge(chosen, on=choice), domain, keys)


def unattacked_accuracy(summary: pd.DataFrame, domain: str) -> dict[str, float]:
    """Accuracy of each model without attack."""
    cells = main_cells(summary, domain)
    cells = cells[cells["attack"] == "none"]
    return dict(zip(cells["method"], cells["accuracy"], strict=True))


def model_colours(summary: pd.DataFrame, domain: str) -> dict[str, str]:
    """A colour for each model, the same in all figures."""
    references = {ORIGINAL: "#000000", CONTROL: CONTROL_COLOUR}
    methods = [model for model in models_of(summary, domain) if model not in references]
    colours = {model: METHOD_COLOURS[place % len(METHOD_COLOURS)] for place, model in enumerate(methods)}
    return {model: references.get(model) or colours[model] for model in models_of(summary, domain)}


def draw_variants(summary: pd.DataFrame, domain: str, rows: pd.DataFrame) -> alt.TopLevelMixin:
    """Heat map of accuracy, variants × models."""
    cells = mean_over_seeds(rows, ["method", "variant"])[["method", "variant", "accuracy"]]
    cells["model"] = cells["method"].map(display_name)
    cells["label"] = cells["accuracy"].map(percent)
    models = [display_name(model) for model in table_rows(summary, domain) if model in set(cells["method"])]
    base = alt.Chart(cells).encode(
        x=alt.X("model:N", sort=models, title=None, axis=alt.Axis(orient="top", labelAngle=0, domain=False)),
        y=alt.Y("variant:N", sort=None, title=None, axis=alt.Axis(labelLimit=260, domain=False)),
    )
    heat, text_colour = heat_colours()
    return alt.layer(
        base.mark_rect(stroke="white").encode(color=heat),
        base.mark_text(fontSize=12, fontWeight="bold").encode(text="label:N", color=text_colour),
        width=alt.Step(150),
        height=alt.Step(26),
    )


def heat_colours() -> tuple[alt.Color, Any]:
    """The colour of `accuracy` in a heat map, and of the text on it."""
    colour = alt.Color(
        "accuracy:Q",
        title="accuracy",
        scale=alt.Scale(scheme="viridis", domain=[0, 1]),
        legend=alt.Legend(format=".0%", values=[0, 0.25, 0.5, 0.75, 1]),
    )
    dark = f"isValid(datum.accuracy) && datum.accuracy < {DARK_BELOW}"
    return colour, alt.condition(dark, alt.value("white"), alt.value("black"))


def share_axis(field: str, title: str, ends: list[float]) -> alt.Y:
    """A vertical axis in percent."""
    scale = alt.Scale(domain=ends, nice=False, padding=6)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(format=".0%"))


def draw_placeholder(text: str) -> alt.Chart:
    """A chart that says why there is none."""
    chart = alt.Chart(pd.DataFrame({"text": [text]}), width=480, height=60)
    return chart.mark_text(align="left", fontSize=13, color="#555555").encode(text="text:N", x=alt.value(0))


def stack_domains(
    summary: pd.DataFrame, panel: Callable[[pd.DataFrame, str], alt.TopLevelMixin], note: str
) -> alt.VConcatChart:
    """One panel per domain, titled with its name and a note, in the common style.

    Everything is passed at once: each of Altair's `configure_…` methods would copy the whole chart.
    """
    charts = []
    for domain in domains_of(summary):
        chart = panel(summary, domain)
        chart.title = alt.Title(domain, subtitle=note, anchor="start", fontSize=15, offset=12)
        charts.append(chart)
    axis = alt.AxisConfig(labelFontSize=11, titleFontSize=12, titleFontWeight="normal", gridColor="#e6e6e6")
    return alt.vconcat(
        *charts,
        spacing=40,
        background="white",
        padding=12,
        resolve=alt.Resolve(scale=alt.ScaleResolveMap(color="independent", strokeDash="independent")),
        config=alt.Config(
            font=FONT, view=alt.ViewConfig(stroke=None), axis=axis, legend=alt.LegendConfig(labelFontSize=11)
        ),
    )


def draw_svg(chart: alt.TopLevelMixin, prefix: str) -> str:
    """A chart as SVG whose ids start with `prefix`.

    The renderer counts ids through the whole process. Numbered by chart, the same chart gives the same bytes, and
    several charts can stand in one page.
    """
    stream = io.StringIO()
    chart.save(stream, format="svg")
    svg = stream.getvalue()
    numbers = {name: number for number, name in enumerate(dict.fromkeys(re.findall(r' id="([^"]+)"', svg)))}
    return re.sub(
        r'( id="|url\(#|href="#)([^")]+)', lambda found: f"{found[1]}{prefix}-{numbers.get(found[2], found[2])}", svg
    )
