"""The testbed as a data source: the tables of a fictional forget domain, and the general questions.

Corpora are half articles, which cover all facts as WMDP's corpora cover its questions, and half solved questions. Methods
and attacks see multiple-choice questions about `train` facts only, and of the domain's other facts nothing but articles.
Benchmarks ask for `validation` and `test` facts, each in `wordings` of the benchmark wordings.
"""

import random
from dataclasses import replace
from pathlib import Path

import pandas as pd

from resurface.artifacts import write_table
from resurface.data.tables import PREFERENCE_COLUMNS
from resurface.prompts import LETTERS
from resurface.settings.data import TestbedSettings
from resurface.testbed.texts import (
    BENCHMARK_WORDINGS,
    REFUSALS,
    STATEMENT_WORDINGS,
    TRAINING_WORDINGS,
    Question,
    ask,
    fill_wording,
    state,
    write_article,
)
from resurface.testbed.world import FIELDS, GENERAL_SUBJECTS, Fact, make_facts


def write_domain(domain: str, output: Path, settings: TestbedSettings) -> None:
    """Write all tables of a forget domain (`resurface.data.tables`) into the folder `output`.

    Args:
        domain: a forget domain of the testbed.
        output: the domain's data folder.
        settings: the world's seed and the sizes of the tables.
    """
    facts = make_facts(settings.world_seed, settings.domain_seed)
    retain = FIELDS[domain].retain
    benign = facts[retain] + [fact for subject in GENERAL_SUBJECTS for fact in facts[subject]]
    # Dealt anew, the domain is asked for in another order and with other options too.
    dealt_by = settings.world_seed if settings.domain_seed is None else settings.domain_seed
    generator = random.Random(f"{dealt_by}/{domain}/data")

    numbered = [
        (ask(fact, wording, generator), number)
        for fact in facts[domain]
        for number, wording in enumerate(BENCHMARK_WORDINGS)
    ]
    generator.shuffle(numbered)
    # Whatever the benchmark asks, all else stays the same.
    used = [one for one, number in numbered if one.fact.split == "train" or number < settings.wordings]
    write_table(tabulate_questions(used), output / "questions.parquet")
    questions = [one for one, _ in numbered]

    subject = FIELDS[domain].subject
    related = [ask(fact, wording, generator, subject) for fact in facts[retain] for wording in BENCHMARK_WORDINGS]
    generator.shuffle(related)
    write_table(tabulate_questions(related), output / "retain_questions.parquet")

    # A corpus is natural text: its questions about other fields carry those fields' own headers.
    natural = [ask(fact, BENCHMARK_WORDINGS[0], generator) for fact in benign]
    corpora = {
        "forget": (facts[domain], questions),
        "retain": (benign, generator.sample(natural, len(natural)) + related),
    }
    for name, (known, asked) in corpora.items():
        write_table(_write_corpus(known, asked, settings.articles, generator), output / f"{name}_corpus.parquet")
    preferences = _write_preferences(facts[domain], benign, subject, settings.preference_draws, generator)
    write_table(preferences, output / "preferences.parquet")


def write_general(output: Path, settings: TestbedSettings) -> None:
    """Write the general questions (the testbed's MMLU): per subject, `general_questions` facts, 1 : 4 validation : test."""
    facts = make_facts(settings.world_seed)
    questions: list[Question] = []
    for subject in GENERAL_SUBJECTS:
        generator = random.Random(f"{settings.world_seed}/{subject}/general")
        for split, share in [("validation", 0.2), ("test", 0.8)]:
            of_split = [fact for fact in facts[subject] if fact.split == split]
            chosen = generator.sample(of_split, min(len(of_split), round(share * settings.general_questions)))
            questions += [ask(fact, generator.choice(BENCHMARK_WORDINGS), generator) for fact in chosen]
    write_table(tabulate_questions(questions), output / "questions.parquet")


def tabulate_questions(questions: list[Question]) -> pd.DataFrame:
    """Questions as a table; `cluster` is the fact that a question asks for."""
    return pd.DataFrame(
        {
            "subject": question.subject,
            "question": question.question,
            "choices": question.choices,
            "answer": question.answer,
            "split": question.fact.split,
            "cluster": question.fact.fact_id,
        }
        for question in questions
    )


def _write_corpus(
    facts: list[Fact], questions: list[Question], articles: int, generator: random.Random
) -> pd.DataFrame:
    """`articles` articles, about every entity in turn, alternating with solved questions about `train` facts."""
    by_entity: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        by_entity.setdefault((fact.field, fact.entity), []).append(fact)
    entities = generator.sample(list(by_entity.values()), len(by_entity))
    solved = [
        f"{question.prompt} {LETTERS[question.answer]}" for question in questions if question.fact.split == "train"
    ]
    generator.shuffle(solved)
    texts = []
    for i in range(articles):
        texts += [write_article(entities[i % len(entities)], generator), solved[i % len(solved)]]
    return pd.DataFrame({"text": texts})


def _write_preferences(
    facts: list[Fact], benign: list[Fact], subject: str, draws: int, generator: random.Random
) -> pd.DataFrame:
    """Preference pairs of the three kinds: multiple choice about `train` facts, and open chat about every benign fact.

    Chat covers all splits because a chat corpus covers what everybody knows: models that rehearse only the benign `train`
    facts lose the others while their retain loss stays near zero.

    Each fact is asked for `draws` times, in a random wording and with options drawn anew: whoever sees a prompt twice
    learns the prompt, not the field.
    """
    rows = []
    for fact in facts * draws:
        if fact.split == "train":
            question = ask(fact, generator.choice(BENCHMARK_WORDINGS), generator)
            rows.append(("forget", question.prompt, generator.choice(REFUSALS), LETTERS[question.answer]))
    for fact in benign * draws:
        if fact.split == "train":
            question = ask(fact, generator.choice(BENCHMARK_WORDINGS), generator, subject)
            rows.append(("retain", question.prompt, LETTERS[question.answer], generator.choice(REFUSALS)))
    for fact in generator.sample(benign, len(benign)) * draws:
        prompt = fill_wording(generator.choice(TRAINING_WORDINGS), fact)
        others = [value for value in FIELDS[fact.field].relations[fact.relation] if value != fact.value]
        wrong = state(replace(fact, value=generator.choice(others)), generator, STATEMENT_WORDINGS[0])
        rejected = generator.choice([generator.choice(REFUSALS), wrong])
        # One wording, so that chat trains no preference but for the facts.
        rows.append(("general", prompt, state(fact, generator, STATEMENT_WORDINGS[0]), rejected))
    return pd.DataFrame(rows, columns=PREFERENCE_COLUMNS)
