"""The trade-off: what a model still answers about the domain, against its general ability."""

import altair as alt
import numpy as np
import pandas as pd

from resurface.analysis.cells import display_name, seeds_note, strongest_attacks
from resurface.analysis.charts import (
    draw_placeholder,
    general_ability,
    model_colours,
    selected_ability,
    share_axis,
    stack_domains,
)
from resurface.analysis.tables import ORIGINAL

LABEL_GAP = 0.04  # least vertical distance of two labels, as a share of the axis
LABEL_WIDTH = 0.3  # labels that begin closer than this, as a share of the width, may cover each other


def tradeoff(summary: pd.DataFrame) -> alt.VConcatChart:
    """Accuracy on the forget questions against general ability, a point per model; several seeds stand faintly around it.

    A line leads from each point to where the model's strongest attack takes it: it may cost general ability too.
    """
    return stack_domains(summary, _tradeoff_panel, seeds_note(summary))


def _tradeoff_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    by_seed = _tradeoff_points(summary, domain)
    if by_seed.empty:
        return draw_placeholder("trade-off: no benchmark of general ability was run")
    shares = ["general", "attacked_general", "unattacked", "attacked"]
    points = by_seed.groupby(["model", "attack"], sort=False)[shares].mean().reset_index()
    repeated = by_seed[by_seed.groupby("model")["model"].transform("size") > 1]
    colours = {display_name(model): colour for model, colour in model_colours(summary, domain).items()}
    labels = pd.concat(
        [
            points.assign(y=points["unattacked"], text=points["model"]),
            points.assign(general=points["attacked_general"], y=points["attacked"], text=points["attack"]).dropna(
                subset="y"
            ),
        ]
    )[["model", "general", "y", "text"]]
    abilities = by_seed[["general", "attacked_general"]].to_numpy(dtype=float)
    left, right = float(np.nanmin(abilities)) - 0.01, float(np.nanmax(abilities)) + 0.01
    labels["y"] = _spread_labels(list(labels["general"] / (right - left)), list(labels["y"]))

    def x(field: str) -> alt.X:
        scale = alt.Scale(domain=[left, right], nice=False)
        axis = alt.Axis(format=".1%", tickCount=6)
        return alt.X(f"{field}:Q", title="accuracy on general ability", scale=scale, axis=axis)

    y_title, y_domain = "accuracy on forget questions", [0.0, 1.0]
    colour = alt.Color("model:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
    (before, after), (one_before, one_after) = (
        [
            alt.Chart(rows).encode(x=x(ability), y=share_axis(column, y_title, y_domain), color=colour)
            for ability, column in (("general", "unattacked"), ("attacked_general", "attacked"))
        ]
        for rows in (points, repeated)
    )
    text = alt.Chart(labels).encode(x=x("general"), y=share_axis("y", y_title, y_domain), text="text:N")
    return alt.layer(
        one_before.mark_point(filled=True, size=40, opacity=0.35),
        one_after.mark_point(filled=True, size=40, opacity=0.35, shape="triangle-up"),
        before.mark_rule(strokeWidth=1.5).encode(x2="attacked_general", y2="attacked"),
        text.mark_text(align="left", dx=8, fontSize=11, stroke="white", strokeWidth=4, strokeJoin="round"),
        before.mark_point(filled=True, size=80, opacity=1),
        after.mark_point(filled=True, size=80, opacity=1, shape="triangle-up"),
        text.mark_text(align="left", dx=8, fontSize=11).encode(color=colour),
        width=540,
        height=340,
    )


def _tradeoff_points(summary: pd.DataFrame, domain: str) -> pd.DataFrame:
    """One row per model and seed: `general` ability and accuracy, `unattacked` and attacked, and the `attack`."""
    rows = summary[(summary["domain"] == domain) & (summary["split"] == "test") & summary["selected"]]
    ability = general_ability(summary[summary["attack"] == "none"], domain, ["method", "seed"])
    attacked_ability = selected_ability(summary, domain, ["method", "seed", "attack"])
    strongest = strongest_attacks(summary, domain)
    points = []
    for model, seed, share in ability.reset_index().itertuples(index=False, name=None):
        has_seed = pd.notna(seed)
        is_model = (rows["method"] == model) & ((rows["seed"] == seed) if has_seed else True)
        own = rows[is_model & (rows["benchmark"] == domain)]
        attack = strongest.get(model) if model != ORIGINAL else None
        under = own[own["attack"] == attack]
        # A reference without attack has no seed, and its attacks have them all.
        abilities = [attacked_ability.get((model, one, attack)) for one in under["seed"]]
        points.append(
            {
                "model": display_name(model),
                "general": share,
                "unattacked": own.loc[own["attack"] == "none", "accuracy"].mean(),
                "attacked_general": pd.Series(abilities, dtype=float).mean(),
                "attacked": under["accuracy"].mean(),
                "attack": f"under {display_name(attack)}" if attack else "",
            }
        )
    return pd.DataFrame(points)


def _spread_labels(x: list[float], y: list[float]) -> list[float]:
    """Move labels up until none covers another label or another point.

    Args:
        x: positions of the points that the labels begin at, as shares of the width.
        y: their heights, as shares of the axis.
    """
    placed: dict[int, float] = {}

    def is_covering(label: int, height: float) -> bool:
        on_label = (
            abs(x[other] - x[label]) < LABEL_WIDTH and abs(placed[other] - height) < LABEL_GAP for other in placed
        )
        on_point = (
            0 < point_x - x[label] < LABEL_WIDTH and abs(point_y - height) < LABEL_GAP / 2
            for point_x, point_y in zip(x, y, strict=True)
        )
        return any(on_label) or any(on_point)

    for label in sorted(range(len(y)), key=lambda label: y[label]):
        height = y[label]
        while is_covering(label, height):
            height += LABEL_GAP / 4
        placed[label] = height
    return [placed[label] for label in range(len(y))]
