import html
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import jinja2
import pandas as pd
import pytest
from rich.console import Console

from resurface.analysis.captions import CAPTIONS, caption_of
from resurface.analysis.cells import display_name, interval, main_cells, percent, strongest_attacks
from resurface.analysis.charts import draw_svg
from resurface.analysis.evidence import EVIDENCE_COLUMNS
from resurface.analysis.figures import (
    FIGURES,
    FOUND_FIGURES,
    STREAMS,
    finetuning_curves,
    lens_by_block,
    perturbations,
    prefixes,
    pruning_grid,
    write_figures,
)
from resurface.analysis.findings import Findings, read_findings
from resurface.analysis.report import Tables, write_report
from resurface.analysis.searches import search_losses
from resurface.analysis.sparsity import pruning_sparsity
from resurface.analysis.terminal import terminal_table
from resurface.analysis.tradeoff import tradeoff
from resurface.analysis.verdict import (
    INCONCLUSIVE,
    NOT_RESURFACED,
    RESURFACES,
    VERDICT_COLUMNS,
)

HOSTILE = "<script>alert(1)</script>"
ACCURACY = {"original": 0.98, "never_learned": 0.28, "npo": 0.12, HOSTILE: 0.30}
VARIANTS = {
    "none": {"none": 0.0},
    "finetuning": {"forget-n5": 0.3, "forget-n20": 0.6, "retain-n10": 0.1},
    "orthogonalization": {HOSTILE: 0.5, "from-npo-seed0-all": 0.9},
    "pruning": {"own-gradient-p1-q1": 0.1, "own-gradient-p5-q2.5": 0.4},
    "enhanced_gcg": {"block2-step5": 0.3, "from-npo-seed0-block2-step5": 0.9, "from-npo-seed1-block2-step5": 0.7},
    "perturbation": {"naive-every7-tilde": 0.2, "informed-text0.3-prompt0.3": 0.3},
    "logit_lens": {f"{stream}-block{block}": 0.1 * block for stream in ("mlp", "block") for block in (0, 1)},
}
EXPERIMENT = {"domains": ["runecraft"], "note": HOSTILE, "summary": {"confidence": 0.95}}


def make_summary(
    domains: tuple[str, ...] = ("runecraft",),
    methods: tuple[str, ...] = ("npo", HOSTILE),
    seeds: tuple[int, ...] = (0, 1),
    attacks: tuple[str, ...] = tuple(VARIANTS),
    control: bool = True,
) -> pd.DataFrame:
    rows = []
    for domain in domains:
        for method in ("original", *(["never_learned"] if control else []), *methods):
            for attack in attacks if method != "original" else ["none"]:
                without_seed = attack == "none" and method not in methods
                for seed in [None] if without_seed else seeds:
                    rows += make_rows(domain, method, seed, attack, method in methods, control)
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def make_rows(
    domain: str, method: str, seed: int | None, attack: str, is_method: bool, control: bool
) -> list[dict[str, object]]:
    taught = 0.5 if is_method else 0.1
    best = max(gain for variant, gain in VARIANTS[attack].items() if not variant.startswith("from-"))
    rows = []
    for variant, gain in VARIANTS[attack].items():
        for template in ("plain", "chat"):
            for benchmark, split in (
                (domain, "validation"),
                (domain, "test"),
                ("general", "validation"),
                ("general", "test"),
            ):
                on_domain = benchmark == domain
                # On test, chat is a little better, but validation, which chooses, prefers plain.
                drift = 0.02 if (template == "chat") == (split == "test") else 0.0
                # Strong pruning costs what mild pruning spares.
                general = 0.75 if variant == "own-gradient-p5-q2.5" else 0.95
                accuracy = ACCURACY[method] + taught * gain + drift + 0.04 * (seed or 0) if on_domain else general
                compared = is_method and on_domain
                excess = accuracy - 0.33 if compared and control else None
                rows.append(
                    {
                        **{"domain": domain, "method": method, "seed": seed, "attack": attack, "variant": variant},
                        **{"template": template, "benchmark": benchmark, "split": split, "n": 480},
                        **{"accuracy": accuracy, "ci_low": accuracy - 0.04, "ci_high": accuracy + 0.04},
                        "recovery": accuracy - 0.28 if compared else None,
                        "recovery_ci_low": accuracy - 0.3 if compared else None,
                        "recovery_ci_high": accuracy - 0.2 if compared else None,
                        "control_accuracy": 0.33 if compared and control else None,
                        "excess": excess,
                        "excess_ci_low": excess,
                        "excess_ci_high": excess,
                        "p_value": None,
                        "selected": gain == best and template == "plain" and not variant.startswith("from-"),
                    }
                )
    return rows


