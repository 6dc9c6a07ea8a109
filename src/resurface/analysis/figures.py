"""The figures, as Altair charts of the summary.

Every chart function takes the summary, and some what attacks found besides (`FOUND_FIGURES`), and stacks one panel per domain; where
an attack was not run, its panel says so.
"""

import math
from collections.abc import Callable
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from resurface.analysis.cells import (
    attacks_of,
    cells_by_name,
    display_name,
    interval,
    main_cells,
    mean_over_seeds,
    models_of,
    percent,
    seeds_note,
    table_rows,
)
from resurface.analysis.charts import (
    CONTROL_COLOUR,
    draw_placeholder,
    draw_svg,
    draw_variants,
    general_ability,
    heat_colours,
    model_colours,
    share_axis,
    stack_domains,
    unattacked_accuracy,
    with_best_template,
)
from resurface.analysis.findings import Findings
from resurface.analysis.searches import search_losses
from resurface.analysis.sparsity import pruning_sparsity
from resurface.analysis.summary import TRANSFERRED
from resurface.analysis.tables import CONTROL, ORIGINAL
from resurface.analysis.tradeoff import tradeoff
from resurface.artifacts import publish

MISSING_COLOUR = "#e4e4e4"
STREAMS = {"attention": "attention output", "middle": "middle", "mlp": "MLP output", "block": "block output"}
MOST_BLOCKS_WITH_NUMBERS = 12
LENS_PANELS_IN_A_ROW = 3
CONTROL_GAIN = "control: gain over its own accuracy without attack"
PREFIX_ATTACKS = ["random_prefix", "gcg", "enhanced_gcg"]
DATASETS = ["forget", "retain", "text"]


def main_table(summary: pd.DataFrame) -> alt.VConcatChart:
    """Heat map of test accuracy, models × attacks, of the selected variants."""
    return stack_domains(summary, _main_table_panel, seeds_note(summary))


def _main_table_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    cells = cells_by_name(main_cells(summary, domain))
    models = models_of(summary, domain)
    rows = []
    for model in table_rows(summary, domain):
        for attack in attacks_of(summary):
            row = {"model": display_name(model), "attack": display_name(attack), "accuracy": None, "interval": ""}
            if (model, attack) in cells:
                cell = cells[model, attack]
                row["accuracy"] = cell["accuracy"]
                row["label"] = percent(cell["accuracy"])
                row["interval"] = interval(cell["ci_low"], cell["ci_high"])
            else:
                row["label"] = "–"
                row["interval"] = "not run" if model in models else "no control"
            rows.append(row)
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("attack:N", sort=None, title=None, axis=alt.Axis(orient="top", labelAngle=0, labelLimit=108)),
        y=alt.Y("model:N", sort=None, title=None, axis=alt.Axis(labelLimit=200)),
    )
    heat, text_colour = heat_colours()
    return alt.layer(
        base.mark_rect(color=MISSING_COLOUR, stroke="white"),
        base.mark_rect(stroke="white").encode(color=heat),
        base.mark_text(fontSize=14, fontWeight="bold", dy=-7).encode(text="label:N", color=text_colour),
        base.mark_text(fontSize=11, dy=10).encode(text="interval:N", color=text_colour),
        width=alt.Step(112),
        height=alt.Step(46),
    )


def finetuning_curves(summary: pd.DataFrame) -> alt.VConcatChart:
    """Test accuracy against the number of finetuning samples, one line per method and one for the control."""
    return stack_domains(summary, _finetuning_curves_panel, seeds_note(summary))


def _finetuning_curves_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    table = _finetuning_rows(summary, domain)
    if table.empty:
        return draw_placeholder("finetuning: attack not run")
    lines = table.assign(
        line=table["method"].map(display_name), y=table["accuracy"], low=table["ci_low"], high=table["ci_high"]
    )
    colours = {
        display_name(model): colour for model, colour in model_colours(summary, domain).items() if model != ORIGINAL
    }
    original = unattacked_accuracy(summary, domain).get(ORIGINAL)
    return _sample_panels(lines, colours, "test accuracy", [0.0, 1.0], original)


def finetuning_recovery(summary: pd.DataFrame) -> alt.VConcatChart:
    """Recovery against the number of finetuning samples.

    The control has nothing to recover. Its line is what finetuning taught it, on the same scale: its gain over its own
    accuracy without attack, as a share of the distance from there to the original.
    """
    return stack_domains(summary, _finetuning_recovery_panel, seeds_note(summary))


