"""The report: one HTML page that says what resurfaced, needs nothing else, and loads nothing.

All text that comes from data or settings goes through Jinja's escaping; only the figures and one script are inserted as they are;
the renderer has escaped the figures' text, and the script (`report.js`, which sorts and filters tables) holds none. A content security
policy forbids all other scripts, and requests.
"""

import base64
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from resurface.analysis.answers import describe_answers
from resurface.analysis.captions import CAPTIONS, caption_of
from resurface.analysis.cells import (
    SPREAD_MEASURES,
    attacks_of,
    cells_by_name,
    display_name,
    domains_of,
    has_control,
    is_attacked_method,
    main_cells,
    mean_over_seeds,
    models_of,
    p_text,
    percent,
    points,
    range_in_tenths,
    seeds_note,
    strongest_attacks,
    table_rows,
    tenths,
    whole,
)
from resurface.analysis.charts import DARK_BELOW, draw_svg, selected_ability
from resurface.analysis.costs import list_versions, sum_costs
from resurface.analysis.figures import draw_figure
from resurface.analysis.findings import Findings
from resurface.analysis.perplexity import TEXTS
from resurface.analysis.searches import prefix_rows
from resurface.analysis.sparing import KEPT, choose_sparing
from resurface.analysis.tables import CONTROL, ORIGINAL
from resurface.analysis.verdict import GAINS, NOT_RESURFACED, RESURFACES, find_beyond, is_short
from resurface.artifacts import publish
from resurface.registry import ATTACKS

VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]
VERDICT_LOOKS = {RESURFACES: "found", GAINS: "found", NOT_RESURFACED: "clear"}  # others are open


@dataclass(frozen=True)
class Tables:
    """What the report is made of.

    Attributes:
        summary: the summary table.
        worst_case: one row per attacked model (`resurface.analysis.worst_case`).
        evidence: one row per unlearned model and attack (`resurface.analysis.evidence`).
        verdicts: one row per unlearned model (`resurface.analysis.verdict`).
        findings: what attacks left besides interventions (`resurface.analysis.findings`).
        refusals: one row per prompt, whether its answer was a refusal; None if refusals were not counted.
        perplexity: one row per variant (`resurface.analysis.perplexity`); None if there is no such table.
        answers: one row per model, attack and question (`resurface.analysis.answers`); None if there is no such table.
        costs: one row per job (`resurface.analysis.costs`); None if there is no such table.
        hashes: the files that these tables were read from → their SHA-256.
        questions: of each domain whose questions may be shown, id → text (`resurface.analysis.answers.question_texts`).
    """

    summary: pd.DataFrame
    worst_case: pd.DataFrame
    evidence: pd.DataFrame
    verdicts: pd.DataFrame
    findings: Findings
    refusals: pd.DataFrame | None = None
    perplexity: pd.DataFrame | None = None
    answers: pd.DataFrame | None = None
    costs: pd.DataFrame | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    questions: dict[str, dict[str, str]] = field(default_factory=dict)


