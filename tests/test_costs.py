"""What jobs cost: a row per record, sums by stage, and a broken record is named."""

import json
import re

import pandas as pd
import pytest
from test_report import EXPERIMENT, make_evidence, make_summary, make_verdicts, make_worst_case

from resurface.analysis.costs import list_versions, sum_costs, tabulate_costs
from resurface.analysis.findings import read_findings
from resurface.analysis.report import Tables, write_report
from resurface.analysis.tables import COST_KINDS, read_results
from resurface.artifacts import write_table
from resurface.errors import ResurfaceError

GIB = 2**30


def make_record(rule, name=None, settings=None, wall_seconds=10.0, torch="2.13.0", **more):
    device = {"type": "cpu", "name": "a processor", "threads": 1}
    used = {"peak_memory": GIB, "peak_device_memory": 0, **more}
    versions = {"python": "3.11.7", "torch": torch}
    own = {"rule": rule, "name": name, "settings": settings or {}, "wall_seconds": wall_seconds}
    return {**own, "versions": versions, "device": device, "source": "0a1b", "inputs": {}, "outputs": {}, **used}


RECORDS = {
    "results/unlearned/runecraft/npo/seed0": make_record("unlearn", "npo", wall_seconds=70.0),
    "results/unlearned/runecraft/npo/seed1": make_record("unlearn", "npo", wall_seconds=95.5, peak_memory=3 * GIB),
    "results/scores/runecraft/npo/seed0/none.parquet": make_record("score", settings={"attack": "none"}),
    "results/scores/runecraft/npo/seed0/gcg.parquet": make_record(
        "score", settings={"attack": "gcg"}, wall_seconds=7200.0, peak_device_memory=40 * GIB, torch="2.11.0"
    ),
    "results/data/runecraft": make_record("data"),
}


@pytest.fixture
def costs(tmp_path):
    records = {}
    for number, (output, record) in enumerate(RECORDS.items()):
        records[output] = tmp_path / f"{number}.json"
        records[output].write_text(json.dumps(record))
    write_table(tabulate_costs(records), tmp_path / "costs.parquet")
    return read_results(tmp_path / "costs.parquet", COST_KINDS)


def test_each_job_is_a_row_and_each_stage_a_sum(costs):
    assert list(costs["output"]) == list(RECORDS)
    assert list(costs["name"]) == ["npo", "npo", "none", "gcg", ""]
    stages = sum_costs(costs).set_index(["rule", "name"])
    assert list(stages.index) == [("unlearn", "npo"), ("score", "none"), ("score", "gcg"), ("data", "")]
    unlearned = stages.loc[("unlearn", "npo")]
    assert tuple(unlearned) == (2, 165.5, 95.5, 3 * GIB, 0)
    assert stages["seconds"].sum() == costs["wall_seconds"].sum() == 7385.5
    assert list_versions(costs) == {"python": ["3.11.7"], "torch": ["2.11.0", "2.13.0"]}


def test_the_report_says_what_it_cost_and_what_it_is_made_of(costs, tmp_path):
    summary = make_summary()
    tables = Tables(
        summary,
        make_worst_case(),
        make_evidence(),
        make_verdicts("because"),
        read_findings(None, summary),
        costs=costs,
        hashes={"results/summary.parquet": "0123abcd"},
    )
    write_report(tables, EXPERIMENT, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = page[page.index('id="costs-table"') : page.index('id="provenance"')]
    assert "5 jobs took 2.1 h of work in all" in " ".join(table.split())
    stages = re.findall(r'<th scope="row">(.*?)</th>\s*<td>(\d+)</td>\s*<td data-value="([\d.]+)">(.*?)</td>', table)
    assert stages == [
        ("unlearn NPO", "2", "165.5", "3 min"),
        ("score no attack", "1", "10.0", "10.0 s"),
        ("score GCG", "1", "7200.0", "2.0 h"),
        ("data", "1", "10.0", "10.0 s"),
    ]
    assert "<td>40.0 GiB</td>" in table
    provenance = page[page.index('id="provenance"') :]
    assert "a processor, 1 thread: 5 jobs, 2.1 h" in provenance
    assert "<td>2.11.0, 2.13.0</td>" in provenance
    assert "<code>0123abcd</code>" in provenance
    assert page.count("<table") == page.count("<caption>")


@pytest.mark.parametrize(
    "change",
    [{"wall_seconds": -1.0}, {"wall_seconds": "1"}, {"rule": None}, {"device": "cpu"}, {"versions": {"torch": 2}}],
)
def test_a_broken_record_is_named(change, tmp_path):
    path = tmp_path / "job.provenance.json"
    path.write_text(json.dumps({**RECORDS["results/data/runecraft"], **change}))
    with pytest.raises(ResurfaceError, match=r"job\.provenance\.json: this is no record of a job"):
        tabulate_costs({"results/data/runecraft": path})


@pytest.mark.parametrize("versions", ["no JSON", '["torch"]', '{"torch": "2\\n"}', '{"": "2"}'])
def test_versions_that_are_none_are_refused(versions, costs, tmp_path):
    write_table(costs.assign(versions=versions), tmp_path / "wrong.parquet")
    with pytest.raises(ResurfaceError, match="column 'versions'"):
        read_results(tmp_path / "wrong.parquet", COST_KINDS)


def test_costs_are_summed_over_what_there_is():
    assert sum_costs(pd.DataFrame(columns=list(COST_KINDS))).empty