def _finetuning_recovery_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    table = _finetuning_rows(summary, domain)
    if table.empty:
        return draw_placeholder("finetuning: attack not run")
    methods = table[table["recovery"].notna() & (table["method"] != CONTROL)]
    lines = methods.assign(
        line=methods["method"].map(display_name),
        y=methods["recovery"],
        low=methods["recovery_ci_low"],
        high=methods["recovery_ci_high"],
    )
    found = set(methods["method"])
    colours = {
        display_name(model): colour for model, colour in model_colours(summary, domain).items() if model in found
    }
    unattacked = unattacked_accuracy(summary, domain)
    control = table[table["method"] == CONTROL]
    distance = unattacked.get(ORIGINAL, math.nan) - unattacked.get(CONTROL, math.nan)
    if not control.empty and distance > 0:
        gain = (control["accuracy"] - unattacked[CONTROL]) / distance
        lines = pd.concat([lines, control.assign(line=CONTROL_GAIN, y=gain)])
        colours[CONTROL_GAIN] = CONTROL_COLOUR
    if lines.empty:
        return draw_placeholder("finetuning: no recovery to show, because there is no original to compare with")
    ends = lines[["y", "low", "high"]].to_numpy(dtype=float)
    lowest, highest = float(np.nanmin(ends)), float(np.nanmax(ends))
    return _sample_panels(lines, colours, "recovery", [max(-0.5, min(0.0, lowest)), min(1.25, max(1.0, highest))], None)


def _finetuning_rows(summary: pd.DataFrame, domain: str) -> pd.DataFrame:
    """The finetuning attack on methods and control by `dataset` and `count`; count 0 is the model without attack."""
    rows = with_best_template(summary[(summary["attack"] == "finetuning") & (summary["method"] != ORIGINAL)], domain)
    named = rows["variant"].str.extract(r"^(?P<dataset>[a-z_]+)-n(?P<count>\d+)$").dropna()
    means = mean_over_seeds(rows.loc[named.index].join(named), ["method", "dataset", "count"])
    means["count"] = means["count"].astype(int)
    cells = main_cells(summary, domain)
    start = cells[cells["attack"] == "none"].assign(count=0)
    return pd.concat(
        [means, means[["method", "dataset"]].drop_duplicates().merge(start, on="method")], ignore_index=True
    )


def _sample_panels(
    lines: pd.DataFrame, colours: dict[str, str], y_title: str, y_domain: list[float], original: float | None
) -> alt.HConcatChart:
    """Lines over the number of samples, one panel per data set.

    Args:
        lines: `dataset`, `count`, `line` (its name), `y`, `low` and `high`.
        colours: names of the lines in order, and their colours.
        y_title: title of the vertical axis.
        y_domain: its ends.
        original: where to rule the original's accuracy, None for nowhere.
    """
    dashes = [[5, 3] if line in (display_name(CONTROL), CONTROL_GAIN) else [1, 0] for line in colours]
    legend = alt.Legend(
        orient="bottom",
        labelLimit=400,
        columnPadding=24,
        columns=5,
        symbolType="stroke",
        symbolStrokeWidth=2,
        symbolSize=300,
        symbolOpacity=1,
    )
    colour = alt.Color(
        "line:N", title=None, scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=legend
    )
    dash = alt.StrokeDash("line:N", title=None, scale=alt.Scale(domain=list(colours), range=dashes), legend=legend)
    y = share_axis("y", y_title, y_domain)
    found = set(lines["dataset"])
    panels = []
    for dataset in [name for name in DATASETS if name in found] + sorted(found - set(DATASETS)):
        rows = lines.loc[lines["dataset"] == dataset, ["line", "count", "y", "low", "high"]]
        counts = sorted({int(count) for count in rows["count"]})
        smallest = next(count for count in counts if count > 0)
        x_scale = alt.Scale(type="symlog", constant=smallest, domain=[0, counts[-1]], nice=False, padding=6)
        x_axis = alt.Axis(values=counts, format="d", grid=False, labelFlush=False)
        x = alt.X("count:Q", title="samples (0: no attack)", scale=x_scale, axis=x_axis)
        base = alt.Chart(rows).encode(x=x, y=y, color=colour)
        layers = [
            base.mark_area(opacity=0.13, clip=True).encode(y=share_axis("low", y_title, y_domain), y2="high"),
            base.mark_line(clip=True).encode(strokeDash=dash),
            base.mark_point(filled=True, size=36, opacity=1, clip=True),
        ]
        if original is not None:
            rule = alt.Chart(pd.DataFrame({"y": [original], "text": ["original"]})).encode(y=y)
            layers.append(rule.mark_rule(strokeDash=[6, 3]))
            layers.append(rule.mark_text(align="left", dx=4, dy=9, fontSize=11).encode(x=alt.value(0), text="text:N"))
        panels.append(alt.layer(*layers, title=f"data: {dataset}", width=230, height=240))
    return alt.hconcat(*panels)


