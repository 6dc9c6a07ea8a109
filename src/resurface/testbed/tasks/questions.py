"""Hands the testbed's questions to the harness: read from parquet with pandas, so that no cache can go stale."""

from pathlib import Path
from typing import Any

import datasets
import pandas as pd


def load(questions: str, subject: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The validation and test questions of a table, as the harness's one split `test`.

    Args:
        questions: path of the table, relative to the folder that holds `results/`.
        subject: keep only this field's questions.
    """
    table = pd.read_parquet(Path(questions).absolute())
    table = table[table["split"].isin(["validation", "test"])]
    if subject is not None:
        table = table[table["subject"] == subject]
    return {"test": datasets.Dataset.from_pandas(table, preserve_index=False)}