def write_report(tables: Tables, experiment: dict[str, Any], output: Path) -> None:
    """Write the report.

    Args:
        tables: what it is made of.
        experiment: the configuration, shown as it is.
        output: the HTML file.
    """
    summary = tables.summary
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    confidence = experiment.get("summary", {}).get("confidence")
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.jinja").render(
        domains=[_domain_section(tables, domain, place) for place, domain in enumerate(domains_of(summary))],
        seeds=seeds_note(summary),
        interval_name=f"{percent(confidence)} confidence intervals" if confidence else "confidence intervals",
        kept=percent(KEPT),
        costs=None if tables.costs is None else _cost_section(tables.costs),
        hashes=tables.hashes,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        settings=yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True, width=100),
    )
    with publish(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _domain_section(tables: Tables, domain: str, place: int) -> dict[str, Any]:
    """What the template needs for one domain."""
    refusals, findings, worst_case = tables.refusals, tables.findings, tables.worst_case
    summary = tables.summary[tables.summary["domain"] == domain]
    evidence = tables.evidence[tables.evidence["domain"] == domain]
    cells = cells_by_name(_count_seeds(main_cells(summary, domain), evidence))
    models = models_of(summary, domain)
    attacks = attacks_of(summary)
    abilities = _ability_texts(summary, domain, cells)
    figures = [
        {
            "title": title,
            "caption": caption_of(name, CONTROL in models),
            "svg": Markup(draw_svg(draw_figure(name, summary, findings), f"figure-{place}-{name}")),
        }
        for name, (title, *_) in CAPTIONS.items()
        if name != "main_table"  # the page has a table in its place
    ]
    return {
        "name": domain,
        "anchor": f"domain-{place}",
        "verdicts": _verdict_cards(tables.verdicts[tables.verdicts["domain"] == domain]),
        "evidence": _evidence_rows(evidence),
        "sentences": _sentences(summary, domain, cells),
        "attacks": [display_name(attack) for attack in attacks],
        "rows": [
            (
                display_name(model),
                [
                    _table_cell(
                        cells.get((model, attack)),
                        abilities.get((model, attack), []),
                        "not run" if model in models else "no control",
                        CONTROL in models,
                    )
                    for attack in attacks
                ],
            )
            for model in table_rows(summary, domain)
        ],
        "worst_case": _worst_case_rows(worst_case[worst_case["domain"] == domain]),
        "figures": figures,
        "tradeoff": _tradeoff_table(summary, refusals, domain),
        "texts": list(TEXTS.values()),
        "perplexity": _perplexity_rows(summary, tables.perplexity, domain),
        "prefixes": prefix_rows(findings, domain),
        "rewrites": _rewrite_rows(findings.rewrites[findings.rewrites["domain"] == domain]),
        "refusals_counted": refusals is not None,
        "answers": _answers(tables, domain, attacks),
    }


def _count_seeds(cells: pd.DataFrame, evidence: pd.DataFrame) -> pd.DataFrame:
    """The cells of the main table with the evidence's intervals: of several seeds they know what so few of them leave open."""
    keys = ["method", "attack"]
    ends = [f"{measure}_ci_{end}" for measure in ("recovery", "excess") for end in ("low", "high")]
    counted = cells.set_index(keys)
    counted.update(evidence.set_index(keys)[ends])
    return counted.reset_index()


def _cost_section(costs: pd.DataFrame) -> dict[str, Any]:
    """What the template needs to say what the jobs took, on which machines and with which versions."""
    rows = []
    for row in sum_costs(costs).to_dict("records"):
        stage = " ".join(filter(None, [display_name(row["rule"]), display_name(row["name"])]))
        device = f"{row['peak_device_memory'] / 2**30:.1f} GiB" if row["peak_device_memory"] else "–"
        memory = f"{row['peak_memory'] / 2**30:.1f} GiB"
        timed = [(_duration(row[column]), row[column]) for column in ("seconds", "longest")]
        rows.append((stage, row["jobs"], timed, [memory, device]))
    devices = costs.groupby(["device", "threads"], sort=False)["wall_seconds"].agg(["size", "sum"]).reset_index()
    return {
        "rows": rows,
        "jobs": len(costs),
        "total": _duration(costs["wall_seconds"].sum()),
        "devices": [
            f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] > 1)}: {row['size']} jobs, {_duration(row['sum'])}"
            for row in devices.to_dict("records")
        ],
        "versions": [(name, ", ".join(versions)) for name, versions in list_versions(costs).items()],
    }