def lens_by_block(summary: pd.DataFrame) -> alt.VConcatChart:
    """Heat map of test accuracy of the logit lens, streams × blocks; a panel per model, with its accuracy without attack and its best cell."""
    return stack_domains(summary, _lens_panel, seeds_note(summary))


def _lens_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    rows = with_best_template(summary[summary["attack"] == "logit_lens"], domain)
    named = rows["variant"].str.extract(rf"^(?P<stream>{'|'.join(STREAMS)})-block(?P<block>\d+)$").dropna()
    if named.empty:
        return draw_placeholder("logit lens: attack not run")
    means = mean_over_seeds(rows.loc[named.index].join(named), ["method", "stream", "block"])
    cells = means[["method", "accuracy"]].assign(
        stream=means["stream"].map(STREAMS), block=means["block"].astype(int), label=means["accuracy"].map(percent)
    )
    blocks = cells["block"].nunique()
    has_numbers = blocks <= MOST_BLOCKS_WITH_NUMBERS
    heat, text_colour = heat_colours()
    unattacked = unattacked_accuracy(summary, domain)
    panels: list[alt.LayerChart] = []
    for model in models_of(summary, domain):
        own = cells[cells["method"] == model]
        if own.empty:
            continue
        is_first_in_row = len(panels) % LENS_PANELS_IN_A_ROW == 0
        base = alt.Chart(own).encode(
            x=alt.X("block:O", title="block", axis=alt.Axis(labelAngle=0, labelOverlap=True, domain=False)),
            y=alt.Y(
                "stream:N",
                title=None,
                sort=list(STREAMS.values()),
                axis=alt.Axis(labels=is_first_in_row, ticks=is_first_in_row, domain=False),
            ),
        )
        layers = [base.mark_rect(stroke="white", strokeWidth=1 if has_numbers else 0.5).encode(color=heat)]
        if has_numbers:
            layers.append(base.mark_text(fontSize=10, fontWeight="bold").encode(text="label:N", color=text_colour))
        best = own.iloc[own["accuracy"].argmax()]
        notes = [
            f"{percent(unattacked.get(model, math.nan))} without attack",
            f"{best['label']} at best ({best['stream']}, block {best['block']})",
        ]
        title = alt.Title(display_name(model), subtitle=notes, fontSize=12)
        width = max(150, blocks * (34 if has_numbers else 9))
        panels.append(alt.layer(*layers, title=title, width=width, height=24 * len(STREAMS)))
    return alt.concat(*panels, columns=LENS_PANELS_IN_A_ROW)


def pruning_grid(summary: pd.DataFrame) -> alt.VConcatChart:
    """Test accuracy after set difference pruning by p and q, and general ability below it; a panel per model and scoring."""
    return stack_domains(summary, _pruning_panel, seeds_note(summary))


