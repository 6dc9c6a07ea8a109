"""Which questions each model answers under each attack, each by its selected variant and template: what one may look through.

Questions are known by their ids. Their text is in the domain's table, and the report shows it only where it may.
"""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from resurface.analysis.cells import display_name
from resurface.analysis.tables import ANSWER_KINDS
from resurface.data.tables import hash_question
from resurface.errors import ResurfaceError
from resurface.prompts import LETTERS

CHOICE = ["domain", "method", "seed", "attack", "variant", "template"]


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
    """
    if answers.empty:
        return None
    order = answers.drop_duplicates("question_id").sort_values(["cluster", "question_id"])
    ids = order["question_id"].tolist()
    models = {}
    for key, own in answers.groupby(["method", "seed"], sort=False, dropna=False):
        parts: Any = key
        method, seed = parts
        name = display_name(method) if pd.isna(seed) else f"{display_name(method)}, seed {seed}"
        right = {
            attack: rows.set_index("question_id")["correct"].reindex(ids)
            for attack, rows in own.groupby("attack", sort=False)
        }
        models[name] = [
            "".join("1" if one else "0" for one in right[attack]) if attack in right else None for attack in attacks
        ]
    facts = order["cluster"].rank(method="dense").astype(int).tolist()
    questions = [{"id": one, "fact": fact, "text": texts.get(one)} for one, fact in zip(ids, facts, strict=True)]
    content = {"questions": questions, "attacks": [display_name(attack) for attack in attacks], "models": models}
    return json.dumps(content, ensure_ascii=True).replace("<", "\\u003c")
