"""The tables that an analysis reads: score tables and what is computed from them, checked before anything is made of them.

They may be a stranger's or another run's. So each column must hold what its name promises, and names must be plain text: they
end up in a terminal, in file names and in a page.
"""

import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resurface.analysis.perplexity import TEXTS
from resurface.artifacts import read_table
from resurface.errors import ResurfaceError

MOST_LETTERS = 200  # of a name
MOST_TEXT = 2000  # letters of a sentence
ORIGINAL, CONTROL = "original", "never_learned"
REFERENCES = (ORIGINAL, CONTROL)  # the models that may have no seed


def _is_name(column: pd.Series) -> bool:
    return all(
        isinstance(name, str) and 0 < len(name) <= MOST_LETTERS and name.isprintable() for name in column.unique()
    )


def _is_text(column: pd.Series) -> bool:
    return all(
        isinstance(text, str) and len(text) <= MOST_TEXT and text.replace("\u00a0", " ").isprintable()
        for text in column
    )


def _numbers(column: pd.Series) -> np.ndarray | None:
    """The numbers of a column, NaN where there is none; None if it holds something else."""
    if column.isna().all():
        return np.full(len(column), np.nan)
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return None
    return column.to_numpy(dtype=float, na_value=np.nan)


def _within(low: float, high: float, is_whole: bool = False, has_gaps: bool = False) -> Callable[[pd.Series], bool]:
    """Whether a column holds numbers between two bounds."""

    def check(column: pd.Series) -> bool:
        numbers = _numbers(column)
        if numbers is None:
            return False
        known = numbers[~np.isnan(numbers)]
        return bool(
            (has_gaps or len(known) == len(numbers))
            and ((known >= low) & (known <= high)).all()
            and (not is_whole or (known == known.round()).all())
        )

    return check


def _is_list_of_logprobs(column: pd.Series) -> bool:
    return all(isinstance(value, np.ndarray) and value.ndim == 1 and len(value) > 1 for value in column)


def _is_versions(column: pd.Series) -> bool:
    try:
        tables = [json.loads(text) for text in column.unique()]
    except ValueError:
        return False
    return all(
        isinstance(table, dict)
        and all(isinstance(version, str) and _is_name(pd.Series([name, version])) for name, version in table.items())
        for table in tables
    )


# What a column may hold: what it is called in a message, and how it is told.
Kind = tuple[str, Callable[[pd.Series], bool]]
NAME: Kind = ("short printable texts", _is_name)
NAME_OR_NONE: Kind = ("short printable texts, or nothing", lambda column: _is_name(column.dropna()))
TEXT: Kind = ("printable texts", _is_text)
SEED: Kind = ("whole numbers from 0, or nothing", _within(0, 2**32, is_whole=True, has_gaps=True))
COUNT: Kind = ("whole numbers from 0", _within(0, 2**31, is_whole=True))
SHARE: Kind = ("numbers from 0 to 1", _within(0, 1))
SHARE_OR_NONE: Kind = ("numbers from 0 to 1, or nothing", _within(0, 1, has_gaps=True))
NUMBER: Kind = ("finite numbers", _within(-1e300, 1e300))
NUMBER_OR_NONE: Kind = ("finite numbers, or nothing", _within(-1e300, 1e300, has_gaps=True))
AMOUNT: Kind = ("numbers from 0", _within(0, 1e300))
VERSIONS: Kind = ("JSON, package → version", _is_versions)
FLAG: Kind = ("true or false", lambda column: pd.api.types.is_bool_dtype(column) and not column.isna().any())
LOGPROBS: Kind = ("lists of two numbers or more", _is_list_of_logprobs)