def make_refusals() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "domain": "runecraft",
            "method": ["npo"] * 4 + ["original"] * 2,
            "seed": pd.array([0, 0, 1, 1, None, None], dtype="Int64"),
            "benchmark": "runecraft",
            "task": "runecraft",
            "split": "test",
            "question_id": ["a", "b"] * 3,
            "template": "chat",
            "refused": [True, True, True, False, False, False],
        }
    )


def make_perplexity() -> pd.DataFrame:
    """Two seeds at 2 and 3, more in chat form and under the other variant; the attacked model writes nothing."""
    rows = [
        {"seed": seed, "template": template, "variant": variant}
        | dict.fromkeys(["original", "unlearned", "attacked", "unlearned_text"], 2.0 + seed + drift + place)
        | {"attacked_text": None}
        for seed in (0, 1)
        for template, drift in (("plain", 0.0), ("chat", 9.0))
        for place, variant in enumerate(reversed(VARIANTS["perturbation"]))
    ]
    table = pd.DataFrame(rows).assign(domain="runecraft", method="npo", attack="perturbation")
    return table.astype({"seed": "Int64", "attacked_text": float})


def make_findings(domain: str = "runecraft") -> Findings:
    """A search with its prefix, what pruning removed, and what became of informed prompts, for NPO of two seeds."""
    npo = [{"domain": domain, "method": "npo", "seed": seed} for seed in (0, 1)]
    losses = [
        {**model, "attack": "enhanced_gcg", "search": "block2", "step": step, "loss": loss, "best_loss": best}
        for model in npo
        for step, loss, best in ((1, 9.0, 9.0), (2, None, 9.0), (3, 4.0, 4.0))
    ]
    prefixes = [
        {**model, "attack": "enhanced_gcg", "variant": "block2-step5", "prefix": f"a\x07{HOSTILE}"} for model in npo
    ]
    sparsity = [
        {**model, "attack": "pruning", "variant": variant, "layer": f"model.layers.{block}.mlp.{name}_proj"}
        | {"weights": 200, "pruned": pruned + 2 * model["seed"]}
        for model in npo
        for variant, pruned in (("own-gradient-p1-q1", 99), ("own-gradient-p5-q2.5", 9))
        for block in (0, 1)
        for name in ("up", "down")
    ]
    rewrites = [
        {**model, "attack": "perturbation", "variant": "informed-text0.3-prompt0.3", "prompts": 480, "changed": 0.5}
        | {"text_rounds": 1.5, "text_exceeds": 0.0, "rounds": 12.0, "exceeds": 0.2 + 0.1 * model["seed"]}
        for model in npo
    ]
    return Findings(*map(pd.DataFrame, (losses, prefixes, sparsity, rewrites)))


def make_worst_case() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "domain": "runecraft",
            "method": ["npo", "npo"],
            "seed": [0, 1],
            "best_attack": ["finetuning", "logit_lens"],
            "accuracy": [0.7, 0.9],
            "recovered": [0.62, 0.66],
            "excess": [0.4, 0.5],
            "excess_ci_low": [0.3, 0.4],
            "excess_ci_high": [0.5, 0.6],
            "guessing": [0.0311, 0.0309],
            "beyond_guessing": [0.61, 0.63],
        }
    )


