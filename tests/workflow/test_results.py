"""Results in Python, and the notebook of the docs, on a real run of the workflow."""

import contextlib
import json

import pandas as pd
import pytest
from conftest import ROOT

import resurface
from resurface.errors import ResurfaceError

pytestmark = pytest.mark.slow


def test_tables_are_tidy_and_typed(finished):
    results = resurface.load_results(finished / "results")
    assert set(results.verdicts["method"]) == {"rmu", "npo"}
    assert len(results.evidence) == 2 * 4
    assert results.summary["method"].dtype == results.verdicts["verdict"].dtype == "string"
    assert results.summary["seed"].dtype == results.scores(attack="none")["seed"].dtype == "Int64"
    assert results.summary.loc[results.summary["method"] == "original", "seed"].isna().all()
    scores = results.scores(method="npo", attack="finetuning")
    assert set(scores["variant"]) == {"forget-n2", "retain-n2"}
    shares = scores.groupby(["variant", "template", "benchmark", "split"])["correct"].mean()
    key = ["variant", "template", "benchmark", "split"]
    own = results.summary.query("method == 'npo' and attack == 'finetuning'").set_index(key)["accuracy"]
    pd.testing.assert_series_equal(shares.sort_index(), own[shares.index].sort_index(), check_names=False)
    with pytest.raises(ResurfaceError, match=r"found no score tables \*/dpo/seed\*/\*\.parquet"):
        results.scores(method="dpo")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ResurfaceError, match=r"verdicts\.parquet: no such file"):
        resurface.load_results(tmp_path)


def test_the_notebook_runs(finished):
    notebook = json.loads((ROOT / "docs" / "audit.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    with contextlib.chdir(finished):
        for number, cell in enumerate(cells):
            exec(compile(cell, f"audit.ipynb, code cell {number}", "exec"), names)
    assert len(cells) >= 5
    assert names["facts"].shape[1] == 2
    assert (names["comparison"]["best on test"] >= names["comparison"]["selected"]).all()
