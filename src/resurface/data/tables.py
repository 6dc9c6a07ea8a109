"""The tables of a domain that every data source writes and every method and attack reads.

- `forget_corpus`, `retain_corpus`: texts (`text`) of the domain and of what the model shall keep.
- `questions`: multiple-choice questions of the domain with their splits. Attacks may use `train` only.
- `retain_questions`: benign multiple-choice questions, under the forget domain's header (design §7).
- `preferences`: `prompt`, `chosen`, `rejected` of three kinds. `forget`: a refusal over the harmful answer; `retain`: an
  answer over a refusal; `general`: open chat.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from resurface.artifacts import read_table
from resurface.prompts import LETTERS, plain_prompt

if TYPE_CHECKING:
    import pandas as pd

QUESTION_COLUMNS = ["subject", "question", "choices", "answer", "split", "cluster"]
PREFERENCE_COLUMNS = ["kind", "prompt", "chosen", "rejected"]
TABLES = {
    "forget_corpus": ["text"],
    "retain_corpus": ["text"],
    "questions": QUESTION_COLUMNS,
    "retain_questions": QUESTION_COLUMNS,
    "preferences": PREFERENCE_COLUMNS,
}


def read_domain_table(folder: Path, name: str) -> "pd.DataFrame":
    """Read one of a domain's tables (`TABLES`) from its data folder."""
    return read_table(folder / f"{name}.parquet", TABLES[name])


def read_questions(folder: Path, name: str) -> list[tuple[str, str]]:
    """The `train` questions of a table as (plain prompt, letter of the right answer), in the table's order."""
    table = read_domain_table(folder, name)
    table = table[table["split"] == "train"]
    return [
        (plain_prompt(row["subject"], row["question"], list(row["choices"])), LETTERS[row["answer"]])
        for row in table.to_dict("records")
    ]