def _duration(seconds: float) -> str:
    """A time in the unit in which it has two or three digits."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _verdict_cards(verdicts: pd.DataFrame) -> list[dict[str, str]]:
    """A card for each verdict: the model, the verdict, how it looks, and why."""
    return [
        {
            "model": display_name(row["method"]),
            "verdict": row["verdict"],
            "kind": "trace" if row["trace"] else VERDICT_LOOKS.get(row["verdict"], "open"),
            "reason": row["reason"],
            "settled_by": row["settled_by"],
        }
        for row in verdicts.to_dict("records")
    ]


def _answers(tables: Tables, domain: str, attacks: list[str]) -> Markup | None:
    """A domain's answers for the page's script, in which nothing can end the element that holds them."""
    if tables.answers is None:
        return None
    own = tables.answers[tables.answers["domain"] == domain]
    described = describe_answers(own, attacks, tables.questions.get(domain, {}))
    return None if described is None else Markup(described)


def _evidence_rows(evidence: pd.DataFrame) -> list[tuple[str, str, list[str]]]:
    """Model, attack, and what they say: excess and gain with intervals and p values, and the ends and sizes that verdicts turn on."""
    rows = []
    of_excess, of_gain = (find_beyond(evidence, measure).to_dict("records") for measure in ("excess", "gain"))
    for excess, gain in zip(of_excess, of_gain, strict=True):
        beyond = f"; {points(excess['beyond'])} beyond control or guess" if is_short(excess, "excess") else ""
        texts = [percent(excess["accuracy"]), percent(excess["control_accuracy"])]
        texts += [_points_text(excess, "excess") + beyond, p_text(excess["beyond_p_adjusted"])]
        texts += [_points_text(gain, "gain"), p_text(gain["beyond_p_adjusted"])]
        measure, row = ("gain", gain) if pd.isna(excess["excess"]) else ("excess", excess)
        texts += [tenths(row["beyond_least"]), tenths(row[f"{measure}_most"]), tenths(row["beyond_detectable"])]
        spread = f" ({range_in_tenths(row[f'{measure}_min'], row[f'{measure}_max'])})"
        texts.append(f"{row['seeds']}{spread if row['seeds'] > 1 and pd.notna(row[measure]) else ''}")
        rows.append((display_name(row["method"]), display_name(row["attack"]), texts))
    return rows


def _sentences(summary: pd.DataFrame, domain: str, cells: dict[tuple[str, str], pd.Series]) -> list[tuple[str, str]]:
    """For each model its name and what became of it, in one sentence."""
    strongest = strongest_attacks(summary, domain)
    sentences = []
    for model in models_of(summary, domain):
        text = f"{percent(cells[model, 'none']['accuracy'])} without attack" if (model, "none") in cells else ""
        attack = strongest.get(model)
        if attack and model != ORIGINAL:
            cell = cells[model, attack]
            text += f", {percent(cell['accuracy'])} under {display_name(attack)} ({cell['choice']})"
            if model != CONTROL:
                text += f": {_recovery_text(cell)}, {_excess_text(cell, has_control(summary, domain))}"
        sentences.append((display_name(model), f"{text}."))
    if not has_control(summary, domain):
        sentences.append(
            (display_name(CONTROL), "no control. What an attack taught cannot be told from what it recovered.")
        )
    return sentences


def _recovery_text(cell: pd.Series) -> str:
    """Recovery with its interval."""
    if pd.isna(cell["recovery"]):
        return "recovery –"
    return f"recovery {percent(cell['recovery'])} [{_ends(cell['recovery_ci_low'], cell['recovery_ci_high'])}]"


def _excess_text(cell: pd.Series, has_control: bool) -> str:
    """Excess over the control with its interval, or why there is none."""
    if pd.isna(cell["excess"]):
        return "excess over control – (not run on the control)" if has_control else "excess over control: no control"
    return f"excess over control ({percent(cell['control_accuracy'])}) {_points_text(cell, 'excess')}"


def _points_text(row: dict[Any, Any] | pd.Series, measure: str) -> str:
    """A difference in points with its interval, or a dash where there is none."""
    if pd.isna(row[measure]):
        return "–"
    return f"{points(row[measure])} [{_ends(row[f'{measure}_ci_low'], row[f'{measure}_ci_high'])}]"


def _ends(low: float, high: float) -> str:
    """An interval as verdicts write it, on one line: a browser may break it after a dash, but not at these spaces."""
    return "–" if pd.isna(low) or pd.isna(high) else f"{whole(low)}\u00a0to\u00a0{whole(high)}"


def _ability_texts(
    summary: pd.DataFrame, domain: str, cells: dict[tuple[str, str], pd.Series]
) -> dict[tuple[str, str], list[str]]:
    """Model and attack → what the attack costs in general ability, for attacks that change the model.

    That is the general ability under the selected variant and, where something else is better among what keeps general ability,
    what that brings back.
    """
    changing = {name for name, entry in ATTACKS.items() if entry.changes_model}
    ability = selected_ability(summary, domain, ["method", "attack"])
    spared = choose_sparing(summary, domain)
    is_known = not spared.empty
    texts = {}
    for (model, attack), cell in cells.items():
        if attack not in changing or (model, attack) not in ability.index:
            continue
        texts[model, attack] = [f"general {percent(ability[model, attack])}"]
        own = spared[(spared["method"] == model) & (spared["attack"] == attack)]
        choice = " / ".join(dict.fromkeys(own["variant"] + ", " + own["template"]))
        if own.empty and is_known:
            texts[model, attack].append(f"no variant keeps {percent(KEPT)} of general ability on validation questions")
        elif not own.empty and choice != cell["choice"]:
            seeds = f" in {len(own)} of {cell['seeds']} seeds" if len(own) < cell["seeds"] else ""
            recovery = "" if own["recovery"].isna().all() else f", recovery {percent(own['recovery'].mean())}"
            texts[model, attack].append(
                f"keeping {percent(KEPT)} of general ability on validation questions{seeds}: {percent(own['accuracy'].mean())} "
                f"({choice}){recovery}, "
                f"general {percent(own['general'].mean())}"
            )
    return texts


def _table_cell(cell: pd.Series | None, ability: list[str], absent: str, has_control: bool) -> dict[str, Any]:
    """A cell of the main table: the coloured number, and lines of details below it.

    Args:
        cell: one row of `main_cells`; None if there is none.
        ability: what the attack costs in general ability.
        absent: what to say in that case.
        has_control: whether there is a control.
    """
    if cell is None:
        return {"accuracy": absent, "interval": "", "style": "", "details": [], "small": []}
    details = [cell["choice"]]
    shown = SPREAD_MEASURES if is_attacked_method(cell) else ["accuracy"]
    if is_attacked_method(cell):
        details += [_recovery_text(cell), _excess_text(cell, has_control)]
    details += ability
    small = [f"best on test: {percent(cell['best_accuracy'])} ({cell['best_choice']})"]
    if cell["seeds"] > 1:
        spreads = [f"{measure} {_spread(cell, measure)}" for measure in shown if pd.notna(cell[f"{measure}_min"])]
        small.append(f"{cell['seeds']} seeds: {', '.join(spreads)}")
    return {
        "accuracy": percent(cell["accuracy"]),
        "interval": f"[{_ends(cell['ci_low'], cell['ci_high'])}]",
        "style": _heat_style(cell["accuracy"]),
        "details": details,
        "small": small,
    }


def _spread(cell: pd.Series, measure: str) -> str:
    """The least and the largest value over seeds."""
    return _ends(cell[f"{measure}_min"], cell[f"{measure}_max"])


def _heat_style(share: float) -> str:
    """Background and text colour of a share: viridis, interpolated between nine of its colours."""
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    left = min(int(place), len(VIRIDIS) - 2)
    ends = [bytes.fromhex(colour) for colour in VIRIDIS[left : left + 2]]
    mixed = [round(first + (place - left) * (second - first)) for first, second in zip(*ends, strict=True)]
    text = "fff" if share < DARK_BELOW else "000"
    return f"background:#{bytes(mixed).hex()};color:#{text}"


def _tradeoff_table(summary: pd.DataFrame, refusals: pd.DataFrame | None, domain: str) -> dict[str, Any]:
    """Accuracy without attack and share of refusals, by benchmark and template.

    Returns:
        `groups`: benchmarks with the names of their columns; `rows`: models with one text a column.
    """
    unattacked = summary[(summary["attack"] == "none") & (summary["split"] == "test")]
    tables = {"": mean_over_seeds(unattacked, ["method", "benchmark", "template"])}
    if refusals is not None:
        tables["refused, "] = _refused_shares(refusals, domain)
    benchmarks = list(dict.fromkeys([domain, *unattacked["benchmark"]]))
    columns = [
        (benchmark, kind, template)
        for benchmark in benchmarks
        for kind, table in tables.items()
        for template in table.loc[table["benchmark"] == benchmark, "template"].unique()
    ]
    texts = {
        (row["method"], row["benchmark"], kind, row["template"]): _share_text(row)
        for kind, table in tables.items()
        for _, row in table.iterrows()
    }
    return {
        "groups": [
            (benchmark, [kind + template for own, kind, template in columns if own == benchmark])
            for benchmark in benchmarks
        ],
        "rows": [
            (display_name(model), [texts.get((model, *column), ("–", "")) for column in columns])
            for model in models_of(summary, domain)
        ],
    }


def _worst_case_rows(worst_case: pd.DataFrame) -> list[tuple[str, str, list[str]]]:
    """Of each attacked model its best attacks, and as means over seeds their accuracy and the shares of recovered facts.

    The excess over the control comes first among the shares, with its interval.
    """
    rows = []
    for method, group in worst_case.groupby("method", sort=False):
        attacks = " / ".join(dict.fromkeys(group["best_attack"].map(display_name)))
        shares = ["accuracy", "recovered", "excess", "guessing", "beyond_guessing", "excess_ci_low", "excess_ci_high"]
        means = group[shares].astype(float).mean()
        others = [percent(means[share]) for share in ("recovered", "guessing", "beyond_guessing")]
        texts = [percent(means["accuracy"]), _points_text(means, "excess"), *others]
        rows.append((display_name(str(method)), attacks, texts))
    return rows


def _perplexity_rows(
    summary: pd.DataFrame, perplexity: pd.DataFrame | None, domain: str
) -> list[tuple[str, str, str, list[str]]]:
    """Perplexities under attacks on the prompt, of the selected variant in its template, as means over seeds.

    Returns:
        model, attack, variant and template, and the five numbers of `TEXTS`.
    """
    if perplexity is None:
        return []
    keys = ["method", "seed", "attack", "variant", "template"]
    chosen = summary.loc[summary["selected"], keys].drop_duplicates()
    own = perplexity[perplexity["domain"] == domain].merge(chosen, on=keys)
    rows = []
    for (method, attack), group in own.groupby(["method", "attack"], sort=False):
        names = " / ".join(dict.fromkeys(group["variant"] + ", " + group["template"]))
        numbers = [_number_text(group[text].mean()) for text in TEXTS]
        rows.append((display_name(str(method)), display_name(str(attack)), names, numbers))
    return rows


def _rewrite_rows(rewrites: pd.DataFrame) -> list[tuple[str, str, list[str]]]:
    """Of each model and informed variant, as means over seeds, what became of its prompts: counts, shares and rounds."""
    rows = []
    for (method, variant), group in rewrites.groupby(["method", "variant"], sort=False):
        means = group[["prompts", "changed", "text_rounds", "text_exceeds", "rounds", "exceeds"]].astype(float).mean()
        shown = [
            f"{means['prompts']:.0f}",
            percent(means["changed"]),
            f"{means['text_rounds']:.1f}",
            percent(means["text_exceeds"]),
            f"{means['rounds']:.1f}",
            percent(means["exceeds"]),
        ]
        rows.append((display_name(str(method)), str(variant), shown))
    return rows


def _number_text(value: float) -> str:
    """A perplexity with three digits, large ones whole, and beyond a million its power of ten."""
    if math.isnan(value):
        return "–"
    if value >= 1e6:
        return f"10^{math.log10(value):.1f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _refused_shares(refusals: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Share of refused prompts as `accuracy` has it: mean, number of seeds, least and largest over them."""
    keys = ["method", "benchmark", "template"]
    own = refusals[refusals["domain"] == domain]
    shares = own.groupby([*keys, "seed"], dropna=False, sort=False)["refused"].mean().reset_index()
    groups = shares.groupby(keys, sort=False)
    refused = groups["refused"]
    return pd.DataFrame(
        {
            "accuracy": refused.mean(),
            "accuracy_min": refused.min(),
            "accuracy_max": refused.max(),
            "seeds": groups["seed"].nunique(),
        }
    ).reset_index()


def _share_text(row: pd.Series) -> tuple[str, str]:
    """A share and, in small print, its spread over seeds."""
    spread = f"seeds {_spread(row, 'accuracy')}" if row["seeds"] > 1 else ""
    return percent(row["accuracy"]), spread
