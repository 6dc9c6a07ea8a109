"""Where pruning removes weights: if hiding sits in a few layers, the selected variant shows which."""

import altair as alt
import pandas as pd

from resurface.analysis.cells import display_name, forget_rows, seeds_note, table_rows
from resurface.analysis.charts import draw_placeholder, stack_domains
from resurface.analysis.findings import Findings

LAYER = r"(?P<block>\d+)\.(?P<module>.+)$"  # …layers.3.mlp.up_proj


def pruning_sparsity(summary: pd.DataFrame, findings: Findings) -> alt.VConcatChart:
    """Heat map of the share of weights that the selected variant removes, blocks × layers; a panel per model."""
    return stack_domains(
        summary, lambda table, domain: _sparsity_panel(table, findings.sparsity, domain), seeds_note(summary)
    )


def _sparsity_panel(summary: pd.DataFrame, sparsity: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    keys = ["domain", "method", "seed", "attack", "variant"]
    rows = forget_rows(summary, domain, "test")
    own = sparsity.astype({"seed": "Int64"}).merge(rows.loc[rows["selected"], keys].drop_duplicates(), on=keys)
    if own.empty:
        return draw_placeholder("pruned weights: attack not run")
    own = own.join(own["layer"].str.extract(LAYER))
    own["share"] = (own["pruned"] / own["weights"]).astype(float)
    cells = own.groupby(["method", "block", "module"], sort=False)["share"].mean().reset_index()
    cells["block"] = cells["block"].astype(int)
    cells["module"] = cells["module"].str.split(".").str[-1].str.removesuffix("_proj")
    colour = alt.Color(
        "share:Q",
        title="removed",
        scale=alt.Scale(scheme="viridis", domain=[0, float(cells["share"].max()) or 1.0]),
        legend=alt.Legend(format=".1%"),
    )
    panels = []
    for model in table_rows(summary, domain):
        shares = cells[cells["method"] == model]
        if shares.empty:
            continue
        base = alt.Chart(shares[["block", "module", "share"]]).encode(
            x=alt.X("module:N", title=None, sort=None, axis=alt.Axis(labelAngle=-40, domain=False)),
            y=alt.Y("block:O", title="block", sort="descending", axis=alt.Axis(domain=False)),
        )
        title = alt.Title(display_name(model), fontSize=12)
        heat = base.mark_rect(stroke="white").encode(color=colour)
        panels.append(heat.properties(title=title, width=alt.Step(26), height=alt.Step(20)))
    return alt.hconcat(*panels)