def _pruning_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    pruned = summary[(summary["attack"] == "pruning") & (summary["domain"] == domain)]
    rows = with_best_template(pruned, domain)
    slug = r"^(?P<scoring>.+-(?:gradient|activation))-p(?P<p>[\d.]+)-q(?P<q>[\d.]+)$"
    named = rows["variant"].str.extract(slug).dropna().astype({"p": float, "q": float})
    if named.empty:
        return draw_placeholder("pruning: attack not run")
    keys = ["method", "scoring", "p", "q"]
    means = mean_over_seeds(rows.loc[named.index].join(named), [*keys, "variant"])
    ability = general_ability(pruned, domain, ["method", "variant"])
    cells = means.join(ability, on=["method", "variant"])[[*keys, "accuracy", "general"]]
    cells["label"] = cells["accuracy"].map(percent)
    cells["general"] = cells["general"].map(percent, na_action="ignore").fillna("")
    heat, text_colour = heat_colours()
    rows_of_panels = []
    for scoring in dict.fromkeys(cells["scoring"]):
        panels = []
        for model in table_rows(summary, domain):
            own = cells[(cells["scoring"] == scoring) & (cells["method"] == model)]
            if own.empty:
                continue
            base = alt.Chart(own).encode(
                x=alt.X("q:O", title="q: top percent on forget data", axis=alt.Axis(labelAngle=0, domain=False)),
                y=alt.Y("p:O", title="p: top percent on utility data", sort="descending", axis=alt.Axis(domain=False)),
            )
            layers = [
                base.mark_rect(stroke="white").encode(color=heat),
                base.mark_text(fontSize=11, fontWeight="bold", dy=-6).encode(text="label:N", color=text_colour),
                base.mark_text(fontSize=10, dy=7).encode(text="general:N", color=text_colour),
            ]
            title = alt.Title(f"{display_name(model)}: {scoring}", fontSize=12)
            size = {"width": max(220, 44 * own["q"].nunique()), "height": max(170, 34 * own["p"].nunique())}
            panels.append(alt.layer(*layers, title=title, **size))
        rows_of_panels.append(alt.hconcat(*panels))
    return alt.vconcat(*rows_of_panels)


def perturbations(summary: pd.DataFrame) -> alt.VConcatChart:
    """Test accuracy under each way of perturbing the questions, ways × models."""
    return stack_domains(summary, _perturbations_panel, seeds_note(summary))


def _perturbations_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    rows = with_best_template(summary[summary["attack"] == "perturbation"], domain)
    if rows.empty:
        return draw_placeholder("perturbation: attack not run")
    return draw_variants(summary, domain, _without_seeds(rows))


def prefixes(summary: pd.DataFrame) -> alt.VConcatChart:
    """Test accuracy under each prefix, prefixes × models: random ones, those found on the model, and those found on others."""
    return stack_domains(summary, _prefixes_panel, seeds_note(summary))


def _prefixes_panel(summary: pd.DataFrame, domain: str) -> alt.TopLevelMixin:
    rows = with_best_template(summary[summary["attack"].isin(PREFIX_ATTACKS)], domain)
    if rows.empty:
        return draw_placeholder(f"{', '.join(PREFIX_ATTACKS)}: attacks not run")
    return draw_variants(summary, domain, _without_seeds(rows))


def _without_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows under the same name for all seeds of the model that a variant comes from."""
    names = rows["variant"].str.replace(rf"^({TRANSFERRED}.+?)-seed\d+-", r"\1-", regex=True)
    return rows.assign(variant=names)


FIGURES: dict[str, Callable[[pd.DataFrame], alt.VConcatChart]] = {
    "main_table": main_table,
    "finetuning_curves": finetuning_curves,
    "finetuning_recovery": finetuning_recovery,
    "lens_by_block": lens_by_block,
    "pruning_grid": pruning_grid,
    "perturbations": perturbations,
    "prefixes": prefixes,
    "tradeoff": tradeoff,
}
FOUND_FIGURES: dict[str, Callable[[pd.DataFrame, Findings], alt.VConcatChart]] = {
    "search_losses": search_losses,
    "pruning_sparsity": pruning_sparsity,
}


def draw_figure(name: str, summary: pd.DataFrame, findings: Findings) -> alt.VConcatChart:
    """Draw one of `FIGURES` or `FOUND_FIGURES`."""
    return FIGURES[name](summary) if name in FIGURES else FOUND_FIGURES[name](summary, findings)


def write_figures(summary: pd.DataFrame, findings: Findings, folder: Path) -> None:
    """Write every figure as `{name}.svg` and `{name}.png` (two pixels a unit)."""
    for name in (*FIGURES, *FOUND_FIGURES):
        svg = draw_svg(draw_figure(name, summary, findings), name)
        with publish(folder / f"{name}.svg") as temporary:
            temporary.write_text(svg, encoding="utf-8")
        with publish(folder / f"{name}.png") as temporary:
            temporary.write_bytes(vl_convert.svg_to_png(svg, scale=2))
