import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from rich.console import Console

from resurface.analysis.cells import display_name, interval, main_cells, percent, strongest_attacks
from resurface.analysis.charts import draw_svg
from resurface.analysis.figures import (
    FIGURES,
    finetuning_curves,
    lens_by_block,
    perturbations,
    pruning_grid,
    write_figures,
)
from resurface.analysis.report import write_report
from resurface.analysis.terminal import terminal_table

HOSTILE = "<script>alert(1)</script>"
ACCURACY = {"original": 0.98, "never_learned": 0.28, "npo": 0.12, HOSTILE: 0.30}
VARIANTS = {
    "none": {"none": 0.0},
    "finetuning": {"forget-n5": 0.3, "forget-n20": 0.6, "retain-n10": 0.1},
    "orthogonalization": {HOSTILE: 0.5, "from-npo-seed0-all": 0.9},
    "pruning": {"own-gradient-p1-q1": 0.1, "own-gradient-p5-q2.5": 0.4},
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
            for benchmark, split in ((domain, "validation"), (domain, "test"), ("general", "test")):
                on_domain = benchmark == domain
                # On test, chat is a little better, but validation, which chooses, prefers plain.
                drift = 0.02 if (template == "chat") == (split == "test") else 0.0
                accuracy = ACCURACY[method] + taught * gain + drift + 0.04 * (seed or 0) if on_domain else 0.95
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
    """Replies of 10 tokens at 0.5 nats each and of 30 at 1 nat each; the attacked model's are read as empty."""
    rows = [
        {"seed": seed, "template": template, "variant": variant, "text": text, "tokens": tokens, "nats": nats}
        for seed in (0, 1)
        for template, drift in (("plain", 0.0), ("chat", 9.0))
        for variant in VARIANTS["perturbation"]
        for text in ("original", "unlearned", "attacked", "unlearned_text", "attacked_text")
        for tokens, nats in ([(0, 0.0)] if text == "attacked_text" else [(10, 5.0 + drift), (30, 30.0)])
    ]
    table = pd.DataFrame(rows).assign(domain="runecraft", method="npo", attack="perturbation", question_id="a")
    return table.astype({"seed": "Int64"})


def make_worst_case() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "domain": "runecraft",
            "method": ["npo", "npo"],
            "seed": [0, 1],
            "best_attack": ["finetuning", "logit_lens"],
            "accuracy": [0.7, 0.9],
            "recovered": [0.62, 0.66],
            "guessing": [0.0311, 0.0309],
            "beyond_guessing": [0.61, 0.63],
        }
    )


def render(
    summary: pd.DataFrame,
    output: Path,
    refusals: pd.DataFrame | None = None,
    perplexity: pd.DataFrame | None = None,
) -> str:
    write_report(summary, make_worst_case(), refusals, perplexity, EXPERIMENT, output)
    return output.read_text(encoding="utf-8").replace("\u00a0", " ")


def test_the_worst_case_is_a_mean_over_seeds(page):
    rows = page[page.index("The worst case") :]
    cells = re.findall(r"<td>(.*?)</td>", rows[: rows.index("</table>")])
    assert cells == ["finetuning / logit lens", "80 %", "64 %", "3 %", "62 %"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(make_summary(), tmp_path_factory.mktemp("report") / "report.html", make_refusals(), make_perplexity())


def test_nothing_is_loaded(page: str) -> None:
    references = re.findall(r"""\b(?:src|href|xlink:href|data|action)\s*=\s*["']?([^"'\s>]*)""", page)
    assert references
    assert all(reference.startswith("#") for reference in references)
    assert not re.search(r"@import|url\((?!#)", page)


def test_hostile_text_stays_text(page: str) -> None:
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert "note: &lt;script&gt;" in page


def test_the_page_is_well_formed_where_figures_are_inlined(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        ElementTree.fromstring(figure)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_same_input_same_bytes(page: str, tmp_path: Path) -> None:
    assert render(make_summary(), tmp_path / "again.html", make_refusals(), make_perplexity()) == page


def test_accessible_tables(page: str) -> None:
    assert '<html lang="en">' in page
    assert page.count("<table") == page.count("<caption>") == 4
    assert all("scope=" in header for header in re.findall(r"<th\b[^>]*>", page))
    assert page.count('role="img" aria-label="') == 7


def test_sentences(page: str) -> None:
    assert (
        "<strong>NPO</strong>: 14 % without attack, 44 % under finetuning (forget-n20, plain): "
        "recovery 16 % [14–24], excess over control 11 points [11–11]." in page
    )


def test_best_on_test_and_seeds_in_small_print(page: str) -> None:
    assert "best on test: 46 % (forget-n20, chat)" in page
    assert "2 seeds: accuracy 42–46, recovery 14–18, excess 9–13" in page
    assert "from-npo" not in page


def test_refusals(page: str) -> None:
    assert "refused, chat" in page
    assert "<td>75 %<small>seeds 50–100</small></td>" in page


def test_perplexity_pools_tokens_of_the_selected_variant(page: str) -> None:
    assert "<td>perturbation<small>informed-text0.3-prompt0.3, plain</small></td>" in page
    cells = re.search(r"prompt0\.3, plain</small></td>\s*((?:<td>[^<]*</td>\s*)+)", page)
    assert cells is not None
    assert re.findall(r"<td>([^<]*)</td>", cells[1]) == ["2.4"] * 4 + ["–"], "exp(35 / 40), and no text at all"


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
    assert "Refusals were not counted." in page
    assert "seeds:" not in page
    assert 'id="domain-1"' in page


def test_figures(tmp_path: Path) -> None:
    summary = make_summary()
    for folder in ("first", "second"):
        write_figures(summary, tmp_path / folder)
    files = sorted((tmp_path / "first").iterdir())
    assert [file.name for file in files] == sorted(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))
    for file in files:
        content = file.read_bytes()
        assert content == (tmp_path / "second" / file.name).read_bytes()
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
    assert cell["general"] == percent(0.95)


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
