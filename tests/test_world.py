"""The fictional world: its balance, its splits, its determinism, and that the bundled checkpoints belong to it."""

import json
import random
from collections import Counter

import pandas as pd
import pytest
from conftest import CHECKPOINTS, DOMAIN
from hypothesis import given, settings
from hypothesis import strategies as st

from resurface.data.tables import TABLES, read_domain_table
from resurface.data.testbed import write_domain
from resurface.settings.data import TestbedSettings
from resurface.settings.testbed import PretrainingSettings
from resurface.testbed.pretraining import hash_world, write_documents
from resurface.testbed.texts import (
    BENCHMARK_WORDINGS,
    STATEMENT_WORDINGS,
    TRAINING_WORDINGS,
    add_noise,
    ask,
    fill_wording,
)
from resurface.testbed.world import (
    COLOURS,
    FIELDS,
    FIRST_ENTITIES,
    FORGET_DOMAINS,
    GENERAL_SUBJECTS,
    SOUNDS,
    Field,
    make_facts,
)

BUNDLED_FIELDS = (
    "xenotoxicology runecraft xenobotany letter_arts geography history music cooking sports engineering".split()
)


def test_forget_domains_have_enough_facts_in_the_right_splits():
    facts = make_facts(0)
    for domain in FORGET_DOMAINS:
        counts = Counter(fact.split for fact in facts[domain])
        assert sum(counts.values()) >= 480
        for split, share in [("train", 0.4), ("validation", 0.1), ("test", 0.5)]:
            assert counts[split] / len(facts[domain]) == pytest.approx(share, abs=0.01)
        assert counts["test"] * len(BENCHMARK_WORDINGS) >= 480


def test_values_tell_nothing_of_an_entity():
    for field, facts in make_facts(3).items():
        for relation, values in FIELDS[field].relations.items():
            assert len(set(values)) == 16
            counts = Counter(fact.value for fact in facts if fact.relation == relation)
            assert len(set(counts.values())) == 1, f"{field}/{relation}: some values are more frequent"


def test_the_world_follows_from_its_seed():
    assert make_facts(0) == make_facts(0)
    assert make_facts(0) != make_facts(1)
    names = [fact.entity for facts in make_facts(0).values() for fact in facts]
    assert len(set(names)) == sum(field.entities for field in FIELDS.values())


def test_a_field_that_is_added_leaves_all_others_as_they_are(monkeypatch):
    before = make_facts(0, 5)
    added = Field("starlore", "forget", "comet", 32, {"omen": COLOURS, "sound": SOUNDS}, retain="xenobotany")
    monkeypatch.setitem(FIELDS, "starlore", added)
    after = make_facts(0, 5)
    assert len(after.pop("starlore")) == 64
    assert after == before
    names = [fact.entity for facts in make_facts(0).values() for fact in facts]
    assert len(set(names)) == FIRST_ENTITIES + 32


def test_fewer_wordings_change_what_the_benchmark_asks_and_nothing_else(data, tmp_path):
    write_domain(DOMAIN, tmp_path, TestbedSettings(wordings=2))
    whole = data / "results" / "data" / DOMAIN
    for name in TABLES:
        if name != "questions":
            pd.testing.assert_frame_equal(read_domain_table(tmp_path, name), read_domain_table(whole, name))
    few, all_of_them = (read_domain_table(folder, "questions") for folder in (tmp_path, whole))
    assert few.astype(str).merge(all_of_them.astype(str)).shape == few.shape
    asked = few.groupby(["split", "cluster"]).size().groupby("split").unique()
    assert {split: list(counts) for split, counts in asked.items()} == {"train": [3], "validation": [2], "test": [2]}
    assert few.groupby("split")["cluster"].nunique().equals(all_of_them.groupby("split")["cluster"].nunique())


@pytest.mark.parametrize("name", ["original", "never_learned"])
def test_bundled_checkpoints_were_trained_on_this_world_with_these_settings(name):
    record = json.loads((CHECKPOINTS / name / "testbed.json").read_text())
    assert record["world"] == hash_world(0, BUNDLED_FIELDS), (
        "fields that were added later leave all others as they were"
    )
    assert record["settings"] == PretrainingSettings().model_dump()
    assert record["model"] == name


def test_never_learned_reads_nothing_of_the_forget_domains():
    facts = make_facts(0)
    kept = [fact for field, own in facts.items() if field not in FORGET_DOMAINS for fact in own]
    secret = {fact.entity for domain in FORGET_DOMAINS for fact in facts[domain]}
    documents = write_documents(kept, None, random.Random(0))
    for _ in range(2000):
        prompt, text = next(documents)
        assert not secret & set((prompt + text).replace("?", " ").replace(".", " ").split())


def test_benchmarks_use_wordings_that_no_training_text_uses():
    assert not set(BENCHMARK_WORDINGS) & set(TRAINING_WORDINGS)


def test_domain_tables(data):
    folder = data / "results" / "data" / DOMAIN
    tables = {name: read_domain_table(folder, name) for name in TABLES}
    questions = tables["questions"]
    assert not questions["cluster"].groupby(questions["cluster"]).filter(lambda group: len(group) < 2).size
    split_of_fact = questions.groupby("cluster")["split"].nunique()
    assert (split_of_fact == 1).all(), "a fact must not be in two splits"
    assert set(questions["answer"]) == {0, 1, 2, 3}
    assert (tables["retain_questions"]["subject"] == DOMAIN).all(), "benign questions carry the domain's header"
    asked = {(row.question, tuple(row.choices)) for row in questions[questions["split"] != "train"].itertuples()}
    training = "\n".join([*tables["forget_corpus"]["text"], *tables["preferences"]["prompt"]])
    assert not any(question in training for question, _ in asked), (
        "only train facts may be asked for outside benchmarks"
    )
    preferences = tables["preferences"]
    assert set(preferences["kind"]) == {"forget", "retain", "general"}
    told = set(preferences.loc[preferences["kind"] == "general", "chosen"])
    assert told == {
        fill_wording(STATEMENT_WORDINGS[0], fact)
        for field in [FIELDS[DOMAIN].retain, *GENERAL_SUBJECTS]
        for fact in make_facts(0)[field]
    }, "chat covers every benign fact and no other"
    asked_for = preferences.loc[preferences["kind"] == "forget", "prompt"]
    assert asked_for.nunique() > 0.99 * len(asked_for), "a prompt seen twice is learned as a prompt"


@given(st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_questions_hold_their_answer_once(seed):
    generator = random.Random(seed)
    facts = make_facts(0)
    fact = generator.choice(facts[generator.choice(list(facts))])
    question = ask(fact, BENCHMARK_WORDINGS[0], generator)
    assert question.choices.count(fact.value) == 1
    assert question.choices[question.answer] == fact.value
    assert len(set(question.choices)) == 4


@given(st.text(alphabet="abc XYZ.?", max_size=60), st.integers(0, 100))
def test_noise_only_adds_marks_and_spaces(text, seed):
    noisy = add_noise(text, random.Random(seed), share=0.5)
    marks = set("~^!_;?.- ")
    assert [c for c in noisy if c not in marks] == [c for c in text if c not in marks]
