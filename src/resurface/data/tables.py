"""The tables of a domain that every data source writes and every method and attack reads.

- `forget_corpus`, `retain_corpus`: texts (`text`) of the domain and of what the model shall keep.
- `questions`: multiple-choice questions of the domain with their splits. Attacks may use `train` only; `perturbation`
  alone rewrites the prompts of the others, and reads none of their answers.
- `retain_questions`: benign multiple-choice questions, under the forget domain's header (design §7).
- `preferences`: `prompt`, `chosen`, `rejected` of three kinds. `forget`: a refusal over the harmful answer; `retain`: an
  answer over a refusal; `general`: open chat.
"""

import hashlib
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resurface.artifacts import read_table
from resurface.errors import ResurfaceError
from resurface.prompts import LETTERS, plain_prompt

if TYPE_CHECKING:
    import pandas as pd

QUESTION_COLUMNS = ["subject", "question", "choices", "answer", "split", "cluster"]
PREFERENCE_COLUMNS = ["kind", "prompt", "chosen", "rejected"]
SPLITS = ["train", "validation", "test"]
KINDS = ["forget", "retain", "general"]
TABLES = {
    "forget_corpus": ["text"],
    "retain_corpus": ["text"],
    "questions": QUESTION_COLUMNS,
    "retain_questions": QUESTION_COLUMNS,
    "preferences": PREFERENCE_COLUMNS,
}


def hash_question(question: str, choices: Sequence[object]) -> str:
    """The id of a question: a hash of its own text and choices, the same in every run and every table."""
    return hashlib.sha256("\n".join([question, *map(str, choices)]).encode()).hexdigest()[:16]


def draw_split(question_id: str) -> str:
    """The split of a question of a benchmark that has only one: every fifth is `validation`, the others `test`."""
    return "validation" if int(question_id, 16) % 5 == 0 else "test"


def read_domain_table(folder: Path, name: str) -> "pd.DataFrame":
    """Read one of a domain's tables (`TABLES`) from its data folder and check what its readers rely on.

    Raises:
        ResurfaceError: the table is missing or broken, has a value that is not allowed, or lacks a kind of preferences.
    """
    path = folder / f"{name}.parquet"
    if TABLES[name] == QUESTION_COLUMNS:
        return read_question_table(path)
    table = read_table(path, TABLES[name])
    _check_texts(table, path, [column for column in TABLES[name] if column != "kind"])
    if "kind" in TABLES[name]:
        _check_words(table, path, "kind", KINDS)
        _check_presence(table, path, "kind", KINDS)
    return table


def read_question_table(path: Path) -> "pd.DataFrame":
    """Read a table of questions and check what its readers rely on.

    Raises:
        ResurfaceError: the table is missing or broken, or has a value that is not allowed.
    """
    table = read_table(path, QUESTION_COLUMNS)
    _check_texts(table, path, ["subject", "question"])
    _check_words(table, path, "split", SPLITS)
    _check_values(table, path, "choices", f"lists of {len(LETTERS)} texts", is_list_of_choices, type_of)
    _check_values(
        table,
        path,
        "answer",
        f"whole numbers from 0 to {len(LETTERS) - 1}",
        lambda value: type(value) is int and 0 <= value < len(LETTERS),
        reprlib.repr,
    )
    return table


def read_questions(folder: Path, name: str) -> list[tuple[str, str]]:
    """The `train` questions of a table as (plain prompt, letter of the right answer), in the table's order.

    Raises:
        ResurfaceError: the table is missing or broken, has a value that is not allowed, or has no `train` question.
    """
    table = read_domain_table(folder, name)
    _check_presence(table, folder / f"{name}.parquet", "split", ["train"])
    table = table[table["split"] == "train"]
    return [
        (plain_prompt(row["subject"], row["question"], list(row["choices"])), LETTERS[row["answer"]])
        for row in table.to_dict("records")
    ]


def _check_texts(table: "pd.DataFrame", path: Path, columns: list[str]) -> None:
    """Check that columns hold text that is not empty; a message does not show it."""
    for column in columns:
        _check_values(table, path, column, "text that is not empty", is_text, type_of)


def _check_words(table: "pd.DataFrame", path: Path, column: str, words: list[str]) -> None:
    """Check that a column holds nothing but the given words."""
    _check_values(
        table, path, column, ", ".join(words), lambda value: isinstance(value, str) and value in words, reprlib.repr
    )


def _check_values(
    table: "pd.DataFrame",
    path: Path,
    column: str,
    allowed: str,
    is_allowed: Callable[[Any], bool],
    show: Callable[[Any], str],
) -> None:
    """Check each value of a column, and say of the first wrong one where it is, what it is, and what is allowed."""
    for row, value in enumerate(table[column]):
        if not is_allowed(value):
            raise ResurfaceError(
                f"{path}: column {column!r}, row {row}: found {show(value)}; allowed: {allowed}. Correct the table, or "
                "delete it and run the workflow again"
            )


def _check_presence(table: "pd.DataFrame", path: Path, column: str, needed: list[str]) -> None:
    """Check that each of the needed words occurs in a column of words."""
    found = sorted(set(table[column]))
    missing = [word for word in needed if word not in found]
    if missing:
        raise ResurfaceError(
            f"{path}: column {column!r}: no row has {missing[0]!r}; found {', '.join(found)}; needed are "
            f"{', '.join(needed)}. Correct the table, or delete it and run the workflow again"
        )


def is_text(value: Any) -> bool:
    """Whether this is text that is not empty."""
    return isinstance(value, str) and bool(value.strip())


def is_list_of_choices(value: Any) -> bool:
    """Whether these are the texts of four choices."""
    # Parquet's lists arrive as arrays.
    choices = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(choices, list) and len(choices) == len(LETTERS) and all(map(is_text, choices))


def type_of(value: Any) -> str:
    """What a value is, without its text: questions stay out of logs."""
    kind = type(value).__name__
    if hasattr(value, "__len__"):
        return f"{kind} of length {len(value)}"
    # pandas reads a missing text as NaN, which equals nothing.
    return "nothing" if value is None or value != value else kind
