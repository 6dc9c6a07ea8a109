"""Hands the testbed's questions to the harness: read from parquet with pandas, so that no cache can go stale."""

from pathlib import Path
from typing import Any

import datasets

from resurface.data.tables import read_question_table
from resurface.errors import ResurfaceError


def load(questions: str, subject: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The validation and test questions of a table, as the harness's one split `test`.

    Args:
        questions: path of the table, relative to the folder that holds `results/`.
        subject: keep only this field's questions.

    Raises:
        ResurfaceError: the table is missing or broken, or holds no such question.
    """
    path = Path(questions).absolute()
    table = read_question_table(path)
    asked = table[table["split"].isin(["validation", "test"])]
    if subject is not None:
        asked = asked[asked["subject"] == subject]
    if asked.empty:
        raise ResurfaceError(
            f"{path}: no question with the split validation or test"
            f"{'' if subject is None else f' and the subject {subject!r}'}; the table has the splits "
            f"{', '.join(sorted(set(table['split'])))} and the subjects {', '.join(sorted(set(table['subject'])))}"
        )
    return {"test": datasets.Dataset.from_pandas(asked, preserve_index=False)}
