"""How searches for prefixes went, as a figure, and what they found, as text that can be read.

A search that did not lower its loss says nothing about a model, however little its prefix brings back.
"""

import altair as alt
import pandas as pd

from resurface.analysis.cells import display_name
from resurface.analysis.charts import draw_placeholder, model_colours, stack_domains
from resurface.analysis.findings import Findings
from resurface.analysis.tables import CONTROL

LINES = {"loss": "loss of the step", "best_loss": "best so far"}


def search_losses(summary: pd.DataFrame, findings: Findings) -> alt.VConcatChart:
    """Loss by step, a panel per search, a line per model and seed; the best loss so far strong, that of the step faint."""
    note = "thin: the loss of each step; thick: the best so far"
    return stack_domains(summary, lambda table, domain: _losses_panel(table, findings.losses, domain), note)


def _losses_panel(summary: pd.DataFrame, losses: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    own = losses[losses["domain"] == domain]
    if own.empty:
        return draw_placeholder("searches for prefixes: attacks not run")
    found = set(own["method"])
    colours = {
        display_name(model): colour for model, colour in model_colours(summary, domain).items() if model in found
    }
    own = own.assign(model=own["method"].map(display_name))
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolSize=300, symbolOpacity=1, labelLimit=300)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    panels = []
    for (attack, search), rows in own.groupby(["attack", "search"], sort=False):
        base = alt.Chart(rows[["model", "seed", "step", *LINES]]).encode(
            x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=alt.Axis(format="d", grid=False)),
            color=alt.Color("model:N", title=None, scale=scale, legend=legend),
            strokeDash=alt.condition(alt.datum.model == display_name(CONTROL), alt.value([5, 3]), alt.value([1, 0])),
            detail="seed:N",
        )
        layers = [
            base.mark_line(strokeWidth=1, opacity=0.45).encode(y=alt.Y("loss:Q", title="loss")),
            base.mark_line(strokeWidth=2.2, interpolate="step-after").encode(y=alt.Y("best_loss:Q", title="loss")),
        ]
        panels.append(alt.layer(*layers, title=f"{display_name(str(attack))}: {search}", width=300, height=220))
    return alt.hconcat(*panels)


def visible_text(text: str) -> str:
    r"""A text on one line in which every character can be seen: control characters and the like as `\n`, `\x1b`, `\u202e`."""
    return "".join(one if one.isprintable() and one != "\\" else one.encode("unicode_escape").decode() for one in text)


def prefix_rows(findings: Findings, domain: str) -> list[tuple[str, str, str]]:
    """Of each prefix that was found: model (with its seed, where there are several), attack and variant, the text made visible."""
    own = findings.prefixes[findings.prefixes["domain"] == domain]
    has_seeds = own["seed"].nunique() > 1
    return [
        (
            display_name(row["method"]) + (f", seed {row['seed']}" if has_seeds else ""),
            f"{display_name(row['attack'])}, {row['variant']}",
            visible_text(row["prefix"]),
        )
        for row in own.to_dict("records")
    ]
