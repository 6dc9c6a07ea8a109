"""Results in Python, and the notebook of the docs, on a real run of the workflow."""

import ast
import contextlib
import json
import shutil

import altair as alt
import pandas as pd
import pytest
from conftest import DOMAIN, ROOT

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
    assert results.worst_case["best_attack"].dtype == results.answers["question_id"].dtype == "string"
    left = finished / "results" / "scores" / "xenotoxicology" / "npo" / "seed0"
    (left / "gcg.parquet").write_bytes((left / "finetuning.parquet").read_bytes())
    try:
        assert len(results.scores(method="npo")) == len(
            resurface.load_results(finished / "results").scores(method="npo")
        )
        with pytest.raises(ResurfaceError, match=r"found no score tables \*/npo/seed\*/gcg"):
            results.scores(method="npo", attack="gcg")
    finally:
        (left / "gcg.parquet").unlink()
    for name in ("excess", "excess_needed_facts", "gain_needed_facts", "recovery"):
        assert results.evidence[name].dtype == "float64"
    assert results.evidence["facts"].dtype == "int64"
    assert results.costs["peak_memory"].dtype == "float64"
    assert set(results.refusals["method"]) == {"rmu", "npo", "original", "never_learned"}
    assert results.refusals["refused"].dtype == "bool"
    spent = results.costs.groupby("rule").size()
    assert spent[["unlearn", "score"]].tolist() == [2, 4 * 3 + 1]
    assert (results.costs["wall_seconds"] > 0).all()
    with pytest.raises(ResurfaceError, match=r"found no score tables \*/dpo/seed\*/\*\.parquet"):
        results.scores(method="dpo")


def test_a_table_of_another_version_keeps_no_other_from_being_read(finished, tmp_path):
    with pytest.raises(ResurfaceError, match=r"no summary\.parquet, so this is no folder of results"):
        resurface.load_results(tmp_path)
    place = tmp_path / "results"
    place.mkdir()
    for path in (finished / "results").glob("*.parquet"):
        shutil.copy(path, place)
    (place / "costs.parquet").unlink()
    pd.read_parquet(place / "evidence.parquet").drop(columns="known").to_parquet(place / "evidence.parquet")
    results = resurface.load_results(place)
    assert len(results.verdicts) == 2
    for name, said in (("evidence", "the column 'known' is missing"), ("costs", "no such file")):
        with pytest.raises(ResurfaceError, match=rf"{name}\.parquet: {said}.*another version of Resurface"):
            getattr(results, name)
    assert results != resurface.load_results(place), "tables have no one truth value"
    assert results.refusals.empty
    assert (results.refusals["method"].dtype, results.refusals["refused"].dtype) == ("string", "bool")


def test_scores_of_an_earlier_configuration_s_seeds_are_left_out(finished, tmp_path):
    shutil.copytree(finished / "results" / "scores", tmp_path / "scores")
    shutil.copy(finished / "results" / "summary.parquet", tmp_path)
    expected = resurface.load_results(tmp_path).scores()
    assert expected["seed"].isna().any()
    own = tmp_path / "scores" / DOMAIN / "rmu"
    shutil.copytree(own / "seed0", own / "seed7")
    for path in (own / "seed7").glob("*.parquet"):
        pd.read_parquet(path).assign(seed=7).to_parquet(path)
    pd.testing.assert_frame_equal(resurface.load_results(tmp_path).scores(), expected)


def test_types_are_those_of_the_columns_whatever_the_values(finished, tmp_path):
    place = tmp_path / "results"
    place.mkdir()
    table = pd.read_parquet(finished / "results" / "summary.parquet")
    table = table.assign(accuracy=1, excess=1, n=table["n"].astype(float), seed=table["seed"].astype(float))
    table.to_parquet(place / "summary.parquet")
    expected = resurface.load_results(finished / "results").summary.dtypes
    pd.testing.assert_series_equal(resurface.load_results(place).summary.dtypes, expected)


def test_refusals_of_an_earlier_configuration_are_left_out(finished, tmp_path):
    shutil.copytree(finished / "results" / "refusals", tmp_path / "refusals")
    shutil.copy(finished / "results" / "summary.parquet", tmp_path)
    expected = resurface.load_results(tmp_path).refusals
    own = tmp_path / "refusals" / DOMAIN / "rmu" / "seed0.parquet"
    for change in ({"method": "dpo"}, {"seed": 7}):
        (stale,) = change.values()
        pd.read_parquet(own).assign(**change).to_parquet(own.with_name(f"stale-{stale}.parquet"))
    pd.testing.assert_frame_equal(resurface.load_results(tmp_path).refusals, expected)


def test_the_notebook_runs(finished):
    notebook = json.loads((ROOT / "docs" / "audit.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    shown = []
    with contextlib.chdir(finished):
        for cell in cells:
            tree = ast.parse(cell)
            last = ast.Expression(tree.body.pop().value)  # what a cell shows
            exec(compile(tree, "audit.ipynb", "exec"), names)
            shown.append(eval(compile(last, "audit.ipynb", "eval"), names))
    assert len(cells) >= 5
    assert all(isinstance(one, pd.DataFrame | alt.TopLevelMixin) for one in shown[1:])
    assert [one.to_dict()["spec"] for one in shown if isinstance(one, alt.TopLevelMixin)]
    assert names["facts"].shape[1] == 2
    assert (names["comparison"]["best on test"] >= names["comparison"]["selected"]).all()