def make_evidence() -> pd.DataFrame:
    """NPO resurfaces under finetuning; the lens has no control, and nothing is known of a third attack's gain."""
    row = {"domain": "runecraft", "method": "npo", "seeds": 2, "facts": 100, "accuracy": 0.8}
    row |= {"known": 0.7, "known_ci_low": 0.65, "known_ci_high": 0.75}
    known = {
        "excess": 0.45,
        "excess_ci_low": 0.35,
        "excess_ci_high": 0.55,
        "excess_least": 0.312,
        "excess_most": 0.56,
        "excess_p_adjusted": 1e-9,
    }
    known |= {
        "recovery_ci_low": 0.05,
        "recovery_ci_high": 0.27,
        "control_accuracy": 0.35,
        "excess_p_value": 1e-10,
        "excess_min": 0.4,
        "excess_max": 0.5,
        "excess_detectable": 0.1,
    }
    gain = {key.replace("excess", "gain"): value for key, value in known.items() if "excess" in key}
    gain |= {"unattacked_accuracy": 0.3, "gain_p_adjusted": 0.0421}
    surplus = {key.replace("excess", "surplus"): value for key, value in known.items() if "excess" in key}
    surplus |= {"surplus": 0.3, "surplus_least": 0.212}
    rows = [{**row, **known, **surplus, **gain, "attack": "finetuning"}, {**row, "attack": "logit_lens"}]
    return pd.DataFrame(rows).reindex(columns=EVIDENCE_COLUMNS)


def make_verdicts(reason: str = "80 % against 35 %.") -> pd.DataFrame:
    row = {"domain": "runecraft", "method": "npo", "attack": "finetuning", "reason": reason, "settled_by": ""}
    row["trace"] = False
    return pd.DataFrame(
        [
            {**row, "verdict": RESURFACES},
            {**row, "method": "rmu", "verdict": INCONCLUSIVE, "settled_by": "about 900 facts instead of 480"},
            {**row, "method": "dpo", "verdict": NOT_RESURFACED},
            {**row, "method": "cb", "verdict": NOT_RESURFACED, "trace": True},
        ]
    )[VERDICT_COLUMNS]


def render(
    summary: pd.DataFrame,
    output: Path,
    refusals: pd.DataFrame | None = None,
    perplexity: pd.DataFrame | None = None,
    findings: Findings | None = None,
) -> str:
    found = findings or read_findings(None, summary)
    tables = Tables(summary, make_worst_case(), make_evidence(), make_verdicts(HOSTILE), found, refusals, perplexity)
    write_report(tables, EXPERIMENT, output)
    return output.read_text(encoding="utf-8").replace("\u00a0", " ")


def test_verdicts_come_first_with_what_would_settle_them(page):
    assert page.index('id="verdicts"') < page.index("Models and attacks")
    cards = re.findall(r'<li class="verdict (\w+)">\s*<h4>(.*?)</h4>\s*<p class="word">(.*?)</p>', page)
    assert cards == [
        ("found", "NPO", "resurfaces"),
        ("open", "RMU", "inconclusive"),
        ("clear", "DPO", "not resurfaced by these attacks"),
        ("trace", "CB", "not resurfaced by these attacks"),
    ]
    assert page.count("What would settle it: about 900 facts instead of 480.") == 1
    assert page.count(f"<p>{html.escape(HOSTILE)}</p>") == 4


def test_the_evidence_is_shown_attack_by_attack(page):
    rows = page[page.index("The evidence") :]
    cells = re.findall(r"<td>(.*?)</td>", rows[: rows.index("</table>")])
    excess = ["45 points [35 to 55]; 30 points beyond control or guess", "&lt; 0.001"]
    gain, turned_on = ["45 points [35 to 55]", "0.042"], ["21.2", "56.0", "10.0", "2 (40.0 to 50.0)"]
    assert cells[:11] == ["finetuning", "80 %", "35 %", *excess, *gain, *turned_on]
    assert cells[11:] == ["logit lens", "80 %", *["–"] * 8, "2"]


