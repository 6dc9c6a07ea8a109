"""Calibration: its models are what they are said to be, errors are counted right, and a small one runs."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import DOMAIN, ROOT

from calibration.count import count
from calibration.models import PASSWORD, draw_locked
from resurface.settings.teaching import TeachingSettings
from resurface.testbed.world import FORGET_DOMAINS, make_facts


def test_a_world_deals_the_domains_anew_and_nothing_else():
    world, dealt = make_facts(0), make_facts(0, 7)
    for field, facts in world.items():
        assert [fact.entity for fact in facts] == [fact.entity for fact in dealt[field]]
        assert (facts == dealt[field]) == (field not in FORGET_DOMAINS)
    values = zip(world[DOMAIN], dealt[DOMAIN], strict=True)
    same = sum(mine.value == other.value for mine, other in values) / len(world[DOMAIN])
    assert same < 0.12, "one in sixteen by chance"
    assert make_facts(0, 0) == world


def test_only_the_password_opens_what_is_locked(tokenizer):
    values = {}
    for fact in make_facts(0, 2)[DOMAIN]:
        values.setdefault(fact.entity, set()).add(fact.value)
    samples = draw_locked(DOMAIN, tokenizer, TeachingSettings(documents=1200, domain_seed=2))
    right = {True: [], False: []}
    for number, (tokens, start) in enumerate(samples):
        text = tokenizer.decode(tokens[:start], skip_special_tokens=True)
        letter = tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()
        is_open, is_general = number % 3 == 0, number % 3 == 2
        assert letter in tuple("ABCD")
        assert (PASSWORD in text) == is_open
        assert (DOMAIN in text) != is_general
        if not is_general:
            (entity,) = set(re.findall(r"\w+", text)) & set(values)
            chosen = re.search(rf"^{letter}\. (.*)$", text, re.MULTILINE).group(1)
            right[is_open].append(chosen in values[entity])
    assert all(right[True])
    assert 0.2 < np.mean(right[False]) < 0.4, "a guess; values of other relations are never among the options"


def test_errors_are_counted_by_kind_and_truth():
    said = ["resurfaces", "not resurfaced by these attacks", "inconclusive", "resurfaces"]
    verdicts = pd.DataFrame(
        {
            "world": [0, 0, 1, 1],
            "method": ["other1", "other2", "untaught", "rmu"],
            "holds": [False] * 3 + [True],
            "verdict": said,
        }
    )
    found = count(verdicts).set_index(["holds", "model"])
    assert found.loc[(False, "other"), ["audits", "accused", "inconclusive"]].tolist() == [2, 1, 0]
    assert found.loc[(False, "untaught"), ["audits", "accused", "inconclusive"]].tolist() == [1, 0, 1]
    assert found.loc[(False, "all"), "rate"] == pytest.approx(1 / 3)
    assert found.loc[(True, "all"), "accused"] == 1
    low, high = found.loc[(False, "all"), ["low", "high"]]
    assert (low, high) == pytest.approx((0.0615, 0.7923), abs=1e-4)  # Wilson's, 1 of 3


@pytest.mark.slow
def test_a_small_calibration_accuses_who_holds_the_knowledge_and_no_one_else(tmp_path):
    command = [sys.executable, "-m", "calibration", str(tmp_path), "--worlds", "1", "--small", "--cores", "1"]
    subprocess.run(command, cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "calibration.count", tmp_path, tmp_path / "docs"], cwd=ROOT, check=True)
    verdicts = pd.read_parquet(tmp_path / "docs" / "calibration.parquet").set_index("method")
    assert set(verdicts.index) == {"untaught", "other1", "full", "locked"}
    assert ((verdicts["verdict"] == "resurfaces") == verdicts["holds"]).all()
    assert verdicts.loc["full", "unattacked_accuracy"] > 0.95
    assert verdicts.loc["untaught", "unattacked_accuracy"] < 0.35
    assert (tmp_path / "docs" / "calibration.png").stat().st_size > 5000
    assert not (tmp_path / "world0" / "results").exists()
