"""Which questions each model answers under each attack, each by its selected variant and template: what one may look through.

Questions are known by their ids. Their text is in the domain's table, and the report shows it only where it may.
"""

import json
from collections.abc import Iterator, Sequence

import pandas as pd

from resurface.analysis.cells import display_name
from resurface.analysis.tables import ANSWER_KINDS, SETTING
from resurface.data.tables import hash_question
from resurface.errors import ResurfaceError
from resurface.prompts import LETTERS

CHOICE = list(SETTING)


def select_answers(scores: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """One row per model, attack and test question of the domain: the columns of `ANSWER_KINDS`.

    Args:
        scores: score tables (`summary.read_scores`).
        summary: their summary, which says what was selected.

    Raises:
        ResurfaceError: the summary is of other scores.
    """
    own = summary[(summary["benchmark"] == summary["domain"]) & (summary["split"] == "test") & summary["selected"]]
    asked = scores[(scores["benchmark"] == scores["domain"]) & (scores["split"] == "test")].astype({"seed": "Int64"})
    found = asked.merge(own[CHOICE], on=CHOICE)
    if own.empty or len(found[CHOICE].drop_duplicates()) != len(own):
        raise ResurfaceError(
            "the summary selects no variant on test questions, or some that the score tables have no answers of; it is of other scores: "
            "delete it and run the workflow again"
        )
    return found[list(ANSWER_KINDS)]


def question_texts(table: pd.DataFrame) -> dict[str, str]:
    """Id → text of the questions of a domain's table, with their options and the right letter."""
    return {
        hash_question(row["question"], row["choices"]): "\n".join(
            [
                row["question"],
                *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True)),
                f"Answer: {LETTERS[row['answer']]}",
            ]
        )
        for row in table.to_dict("records")
    }


def describe_answers(answers: pd.DataFrame, attacks: Sequence[str], texts: dict[str, str]) -> str | None:
    """One domain's answers as JSON for the page's script; None if there are none.

    Args:
        answers: rows of `select_answers` about one domain.
        attacks: in the order in which they are shown.
        texts: of questions that may be shown, by id (`question_texts`).

    Returns:
        `questions` (id and, if it may be shown, text), `attacks`, and `models`: name → for each attack, a digit per question, 1 where the
        answer is right, or null if it was not run. No `<` is in it, so that it cannot end the element that holds it.

    Raises:
        ResurfaceError: a question is answered twice.
    """
    if answers.empty:
        return None
    if answers.duplicated(["method", "seed", "attack", "question_id"]).any():
        raise ResurfaceError(
            "a question is answered twice under the same attack; delete the table and run the workflow again"
        )
    order = answers.drop_duplicates("question_id").sort_values(["cluster", "question_id"])
    ids = order["question_id"].tolist()
    models = {}
    for name, own in _by_model(answers):
        right = {
            attack: set(rows.loc[rows["correct"], "question_id"]) for attack, rows in own.groupby("attack", sort=False)
        }
        models[name] = [
            "".join("1" if one in right[attack] else "0" for one in ids) if attack in right else None
            for attack in attacks
        ]
    facts = order["cluster"].rank(method="dense").astype(int).tolist()
    questions = [{"id": one, "fact": fact, "text": texts.get(one)} for one, fact in zip(ids, facts, strict=True)]
    content = {"questions": questions, "attacks": [display_name(attack) for attack in attacks], "models": models}
    return json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")


def _by_model(answers: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each model's name and answers. A reference model without attack has no seed, and belongs to each of its seeds under attack."""
    for method, own in answers.groupby("method", sort=False):
        name = display_name(str(method))
        is_seedless = own["seed"].isna()
        seeds = own.loc[~is_seedless, "seed"].unique()
        if not len(seeds):
            yield name, own
        for seed in seeds:
            yield f"{name}, seed {seed}", own[is_seedless | (own["seed"] == seed)]
