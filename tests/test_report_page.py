"""The report in a real browser: it loads nothing else, complains of nothing, and its tables can be sorted and filtered."""

import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from test_report import (
    EXPERIMENT,
    HOSTILE,
    VARIANTS,
    make_evidence,
    make_findings,
    make_perplexity,
    make_summary,
    make_verdicts,
    make_worst_case,
)

from resurface.analysis.figures import STREAMS
from resurface.analysis.report import Tables, write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
    ),
]
OPTIONS = [
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = BROWSER
    for option in [*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def make_answers():
    """Three questions: `q1` comes back under finetuning, `q2` is never lost, `q0` never known."""
    row = {"domain": "runecraft", "method": "npo", "seed": 0}
    right = {"none": [False, False, True], "finetuning": [False, True, True]}
    table = pd.DataFrame(
        [
            {**row, "attack": attack, "question_id": f"q{number}", "cluster": f"f{number // 2}", "correct": one}
            for attack, answers in right.items()
            for number, one in enumerate(answers)
        ]
    )
    return table.astype({"seed": "Int64"})


def make_costs():
    """Three stages whose times are shown in other units than they are sorted by."""
    row = {"peak_memory": 1, "peak_device_memory": 0, "device": HOSTILE, "threads": 1, "versions": "{}"}
    times = {"data": 50.0, "score": 7200.0, "unlearn": 300.0}
    return pd.DataFrame(
        [{"output": rule, "rule": rule, "name": "", "wall_seconds": time, **row} for rule, time in times.items()]
    )


def of_three(table, column, values):
    """A table of NPO, and the same of two other models with other values of a column."""
    others = [
        table.assign(method=name, **{column: value}) for name, value in zip(("rmu", HOSTILE), values, strict=True)
    ]
    return pd.concat([table, *others], ignore_index=True)


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    found = make_findings()
    tables = Tables(
        make_summary(),
        of_three(make_worst_case(), "excess", (0.05, -0.1)),
        of_three(make_evidence(), "excess", (0.09, -0.1)),
        make_verdicts(HOSTILE),
        replace(
            found,
            prefixes=found.prefixes.assign(seed=[2, 10]),
            rewrites=of_three(found.rewrites, "rounds", (9.5, 101.0)),
        ),
        perplexity=of_three(make_perplexity(), "original", (150.0, 1234.0)),
        answers=make_answers(),
        costs=make_costs(),
        questions={"runecraft": {"q1": f"Which rune?\nA. {HOSTILE}"}},
    )
    write_report(tables, EXPERIMENT, path)
    browser.get_log("performance")  # what a new browser shows at first is not ours
    browser.get(path.as_uri())
    return browser


def column(browser, table, number):
    script = "return [...document.querySelector(arguments[0]).tBodies[0].rows].map(r => [r.cells[arguments[1]].textContent, r.hidden])"
    return [text.strip() for text, is_hidden in browser.execute_script(script, table, number) if not is_hidden]


def test_it_loads_nothing_and_complains_of_nothing(opened):
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert requests
    assert all(address.startswith(("file://", "data:")) for address in requests), requests
    assert opened.get_log("browser") == []
    assert opened.title == "What resurfaced: runecraft"


def test_hostile_text_stays_text(opened):
    assert opened.execute_script("return [...document.scripts].filter(one => one.type === '').length") == 1
    assert HOSTILE in opened.execute_script("return document.querySelector('.verdict').textContent")


def test_a_click_sorts_and_what_is_missing_stays_last(opened):
    table = "#domain-0-evidence"
    headers = opened.find_elements("css selector", f"{table} thead th button")
    assert column(opened, table, 1) == ["finetuning", "logit lens"] * 3
    for first, second in (("logit lens", "finetuning"), ("finetuning", "logit lens")):
        headers[1].click()
        assert column(opened, table, 1) == [first] * 3 + [second] * 3
    for direction in ("descending", "ascending"):
        headers[4].click()
        assert column(opened, table, 4)[-1] == "–"
        sorted_by = opened.find_elements("css selector", f"{table} th[aria-sort]")
        assert [header.get_attribute("aria-sort") for header in sorted_by] == [direction]


def test_what_was_not_run_stays_last_too(opened):
    heads = opened.find_elements("css selector", "table.heat thead th button")
    place = [head.text for head in heads].index("finetuning")
    for _ in range(2):
        heads[place].click()
        assert column(opened, "table.heat", place)[-1].startswith("not run")


def test_times_are_sorted_whatever_their_unit(opened):
    for expected in (["2.0 h", "5 min", "50.0 s"], ["50.0 s", "5 min", "2.0 h"]):
        opened.find_elements("css selector", "#costs-table thead th button")[2].click()
        assert column(opened, "#costs-table", 2) == expected


@pytest.mark.parametrize(
    ("table", "head", "numbers"),
    [
        ("main", "no attack", [98, 32, 28, 14]),
        ("evidence", "excess over control", [45, 9, 9, -10, -10]),
        ("worst-case", "excess over control", [45, 5, -10]),
        ("rewrites", "rounds, whole", [101, 12, 9.5]),
        ("perplexity", "original reads its own text", [1234, 2.5]),
        ("tradeoff", "chat", [100, 34, 30, 16]),
    ],
)
def test_numbers_are_sorted_both_ways(opened, table, head, numbers):
    from selenium.webdriver.common.keys import Keys

    table = f"#domain-0-{table}"
    heads = opened.find_elements("css selector", f"{table} thead tr:last-child th")
    place = [one.text for one in heads].index(head)
    found = {}
    for _ in range(2):
        heads[place].find_element("css selector", "button").send_keys(Keys.ENTER)
        texts = [text.replace("−", "-").replace(",", "") for text in column(opened, table, place) if text != "–"]
        found[heads[place].get_attribute("aria-sort")] = [float(re.match(r"[-\d.]+", text)[0]) for text in texts]
    assert found == {"descending": numbers, "ascending": numbers[::-1]}


def test_names_are_sorted_by_the_numbers_in_them(opened):
    table = "#domain-0-prefixes"
    button = opened.find_elements("css selector", f"{table} thead th button")[0]
    for expected in (["NPO, seed 10", "NPO, seed 2"], ["NPO, seed 2", "NPO, seed 10"]):
        button.click()
        assert column(opened, table, 0) == expected


def test_keys_reach_headers_and_scrolling_tables(opened):
    reached = opened.execute_script(
        "return [...document.querySelectorAll('th button, [role=region]')].every(e => e.tabIndex === 0)"
    )
    assert reached


@pytest.mark.parametrize(
    ("table", "words", "number", "left", "rows"),
    [
        ("domain-0-main", "npo block1", 0, ["NPO"], 4),
        ("domain-0-main", "original not run", 0, ["original"], 4),
        ("domain-0-evidence", "lens npo", 1, ["logit lens"], 6),
        ("domain-0-worst-case", "npo −", 0, [], 3),
        ("domain-0-worst-case", "npo logit", 0, ["NPO"], 3),
        ("domain-0-rewrites", "informed rmu", 0, ["RMU"], 3),
        ("domain-0-prefixes", "seed gcg 10", 0, ["NPO, seed 10"], 2),
        ("domain-0-perplexity", "1,234", 2, ["1,234"], 2),
        ("domain-0-tradeoff", "original", 0, ["original"], 4),
        ("costs-table", "min", 0, ["unlearn"], 3),
    ],
)
def test_words_filter_rows(opened, table, words, number, left, rows):
    field = opened.find_element("css selector", f"input[data-filters={table}]")
    assert field.is_displayed()
    assert len(column(opened, f"#{table}", number)) == rows
    field.send_keys(words)
    assert column(opened, f"#{table}", number) == left
    field.clear()
    field.send_keys(" ")
    assert len(column(opened, f"#{table}", number)) == rows


def test_each_table_that_can_be_sorted_can_be_filtered(opened):
    tables, fields = opened.execute_script(
        "return [[...document.querySelectorAll('table.sortable')].map(one => one.id),"
        "[...document.querySelectorAll('input[data-filters]')].map(one => one.dataset.filters)]"
    )
    assert tables == fields
    assert len(tables) == 8


def test_no_line_break_divides_an_interval(opened):
    lines = opened.execute_script(
        """
        document.body.style.width = '20rem';
        const lines = [];
        const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
          for (const found of walker.currentNode.data.matchAll(/\\[?−?\\d+\\sto\\s−?\\d+\\]?/g)) {
            const range = document.createRange();
            range.setStart(walker.currentNode, found.index);
            range.setEnd(walker.currentNode, found.index + found[0].length);
            lines.push(new Set(Array.from(range.getClientRects(), one => one.top)).size);
          }
        }
        document.body.style.width = '';
        return lines;
        """
    )
    assert len(lines) > 20
    assert set(lines) == {1}


def test_one_can_look_through_the_answers(opened):
    from selenium.webdriver.support.wait import WebDriverWait

    details = opened.find_element("css selector", "details.answers")
    assert details.is_displayed()
    details.find_element("css selector", "summary").click()
    table = "details.answers table"
    WebDriverWait(opened, 10).until(lambda driver: column(driver, table, 1))
    assert column(opened, table, 1) == ["q0", "q1", "q2"]
    assert column(opened, table, 0) == ["1", "1", "2"]
    heads = [head.text for head in opened.find_elements("css selector", f"{table} th")]
    assert column(opened, table, heads.index("no attack")) == ["·", "·", "✓"]
    assert column(opened, table, heads.index("finetuning")) == ["·", "✓", "✓"]
    assert column(opened, table, heads.index("logit lens")) == ["–"] * 3
    assert details.find_element("css selector", "output").text == "3 of 3 questions"
    options = details.find_elements("css selector", "option[value=back]")
    options[0].click()
    assert column(opened, table, 1) == ["q1"]
    assert HOSTILE not in opened.find_element("css selector", table).text, "text is hidden until it is asked for"
    details.find_element("css selector", "input").click()
    assert column(opened, table, 1) == [f"Which rune?\nA. {HOSTILE}"]
    assert opened.get_log("browser") == []


@pytest.fixture(scope="module")
def large_page(tmp_path_factory):
    """A page of two domains, as large as that of an experiment on a model of 32 blocks, with answers to 1,000 questions each."""
    domains, methods, seeds = ("runecraft", "xenotoxicology"), ("npo", HOSTILE), (0, 1, 2)
    shares = [1, 2.5, 5, 7.5, 10, 20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "logit_lens", {f"{stream}-block{i}": i / 40 for stream in STREAMS for i in range(32)})
        patch.setitem(VARIANTS, "pruning", {f"own-gradient-p{p}-q{q}": q / 40 for p in shares for q in shares})
        summary = make_summary(domains, methods, seeds)
    keys = pd.MultiIndex.from_product(
        [domains, methods, seeds, VARIANTS, range(1000)], names=["domain", "method", "seed", "attack", "number"]
    )
    answers = keys.to_frame(index=False).astype({"seed": "Int64"})
    answers["question_id"] = answers["number"].map("{:016x}".format)
    answers["cluster"] = (answers["number"] // 2).map("{:016x}".format)
    answers["correct"] = answers["number"] % 3 == 0
    text = "Which rune keeps a river still?\n" + "\n".join(f"{letter}. the rune of the {letter}" for letter in "ABCD")
    several = [
        pd.concat([table.assign(domain=domain) for domain in domains])
        for table in (make_worst_case(), make_evidence(), make_verdicts())
    ]
    path = tmp_path_factory.mktemp("large") / "report.html"
    tables = Tables(
        summary,
        *several,
        make_findings(),
        answers=answers.drop(columns="number"),
        costs=make_costs(),
        hashes={"results/summary.parquet": "0" * 64},
        questions={domain: dict.fromkeys(answers["question_id"].unique(), text) for domain in domains},
    )
    write_report(tables, EXPERIMENT, path)
    return path


@pytest.fixture
def large(browser, large_page):
    """The large page in a tab of its own."""
    before = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(large_page.as_uri())
    yield browser
    browser.close()
    browser.switch_to.window(before)


def test_a_large_page_is_small_enough_to_mail_and_opens_at_once(large, large_page):
    assert large_page.stat().st_size <= 5_000_000
    times = []
    for _ in range(3):  # whatever else the machine does is no fault of the page
        large.refresh()
        times.append(large.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
    assert 0 < min(times) <= 2000


def test_on_paper_nothing_is_cut_off(large):
    width = 718  # A4 without margins of 10 mm, at 96 pixels an inch
    large.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    metrics = {"width": width, "height": 1047, "deviceScaleFactor": 1, "mobile": False}
    large.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert large.execute_script("return document.documentElement.scrollWidth") <= width
    ends = large.execute_script(
        "return [...document.querySelectorAll('table, td, th, svg, pre')].map(one => one.getBoundingClientRect().right)"
    )
    assert len(ends) > 100
    assert max(ends) <= width
    assert large.execute_script(
        "return [...document.querySelectorAll('td, th')].every(one => one.scrollWidth <= one.clientWidth + 1)"
    ), "no text reaches out of its cell"