MODEL = {"domain": NAME, "method": NAME, "seed": SEED}
SETTING = {**MODEL, "attack": NAME, "variant": NAME, "template": NAME}
SCORE_KINDS = {
    **SETTING,
    "benchmark": NAME,
    "split": NAME,
    "question_id": NAME,
    "cluster": NAME,
    "correct": FLAG,
    "logprobs": LOGPROBS,
}
SUMMARY_KINDS = {
    **SETTING,
    "benchmark": NAME,
    "split": NAME,
    "n": COUNT,
    "accuracy": SHARE,
    "ci_low": SHARE,
    "ci_high": SHARE,
    "recovery": NUMBER_OR_NONE,
    "recovery_ci_low": NUMBER_OR_NONE,
    "recovery_ci_high": NUMBER_OR_NONE,
    "control_accuracy": SHARE_OR_NONE,
    "excess": NUMBER_OR_NONE,
    "excess_ci_low": NUMBER_OR_NONE,
    "excess_ci_high": NUMBER_OR_NONE,
    "p_value": SHARE_OR_NONE,
    "p_adjusted": SHARE_OR_NONE,
    "selected": FLAG,
}
WORST_CASE_KINDS = {
    **MODEL,
    "best_attack": NAME,
    "best_variant": NAME,
    "best_template": NAME,
    "accuracy": SHARE,
    "ci_low": SHARE,
    "ci_high": SHARE,
    "attacks": COUNT,
    "facts": COUNT,
    "recovered": SHARE,
    "excess": NUMBER_OR_NONE,
    "excess_ci_low": NUMBER_OR_NONE,
    "excess_ci_high": NUMBER_OR_NONE,
    "guessing": SHARE,
    "beyond_guessing": NUMBER,
}
MEASURES = ("excess", "surplus", "gain")
EVIDENCE_PARTS = (
    *("", "_ci_low", "_ci_high", "_least", "_most", "_min", "_max", "_max_least"),
    *("_p_value", "_p_adjusted", "_detectable", "_needed_facts", "_needed_seeds"),
)
EVIDENCE_KINDS = {
    "domain": NAME,
    "method": NAME,
    "attack": NAME,
    "seeds": COUNT,
    "facts": COUNT,
    "accuracy": SHARE,
    "chance": SHARE,
    "control_accuracy": SHARE_OR_NONE,
    "unattacked_accuracy": SHARE_OR_NONE,
    **{f"known{part}": NUMBER_OR_NONE for part in ("", "_ci_low", "_ci_high")},
    **{f"recovery{part}": NUMBER_OR_NONE for part in ("", "_ci_low", "_ci_high", "_min", "_max")},
    **{
        f"{measure}{part}": SHARE_OR_NONE if "_p_" in part else NUMBER_OR_NONE
        for measure in MEASURES
        for part in EVIDENCE_PARTS
    },
}
VERDICT_KINDS = {
    "domain": NAME,
    "method": NAME,
    "verdict": NAME,
    "attack": NAME_OR_NONE,
    "reason": TEXT,
    "settled_by": TEXT,
    "trace": FLAG,
}
ANSWER_KINDS = {**MODEL, "attack": NAME, "question_id": NAME, "cluster": NAME, "correct": FLAG}
REFUSAL_KINDS = {
    **MODEL,
    "benchmark": NAME,
    "task": NAME,
    "split": NAME,
    "question_id": NAME,
    "template": NAME,
    "refused": FLAG,
}
PERPLEXITY_KINDS = {**SETTING, "question_id": NAME, "text": NAME, "tokens": COUNT, "nats": NUMBER}
COST_KINDS = {
    "output": NAME,
    "rule": NAME,
    "name": TEXT,
    "wall_seconds": AMOUNT,
    "peak_memory": AMOUNT,
    "peak_device_memory": AMOUNT,
    "device": NAME,
    "threads": COUNT,
    "versions": VERSIONS,
}
PERPLEXITY_SUMMARY_KINDS = {**SETTING, **dict.fromkeys(TEXTS, NUMBER_OR_NONE)}


def read_results(path: Path, kinds: dict[str, Kind], is_empty_allowed: bool = False) -> pd.DataFrame:
    """Read a table of results and check what each of its columns holds.

    Args:
        path: a parquet table.
        kinds: the columns that are needed, and what each may hold.
        is_empty_allowed: whether there may be no row.

    Raises:
        ResurfaceError: the table is missing or broken, or a column holds something else.
    """
    table = read_table(path, list(kinds), is_empty_allowed)
    for name, (allowed, is_allowed) in kinds.items():
        column = table[name]
        try:
            fits = is_allowed(column)
        except TypeError:  # values that cannot be compared, as lists in a column of names
            fits = False
        if not fits:
            raise ResurfaceError(
                f"{path}: column {name!r}: allowed are {allowed}; found {column.dtype}, the first is "
                f"{_show(column)}. Delete the table and run the workflow again"
            )
    return table


def _show(column: pd.Series) -> str:
    """The first value of a column, cut."""
    return reprlib.repr(column.iloc[0]) if len(column) else "missing"


def check_scores(tables: dict[Path, pd.DataFrame]) -> None:
    """Check that score tables belong together: each variant of a model once, and all with answers to the same questions.

    Raises:
        ResurfaceError: a model's variant is in two tables or has no seed, or its questions are others than those of the first
            table on that benchmark.
    """
    asked: dict[Any, tuple[Path, set[str]]] = {}
    places: dict[Any, Path] = {}
    advice = "delete whichever is not of this experiment and run the workflow again"
    for path, table in tables.items():
        for found, rows in table.groupby([*SETTING, "benchmark", "split"], dropna=False, sort=False):
            parts: Any = found
            key = tuple(None if pd.isna(part) else part for part in parts)
            words = ", ".join(map(str, key))
            if key[2] is None and key[1] not in REFERENCES:
                raise ResurfaceError(f"{path}: {words}: found no seed; only {' and '.join(REFERENCES)} may have none")
            if places.setdefault(key, path) != path:
                raise ResurfaceError(f"{path}: {words}: these answers are in {places[key]} too; {advice}")
            first, questions = asked.setdefault((key[0], *key[-2:]), (path, set(rows["question_id"])))
            if len(rows) != len(questions) or set(rows["question_id"]) != questions:
                raise ResurfaceError(
                    f"{path}: {words}: found answers to {rows['question_id'].nunique()} questions in {len(rows)} rows, but in "
                    f"{first} there are {len(questions)} questions; {advice}"
                )
