"""The results of an experiment in Python: tidy tables with checked columns.

    import resurface
    results = resurface.load_results("results")
    results.verdicts[["method", "verdict"]]

Tables are read when they are asked for, and checked as they are for the report: one that is damaged, a stranger's or of another version is
an error that names the column, and does not keep the others from being read.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from resurface.analysis.summary import read_scores
from resurface.analysis.tables import (
    ANSWER_KINDS,
    COST_KINDS,
    EVIDENCE_KINDS,
    FLAG,
    MODEL,
    NUMBER_OR_NONE,
    PERPLEXITY_SUMMARY_KINDS,
    REFUSAL_KINDS,
    SEED,
    SHARE_OR_NONE,
    SUMMARY_KINDS,
    VERDICT_KINDS,
    WORST_CASE_KINDS,
    Kind,
    read_results,
)
from resurface.errors import ResurfaceError


@dataclass(frozen=True, eq=False)
class Results:
    """The tables of a results folder. Names are texts (`string`), seeds nullable whole numbers (`Int64`).

    Attributes:
        folder: where they are.

    Raises:
        ResurfaceError: whenever a table is asked for that is missing, damaged or of another version.
    """

    folder: Path

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """One row per unlearned model and domain."""
        return self._read("verdicts", VERDICT_KINDS)

    @cached_property
    def evidence(self) -> pd.DataFrame:
        """One row per unlearned model and attack."""
        return self._read("evidence", EVIDENCE_KINDS)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per model, variant, template, benchmark and split."""
        return self._read("summary", SUMMARY_KINDS)

    @cached_property
    def worst_case(self) -> pd.DataFrame:
        """One row per attacked model."""
        return self._read("worst_case", WORST_CASE_KINDS, is_empty_allowed=True)

    @cached_property
    def perplexity(self) -> pd.DataFrame:
        """One row per variant that changes prompts."""
        return self._read("perplexity", PERPLEXITY_SUMMARY_KINDS, is_empty_allowed=True)

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row per model, attack and test question, as what was selected answers it."""
        return self._read("answers", ANSWER_KINDS)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """One row per job: time, memory, machine and versions."""
        return self._read("costs", COST_KINDS)

    @cached_property
    def refusals(self) -> pd.DataFrame:
        """One row per prompt of a model without attack: whether its answer was a refusal; no row if they were not counted."""
        paths = sorted((self.folder / "refusals").rglob("*.parquet"))
        if not paths:
            return _type_columns(pd.DataFrame(columns=list(REFUSAL_KINDS)), REFUSAL_KINDS)
        return pd.concat([_read_table(path, REFUSAL_KINDS) for path in paths], ignore_index=True)

    def _read(self, name: str, kinds: dict[str, Kind], is_empty_allowed: bool = False) -> pd.DataFrame:
        return _read_table(self.folder / f"{name}.parquet", kinds, is_empty_allowed)

    def scores(self, domain: str | None = None, method: str | None = None, attack: str | None = None) -> pd.DataFrame:
        """Score tables as one: a row per question, variant and template, without log-probabilities.

        Args:
            domain: only of this domain.
            method: only of this method, or `original` or `never_learned`.
            attack: only under this attack.

        Raises:
            ResurfaceError: there are none, or one is damaged.
        """
        place = self.folder / "scores"
        pattern = f"{domain or '*'}/{method or '*'}/seed*/{attack or '*'}.parquet"
        # Tables of an earlier configuration may lie beside those of this one.
        known = set(map(tuple, self.summary[["domain", "method", "attack"]].drop_duplicates().to_numpy()))
        paths = sorted(path for path in place.glob(pattern) if (path.parts[-4], path.parts[-3], path.stem) in known)
        if not paths:
            raise ResurfaceError(f"{place}: found no score tables {pattern}; look there for those that there are")
        return _type_columns(read_scores(paths), MODEL)


def load_results(folder: str | Path = "results") -> Results:
    """The tables of a results folder.

    Args:
        folder: what the workflow made.

    Raises:
        ResurfaceError: there is no summary, so this is no folder of results.
    """
    place = Path(folder)
    if not (place / "summary.parquet").is_file():
        raise ResurfaceError(
            f"{place}: no summary.parquet, so this is no folder of results; name the one that the workflow made, often `results`"
        )
    return Results(place)


def _read_table(path: Path, kinds: dict[str, Kind], is_empty_allowed: bool = False) -> pd.DataFrame:
    """A table, checked and typed.

    Raises:
        ResurfaceError: it is missing, damaged or of another version.
    """
    try:
        return _type_columns(read_results(path, kinds, is_empty_allowed), kinds)
    except ResurfaceError as error:
        raise ResurfaceError(
            f"{error}. If another version of Resurface made this folder, `snakemake --cores all` makes such tables anew"
        ) from None


def _type_columns(table: pd.DataFrame, kinds: dict[str, Kind]) -> pd.DataFrame:
    """Texts as `string`, seeds as `Int64` and numbers that may be missing as floats, whatever parquet made of them."""
    gaps = [name for name, kind in kinds.items() if kind in (NUMBER_OR_NONE, SHARE_OR_NONE)]
    texts = [
        name
        for name in table.columns.difference(gaps)
        if table[name].dtype == object or isinstance(table[name].dtype, pd.StringDtype)
    ]
    others = {name: "Int64" if kind is SEED else "bool" for name, kind in kinds.items() if kind in (SEED, FLAG)}
    return table.astype(dict.fromkeys(texts, "string") | dict.fromkeys(gaps, "float64") | others)