def test_the_worst_case_is_a_mean_over_seeds(page):
    rows = page[page.index("The worst case") :]
    cells = re.findall(r"<td>(.*?)</td>", rows[: rows.index("</table>")])
    assert cells == ["finetuning / logit lens", "80 %", "45 points [35 to 55]", "64 %", "3 %", "62 %"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("report") / "report.html"
    return render(make_summary(), output, make_refusals(), make_perplexity(), make_findings())


def test_nothing_is_loaded(page: str) -> None:
    references = re.findall(r"""\b(?:src|href|xlink:href|data|action)\s*=\s*["']?([^"'\s>]*)""", page)
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert not re.search(r"@import|url\((?!#)", page)


def test_hostile_text_stays_text(page: str) -> None:
    assert page.lower().count("<script") == 1, "the page's own"
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert "note: &lt;script&gt;" in page


def test_the_page_is_well_formed_where_figures_are_inlined(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 9
    for figure in figures:
        ElementTree.fromstring(figure)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_same_input_same_bytes(page: str, tmp_path: Path) -> None:
    again = render(make_summary(), tmp_path / "again.html", make_refusals(), make_perplexity(), make_findings())
    assert again == page


def test_accessible_tables(page: str) -> None:
    assert '<html lang="en">' in page
    assert page.count("<table") == page.count("<caption>") == 7
    assert all("scope=" in header for header in re.findall(r"<th\b[^>]*>", page))
    assert page.count('role="img" aria-label="') == 9


def test_sentences(page: str) -> None:
    assert (
        "<strong>NPO</strong>: 14 % without attack, 44 % under finetuning (forget-n20, plain): "
        "recovery 16 % [5 to 27], excess over control (33 %) 11 points [35 to 55]." in page
    ), "intervals are the evidence's, which count seeds"


def test_best_on_test_and_seeds_in_small_print(page: str) -> None:
    assert "best on test: 46 % (forget-n20, chat)" in page
    assert "2 seeds: accuracy 42 to 46, recovery 14 to 18, excess 9 to 13" in page
    assert "(from-npo" not in page, "what was made on another model is neither selected nor the best"


def test_pruning_says_what_it_costs_and_what_spares_general_ability(page: str) -> None:
    assert "<li>general 75 %</li>" in page
    spared = "keeping 95 % of general ability on validation questions: 19 % (own-gradient-p1-q1, plain), recovery −9 %, general 95 %"
    assert f"<li>{spared}</li>" in page
    assert page.count("<li>general 95 %</li>") == 3 * 2, (
        "finetuning and orthogonalization, of two methods and the control"
    )


def test_prefixes_are_shown_with_every_character(page: str) -> None:
    shown = "a\\x07&lt;script&gt;alert(1)&lt;/script&gt;"
    rows = re.findall(r"NPO, seed (\d)</th>\s*<td>enhanced GCG, block2-step5</td>\s*<td><code>(.*?)</code></td>", page)
    assert rows == [("0", shown), ("1", shown)]


def test_the_share_of_informed_prompts_that_exceed(page: str) -> None:
    cells = page[page.index("<h3>Informed perturbation") :]
    cells = re.findall(r"<td>(.*?)</td>", cells[: cells.index("</table>")])
    assert cells == ["informed-text0.3-prompt0.3", "480", "50 %", "1.5", "0 %", "12.0", "25 %"]


def test_refusals(page: str) -> None:
    assert "refused, chat" in page
    assert "<td>75 %<small>seeds 50 to 100</small></td>" in page


def test_perplexity_of_the_selected_variant_is_a_mean_over_seeds(page: str) -> None:
    assert "<td>perturbation<small>informed-text0.3-prompt0.3, plain</small></td>" in page
    cells = re.search(r"prompt0\.3, plain</small></td>\s*((?:<td>[^<]*</td>\s*)+)", page)
    assert cells is not None
    assert re.findall(r"<td>([^<]*)</td>", cells[1]) == ["2.5"] * 4 + ["–"]


def test_without_control_lens_and_refusals(tmp_path: Path) -> None:
    summary = make_summary(
        domains=("runecraft", "xenotoxicology"),
        methods=("npo",),
        seeds=(0,),
        attacks=("none", "finetuning"),
        control=False,
    )
    page = render(summary, tmp_path / "report.html")
    assert page.count("excess over control: no control") == 4  # a sentence and a cell per domain
    assert page.count('<span class="number absent">no control</span>') == 4
    assert page.count(">logit lens: attack not run</text>") == 2
    assert page.count(">searches for prefixes: attacks not run</text>") == 2
    assert page.count(">pruned weights: attack not run</text>") == 2
    assert "Informed perturbation" not in page
    assert "Prefixes that were found" not in page
    assert "Refusals were not counted." in page
    assert "seeds:" not in page
    assert 'id="domain-1"' in page


def test_figures(tmp_path: Path) -> None:
    summary = make_summary()
    for folder in ("first", "second"):
        write_figures(summary, make_findings(), tmp_path / folder)
    files = sorted((tmp_path / "first").iterdir())
    assert [file.name for file in files] == sorted(
        f"{name}.{kind}" for name in (*FIGURES, *FOUND_FIGURES) for kind in ("png", "svg")
    )
    for file in files:
        content = file.read_bytes()
        assert content == (tmp_path / "second" / file.name).read_bytes()
        assert not re.search(rb"attacks? not run", content), "a placeholder"
        if file.suffix == ".svg":
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert b"<script" not in content
        else:
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert content.endswith(b"IEND\xaeB`\x82")


def test_missing_attacks_have_placeholders() -> None:
    summary = make_summary(attacks=("none",))
    assert "logit lens: attack not run" in draw_svg(lens_by_block(summary), "lens")
    assert "finetuning: attack not run" in draw_svg(finetuning_curves(summary), "curves")
    assert "pruning: attack not run" in draw_svg(pruning_grid(summary), "grid")
    assert "perturbation: attack not run" in draw_svg(perturbations(summary), "ways")
    assert "enhanced_gcg: attacks not run" in draw_svg(prefixes(summary), "prefixes")


def datasets(chart: alt.TopLevelMixin) -> list[dict[str, object]]:
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_prefixes_of_all_seeds_of_another_model_are_one_row() -> None:
    rows = {(row["method"], row["variant"]): row["accuracy"] for row in datasets(prefixes(make_summary()))}
    assert {variant for _, variant in rows} == {"block2-step5", "from-npo-block2-step5"}
    assert rows["never_learned", "block2-step5"] == pytest.approx(0.28 + 0.1 * 0.3 + 0.02)
    assert rows["npo", "from-npo-block2-step5"] == pytest.approx(0.12 + 0.5 * 0.8 + 0.02)


def test_search_losses_have_a_line_per_model_and_seed() -> None:
    rows = [row for row in datasets(search_losses(make_summary(), make_findings())) if "best_loss" in row]
    assert {(row["model"], row["seed"]) for row in rows} == {("NPO", 0), ("NPO", 1)}
    assert [row["best_loss"] for row in rows if row["seed"] == 0] == [9.0, 9.0, 4.0]


def test_sparsity_is_that_of_the_selected_variant() -> None:
    rows = [row for row in datasets(pruning_sparsity(make_summary(), make_findings())) if "share" in row]
    assert {(row["block"], row["module"]) for row in rows} == {(0, "up"), (0, "down"), (1, "up"), (1, "down")}
    assert all(row["share"] == pytest.approx(0.05) for row in rows), "the mean of 9 and 11 of 200 weights"


def test_the_attacked_point_stands_at_the_general_ability_that_the_attack_leaves() -> None:
    summary = make_summary(attacks=("none", "pruning"))
    (point,) = {
        (row["general"], row["attacked_general"])
        for row in datasets(tradeoff(summary))
        if row.get("model") == "NPO" and "attacked_general" in row
    }
    assert point == (0.95, 0.75)


def test_the_pruning_grid_has_a_panel_per_model_and_scoring() -> None:
    chart = pruning_grid(make_summary())
    svg = draw_svg(chart, "grid")
    for panel in ("never-learned (control)", "NPO"):
        assert svg.count(f">{panel}: own-gradient<") == 1
    cells = [row for rows in chart.to_dict()["datasets"].values() for row in rows]
    assert len(cells) == 3 * 2
    (cell,) = [row for row in cells if row["method"] == "npo" and row["p"] == 5]
    assert cell["q"] == 2.5
    assert cell["accuracy"] == pytest.approx(0.12 + 0.5 * 0.4 + 0.02), "the mean of two seeds, in validation's template"
    assert cell["general"] == percent(0.75)


@pytest.mark.parametrize(("blocks", "has_numbers"), [(2, True), (32, False)])
def test_the_lens_has_a_panel_per_model_with_its_accuracy_without_attack_and_its_best_cell(
    monkeypatch, blocks, has_numbers
):
    monkeypatch.setitem(
        VARIANTS, "logit_lens", {f"{stream}-block{block}": block / 40 for stream in STREAMS for block in range(blocks)}
    )
    chart = lens_by_block(make_summary())
    svg = draw_svg(chart, "lens").replace("\u00a0", " ")
    for title in ("never-learned (control)", "28 % without attack", "NPO", "14 % without attack"):
        assert svg.count(f">{title}<") == 1
    best = percent(0.12 + 0.5 * (blocks - 1) / 40 + 0.02).replace("\u00a0", " ")
    assert svg.count(f">{best} at best (attention output, block {blocks - 1})<") == 1, "the first of several"
    for stream in STREAMS.values():
        assert f">{stream}<" in svg
    cells = datasets(chart)
    assert len(cells) == 3 * blocks * len(STREAMS)
    (cell,) = [row for row in cells if row["method"] == "npo" and (row["stream"], row["block"]) == ("middle", 1)]
    assert cell["accuracy"] == pytest.approx(0.12 + 0.5 / 40 + 0.02), "the mean of two seeds"
    assert (f">{percent(cell['accuracy'])}<".replace("\u00a0", " ") in svg) == has_numbers


def test_every_figure_has_a_caption_for_snakemakes_report_too() -> None:
    assert set(CAPTIONS) == {*FIGURES, *FOUND_FIGURES}
    folder = Path(__file__).parents[1] / "workflow" / "report" / "figures"
    captions = {name: caption_of(name, True) for name in CAPTIONS}
    shown = {
        path.stem: jinja2.Template(path.read_text()).render(snakemake={"params": {"captions": captions}})
        for path in folder.iterdir()
    }
    assert shown == captions


def test_only_where_there_is_a_control_a_caption_speaks_of_it() -> None:
    assert "control" in caption_of("prefixes", True)
    assert "control" not in caption_of("prefixes", False)


def test_finetuning_lines_begin_without_attack() -> None:
    panels = finetuning_curves(make_summary()).to_dict()["vconcat"][0]["hconcat"]
    assert [panel["title"] for panel in panels] == ["data: forget", "data: retain"]
    axis = panels[0]["layer"][1]["encoding"]["x"]["axis"]
    assert axis["values"] == [0, 5, 20]


def test_main_cells_average_seeds_of_what_was_selected() -> None:
    cells = main_cells(make_summary(), "runecraft").set_index(["method", "attack"])
    cell = cells.loc[("npo", "finetuning")]
    assert cell["accuracy"] == pytest.approx(0.12 + 0.5 * 0.6 + 0.02)
    assert (cell["accuracy_min"], cell["accuracy_max"]) == (pytest.approx(0.42), pytest.approx(0.46))
    assert (cell["choice"], cell["best_choice"]) == ("forget-n20, plain", "forget-n20, chat")
    assert cell["best_accuracy"] == pytest.approx(0.46)
    assert strongest_attacks(make_summary(), "runecraft")["npo"] == "finetuning"


def test_terminal_table() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_table(make_summary(methods=("npo",), control=False)))
    text = console.export_text().replace("\u00a0", " ")
    for shown in ("44 %", "[40–48]", "(16 %)"):
        assert shown in text
    assert "no control" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("npo", "NPO"),
        ("logit_lens", "logit lens"),
        ("enhanced_gcg", "enhanced GCG"),
        ("never_learned", "never-learned (control)"),
        ("none", "no attack"),
    ],
)
def test_display_name(name: str, shown: str) -> None:
    assert display_name(name) == shown


def test_intervals_with_negative_ends_are_readable() -> None:
    assert interval(0.64, 0.781) == "64–78"
    assert interval(-0.05, 0.08) == "−5 to 8"
