"""The summary: each number against a closed form, a brute-force loop or hand-made cases."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, t

from resurface.analysis.summary import SUMMARY_COLUMNS, read_scores, summarize
from resurface.artifacts import write_table
from resurface.settings.summary import SummarySettings

DOMAIN = "runecraft"


def scores(method, seed, attack, shares, variant="none", templates=("plain", "chat"), benchmark=DOMAIN, offset=0):
    """Score rows of one model: `shares[template]` of 200 test questions (100 facts, asked twice) and of 40 validation
    questions are right, beginning with question `offset`."""
    rows = []
    for template in templates:
        for split, count in [("test", 200), ("validation", 40)]:
            right = round(shares[template] * count)
            for i in range(count):
                correct = (i - offset) % count < right
                rows.append(
                    {
                        "domain": DOMAIN,
                        "method": method,
                        "seed": seed,
                        "attack": attack,
                        "variant": variant,
                        "template": template,
                        "benchmark": benchmark,
                        "split": split,
                        "question_id": hashlib.sha256(f"{split}{i}".encode()).hexdigest()[:16],
                        "cluster": f"{split}{i // 2}",
                        "correct": correct,
                        "logprobs": [-1.0] * 4,
                    }
                )
    return pd.DataFrame(rows)


def both(share):
    return {"plain": share, "chat": share}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    tables = [
        scores("original", None, "none", both(1.0)),
        scores("never_learned", None, "none", both(0.25)),
        scores("never_learned", 0, "finetuning", both(0.3), "forget-n5"),
        scores("never_learned", 0, "finetuning", both(0.3), "forget-n20"),
        scores("npo", 0, "none", {"plain": 0.2, "chat": 0.4}),
        scores("npo", 0, "finetuning", both(0.7), "forget-n5"),
        scores("npo", 0, "finetuning", {"plain": 0.8, "chat": 0.75}, "forget-n20"),
        scores("npo", 0, "finetuning", both(0.95), "from-rmu-seed0-forget-n20"),
        scores("npo", 0, "none", both(0.9), benchmark="general"),
    ]
    paths = []
    for i, one in enumerate(tables):
        paths.append(folder / f"{i}.parquet")
        write_table(one.astype({"seed": "Int64"}), paths[-1])
    return summarize(read_scores(paths), SummarySettings())


def row(table, **where):
    for key, value in where.items():
        table = table[table[key].isna()] if value is None else table[table[key] == value]
    assert len(table) == 1, f"{where}: {len(table)} rows"
    return table.iloc[0]


def test_columns_and_reference_rows(table):
    assert list(table.columns) == SUMMARY_COLUMNS
    assert str(table["seed"].dtype) == "Int64"
    for method in ("original", "never_learned"):
        one = row(table, method=method, attack="none", template="plain", split="test", benchmark=DOMAIN)
        assert pd.isna(one["seed"])
        assert pd.isna(one["recovery"])
        assert pd.isna(one["excess"])


def test_the_interval_is_that_of_as_many_independent_questions(table):
    """Both questions of a fact are answered alike, so that 200 questions say as much as 100."""
    one = row(table, method="npo", attack="none", template="plain", split="test", benchmark=DOMAIN)
    expected = binomtest(20, 100).proportion_ci(method="wilson")
    assert (one["n"], one["accuracy"]) == (200, 0.2)
    assert one["ci_low"] == pytest.approx(expected.low)
    assert one["ci_high"] == pytest.approx(expected.high)


def test_questions_of_their_own_have_wilson_s_interval(tmp_path):
    alone = scores("original", None, "none", both(0.3)).assign(cluster=lambda rows: rows["question_id"])
    write_table(alone.astype({"seed": "Int64"}), tmp_path / "scores.parquet")
    one = row(summarize(read_scores([tmp_path / "scores.parquet"]), SummarySettings()), template="plain", split="test")
    expected = binomtest(60, 200).proportion_ci(method="wilson")
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((expected.low, expected.high))


def test_recovery_counts_from_the_floor_of_the_better_template(table):
    one = row(table, variant="forget-n20", method="npo", template="plain", split="test")
    assert one["recovery"] == pytest.approx((0.8 - 0.4) / (1.0 - 0.4))
    chat = row(table, variant="forget-n20", method="npo", template="chat", split="test")
    assert chat["recovery"] == pytest.approx((0.75 - 0.4) / (1.0 - 0.4))
    assert one["recovery_ci_low"] < one["recovery"] < one["recovery_ci_high"]


def test_recovery_interval_equals_a_brute_force_bootstrap(table):
    """The first 160 of 200 answers are right: whole clusters, so a loop over resampled facts must agree."""
    generator = np.random.default_rng(5)
    right = np.repeat(np.arange(100) < 80, 2)
    chat = np.repeat(np.arange(100) < 40, 2)
    control = np.repeat(np.arange(100) < 25, 2)
    shares = []
    for _ in range(2000):
        facts = generator.integers(0, 100, 100)
        questions = np.concatenate([2 * facts, 2 * facts + 1])
        floor = max(chat[questions].mean(), control[questions].mean())
        shares.append((right[questions].mean() - floor) / (1 - floor))
    one = row(table, variant="forget-n20", method="npo", template="plain", split="test")
    assert one["recovery_ci_low"] == pytest.approx(np.percentile(shares, 2.5), abs=0.02)
    assert one["recovery_ci_high"] == pytest.approx(np.percentile(shares, 97.5), abs=0.02)


def test_excess_is_over_the_control_under_the_same_attack(table):
    one = row(table, variant="forget-n5", method="npo", template="plain", split="test")
    assert one["control_accuracy"] == pytest.approx(0.3)
    assert one["excess"] == pytest.approx(0.4)
    assert one["excess_ci_low"] < 0.4 < one["excess_ci_high"]
    expected = 2 * t.sf(0.4 / np.sqrt(0.4 * 0.6 / 100), 99)
    assert np.log(one["p_value"]) == pytest.approx(np.log(expected), rel=0.1), "200 questions are 100 facts"
    before = row(table, method="npo", attack="none", template="plain", split="test", benchmark=DOMAIN)
    assert before["control_accuracy"] == pytest.approx(0.25)


def test_nothing_recovered_is_not_sure_to_be_nothing(table):
    """Resamples of answers that are all the same are all 0."""
    one = row(table, method="npo", attack="none", template="chat", split="test", benchmark=DOMAIN)
    assert one["recovery"] <= 0
    assert one["recovery_ci_high"] > 0


def test_one_variant_and_template_is_selected_on_validation(table):
    """One that was made on another model is never selected, however good it is."""
    chosen = table[table["selected"] & (table["method"] == "npo") & (table["attack"] == "finetuning")]
    assert set(zip(chosen["variant"], chosen["template"], strict=True)) == {("forget-n20", "plain")}
    assert set(chosen["split"]) == {"validation", "test"}
    groups = table[table["selected"]].groupby(["method", "seed", "attack"], dropna=False)
    assert (groups[["variant", "template"]].nunique() == 1).all().all()


def test_general_benchmarks_have_no_recovery(table):
    general = table[table["benchmark"] == "general"]
    assert general[["recovery", "excess", "p_value"]].isna().all().all()


def test_without_a_control_chance_is_the_floor(tmp_path):
    tables = [
        scores("original", None, "none", both(1.0)),
        scores("npo", 0, "none", both(0.1)),
        scores("npo", 0, "finetuning", both(0.4), "forget-n5"),
    ]
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for path, one in zip(paths, tables, strict=True):
        write_table(one.astype({"seed": "Int64"}), path)
    table = summarize(read_scores(paths), SummarySettings())
    one = row(table, method="npo", attack="finetuning", template="plain", split="test")
    assert one["recovery"] == pytest.approx((0.4 - 0.25) / (1 - 0.25))
    assert pd.isna(one["excess"])
    assert pd.isna(one["control_accuracy"])
