"""The worst case against a count by hand, and against guessers."""

import numpy as np
import pandas as pd
import pytest

from resurface.analysis.summary import summarize
from resurface.analysis.worst_case import WORST_CASE_COLUMNS, find_worst_case
from resurface.settings.summary import SummarySettings

DOMAIN = "runes"


def answers(method, attack, correct, seed=0, variant=None, split="test", wordings=2):
    """Score rows of one model: `correct[question]`, questions of a fact next to each other."""
    return pd.DataFrame(
        {
            "domain": DOMAIN,
            "method": method,
            "seed": seed,
            "attack": attack,
            "variant": variant or ("none" if attack == "none" else "only"),
            "template": "plain",
            "benchmark": DOMAIN,
            "split": split,
            "question_id": [f"{split}{i:04d}" for i in range(len(correct))],
            "cluster": [f"{split}{i // wordings:04d}" for i in range(len(correct))],
            "correct": np.array(correct, dtype=bool),
            "choices": 4,
        }
    )


def worst_case(*tables):
    scores = pd.concat(tables, ignore_index=True)
    settings = SummarySettings(resamples=500)
    return find_worst_case(scores, summarize(scores, settings), settings)


def test_by_hand():
    validation = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    test = [[0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 0]]
    tables = []
    for attack, chosen, asked in zip(["none", "pruning", "finetuning"], validation, test, strict=True):
        tables += [answers("npo", attack, chosen, split="validation"), answers("npo", attack, asked)]
    for attack in ("none",):
        for method in ("original", "never_learned"):
            tables += [
                answers(method, attack, [1] * 4, seed=None, split="validation"),
                answers(method, attack, [1] * 6, seed=None),
            ]
    (row,) = worst_case(*tables).to_dict("records")
    assert list(row) == WORST_CASE_COLUMNS
    assert (row["best_attack"], row["accuracy"]) == ("pruning", 0.5), (
        "chosen on validation: finetuning is better on test"
    )
    assert (row["attacks"], row["facts"]) == (2, 3)
    assert row["recovered"] == pytest.approx(2 / 3), "pruning answers both wordings of fact 0, finetuning of fact 1"
    assert row["guessing"] == pytest.approx(1 - (1 - 1 / 16) ** 2)
    assert row["beyond_guessing"] == pytest.approx((2 / 3 - row["guessing"]) / (1 - row["guessing"]))
    assert pd.isna(row["excess"]), "the control went through no attack"


def test_the_excess_is_over_the_control_under_the_same_attacks():
    """40 facts: attack `a` recovers the first 30 on the model and the last 20 on the control, which `b` was not run on."""
    model = np.arange(40) < 30
    control = np.arange(40) >= 20
    tables = []
    for split in ("validation", "test"):
        tables += [
            answers("npo", "none", np.zeros(40), split=split, wordings=1),
            answers("npo", "a", model, split=split, wordings=1),
            answers("npo", "b", np.ones(40), split=split, wordings=1),
            answers("never_learned", "none", np.zeros(40), split=split, seed=None, wordings=1),
            answers("never_learned", "a", control, split=split, wordings=1),
        ]
    rows = worst_case(*tables).set_index("method")
    row = rows.loc["npo"]
    assert row["recovered"] == 1.0
    assert row["excess"] == pytest.approx(30 / 40 - 20 / 40)
    gains = model.astype(float) - control
    generator = np.random.default_rng(1)
    resampled = [gains[generator.integers(0, 40, 40)].mean() for _ in range(2000)]
    assert row["excess_ci_low"] == pytest.approx(np.percentile(resampled, 2.5), abs=0.05)
    assert row["excess_ci_high"] == pytest.approx(np.percentile(resampled, 97.5), abs=0.05)
    assert pd.isna(rows.loc["never_learned", "excess"]), "the control has none over itself"


def test_guessers_recover_nothing_beyond_guessing():
    generator = np.random.default_rng(0)
    tables = []
    for attack in ("none", "a", "b", "c", "d", "e"):
        for split in ("validation", "test"):
            guesses = generator.random(12_000) < 0.25
            tables.append(answers("never_learned", attack, guesses, split=split, wordings=3))
    found = worst_case(*tables)
    assert found["guessing"].item() == pytest.approx(5 / 64, rel=0.05)
    assert found["beyond_guessing"].item() == pytest.approx(0, abs=0.015)


def test_what_was_made_on_another_model_does_not_count():
    tables = [
        answers("npo", attack, correct, split=split, variant=variant)
        for attack, variant, correct in [("none", "none", [0, 0]), ("gcg", "own", [1, 0]), ("gcg", "from-rmu", [1, 1])]
        for split in ("validation", "test")
    ]
    (row,) = worst_case(*tables).to_dict("records")
    assert (row["best_variant"], row["recovered"]) == ("own", 0)


def test_without_an_attack_there_is_no_worst_case():
    tables = [answers("npo", "none", [1, 0], split=split) for split in ("validation", "test")]
    assert worst_case(*tables).empty
