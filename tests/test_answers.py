"""Answers to look through: what was selected, in an order that says which questions belong together, and whose text is shown."""

import json

import pandas as pd
import pytest
from test_worst_case import DOMAIN, answers

from resurface.analysis.answers import describe_answers, question_texts, select_answers
from resurface.analysis.summary import summarize
from resurface.analysis.tables import ANSWER_KINDS
from resurface.config import validate_config
from resurface.data.tables import hash_question
from resurface.errors import ResurfaceError
from resurface.reproducibility.jobs import shown_domains
from resurface.settings.summary import SummarySettings


@pytest.fixture
def scores():
    """Two variants of an attack: the one that is better on validation is worse on test."""
    tables = [answers("original", "none", [1] * 4, seed=None), answers("npo", "none", [0, 1, 0, 0])]
    tables += [
        answers("original", "none", [1] * 4, seed=None, split="validation"),
        answers("npo", "none", [0, 1, 0, 0], split="validation"),
    ]
    for variant, validation, test in (("one", [1, 1, 1, 1], [0, 0, 1, 0]), ("two", [0, 0, 0, 0], [1, 1, 1, 1])):
        tables.append(answers("npo", "pruning", validation, variant=variant, split="validation"))
        tables.append(answers("npo", "pruning", test, variant=variant))
    return pd.concat(tables, ignore_index=True)


def test_answers_are_those_of_what_was_selected(scores):
    found = select_answers(scores, summarize(scores, SummarySettings(resamples=100)))
    assert list(found.columns) == list(ANSWER_KINDS)
    right = found.groupby(["method", "attack"])["correct"].agg(list)
    assert right["npo", "pruning"] == [False, False, True, False]
    assert right["npo", "none"] == [False, True, False, False]
    assert right["original", "none"] == [True] * 4
    assert found.loc[found["method"] == "original", "seed"].isna().all()


def test_a_summary_of_other_scores_is_refused(scores):
    summary = summarize(scores, SummarySettings(resamples=100))
    with pytest.raises(ResurfaceError, match="it is of other scores"):
        select_answers(scores[scores["attack"] == "none"], summary)


def test_the_page_gets_digits_and_only_the_text_that_it_may_show(scores):
    found = select_answers(scores, summarize(scores, SummarySettings(resamples=100)))
    described = describe_answers(found, ["none", "pruning", "gcg"], {"test0001": "</script><b>"})
    assert "<" not in described
    content = json.loads(described)
    assert content["attacks"] == ["no attack", "pruning", "GCG"]
    assert content["models"] == {"original": ["1111", None, None], "NPO, seed 0": ["0100", "0010", None]}
    assert [question["fact"] for question in content["questions"]] == [1, 1, 2, 2]
    assert [question["text"] for question in content["questions"]] == [None, "</script><b>", None, None]
    assert describe_answers(found[found["domain"] != DOMAIN], ["none"], {}) is None


def test_a_reference_without_attack_belongs_to_each_of_its_seeds():
    table = pd.DataFrame(
        {
            "domain": DOMAIN,
            "method": "never_learned",
            "seed": pd.array([None, None, 0, 1, 1], dtype="Int64"),
            "attack": ["none", "none", "gcg", "gcg", "gcg"],
            "question_id": ["a", "b", "a", "a", "b"],
            "cluster": ["f", "f", "f", "f", "f"],
            "correct": [True, False, True, False, True],
        }
    )
    models = json.loads(describe_answers(table, ["none", "gcg"], {}))["models"]
    assert models == {
        "never-learned (control), seed 0": ["10", "10"],
        "never-learned (control), seed 1": ["10", "01"],
    }
    with pytest.raises(ResurfaceError, match="answered twice"):
        describe_answers(pd.concat([table, table]), ["none"], {})


def test_texts_are_found_by_the_ids_of_score_tables():
    table = pd.DataFrame({"question": ["Which rune?"], "choices": [["a", "b", "c", "d"]], "answer": [2]})
    (identity,) = question_texts(table)
    assert identity == hash_question("Which rune?", ["a", "b", "c", "d"])
    assert question_texts(table)[identity] == "Which rune?\nA. a\nB. b\nC. c\nD. d\nAnswer: C"


@pytest.mark.parametrize(("setting", "expected"), [(None, ["runecraft"]), ("none", []), ("all", ["runecraft", "bio"])])
def test_questions_about_real_hazards_are_text_only_if_one_says_so(setting, expected):
    report = {} if setting is None else {"report": {"question_text": setting}}
    config = {"domains": ["runecraft", "bio"], "methods": {"npo": {}}, "attacks": {"none": {}}, **report}
    assert shown_domains(validate_config(config, "config.yaml")) == expected
