"""Hands a table's questions to the harness: read from parquet with pandas, so that no cache can go stale.

MMLU's 57 tasks read the same table, which is therefore kept, under the hash of its content.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from resurface.artifacts import hash_file
from resurface.data.tables import read_question_table
from resurface.errors import ResurfaceError

if TYPE_CHECKING:
    import pandas as pd


def load(questions: str, subject: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The validation and test questions of a table, as the harness's one split `test`.

    Args:
        questions: path of the table, relative to the folder that holds `results/`.
        subject: keep only this field's questions.

    Raises:
        ResurfaceError: the table is missing or broken, or holds no such question.
    """
    path = Path(questions).absolute()
    table = _read(path, hash_file(path) if path.is_file() else "")
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


@lru_cache(maxsize=1)
def _read(path: Path, content: str) -> "pd.DataFrame":
    """The table at a path whose content has this hash."""
    return read_question_table(path)
