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
    AMOUNT,
    ANSWER_KINDS,
    COST_KINDS,
    COUNT,
    EVIDENCE_KINDS,
    FLAG,
    MODEL,
    NUMBER,
    NUMBER_OR_NONE,
    PERPLEXITY_SUMMARY_KINDS,
    REFUSAL_KINDS,
    SCORE_KINDS,
    SEED,
    SHARE,
    SHARE_OR_NONE,
    SUMMARY_KINDS,
    VERDICT_KINDS,
    WORST_CASE_KINDS,
    Kind,
    read_results,
)
from resurface.errors import ResurfaceError

# What pandas holds a column of a kind as; the others are texts.
TYPES: dict[Kind, str] = {
    SEED: "Int64",
    FLAG: "bool",
    COUNT: "int64",
    **dict.fromkeys((SHARE, SHARE_OR_NONE, NUMBER, NUMBER_OR_NONE, AMOUNT), "float64"),
}


@dataclass(frozen=True, eq=False)
class Results:
    """The tables of a results folder.

    Names are texts (`string`), seeds nullable whole numbers (`Int64`), counts `int64`, all other numbers `float64`.

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
        found = pd.concat([_read_table(path, REFUSAL_KINDS) for path in paths], ignore_index=True)
        # As among score tables, there may be those of an earlier configuration.
        return found.merge(self.summary[list(MODEL)].drop_duplicates())

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
        known = self.summary[[*MODEL, "attack"]].drop_duplicates()
        names = set(map(tuple, known[["domain", "method", "attack"]].to_numpy()))
        paths = sorted(path for path in place.glob(pattern) if (path.parts[-4], path.parts[-3], path.stem) in names)
        if not paths:
            raise ResurfaceError(f"{place}: found no score tables {pattern}; look there for those that there are")
        scores = read_scores(paths)
        scores = _type_columns(scores, {name: kind for name, kind in SCORE_KINDS.items() if name in scores.columns})
        return scores.merge(known)


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
    """Each column by its kind, whatever parquet made of its values: a table without gaps has the types of one with them."""
    return table.astype({name: TYPES.get(kind, "string") for name, kind in kinds.items()})
