"""The results of an experiment in Python: tidy tables with checked columns.

    import resurface
    results = resurface.load_results("results")
    results.verdicts[["method", "verdict"]]

Tables are checked as they are for the report, so that a damaged or a stranger's file is an error that names the column. Score
tables are large, and are read when they are asked for.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from resurface.analysis.summary import read_scores
from resurface.analysis.tables import (
    ANSWER_KINDS,
    COST_KINDS,
    EVIDENCE_KINDS,
    PERPLEXITY_SUMMARY_KINDS,
    SUMMARY_KINDS,
    VERDICT_KINDS,
    WORST_CASE_KINDS,
    read_results,
)
from resurface.errors import ResurfaceError


@dataclass(frozen=True)
class Results:
    """The tables of a results folder. Names are texts (`string`), seeds nullable whole numbers (`Int64`).

    Attributes:
        folder: where they are.
        verdicts: one row per unlearned model and domain.
        evidence: one row per unlearned model and attack.
        summary: one row per model, variant, template, benchmark and split.
        worst_case: one row per attacked model.
        perplexity: one row per variant that changes prompts.
        answers: one row per model, attack and test question, as what was selected answers it.
        costs: one row per job: time, memory, machine and versions.
    """

    folder: Path
    verdicts: pd.DataFrame
    evidence: pd.DataFrame
    summary: pd.DataFrame
    worst_case: pd.DataFrame
    perplexity: pd.DataFrame
    answers: pd.DataFrame
    costs: pd.DataFrame

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
        return _type_columns(read_scores(paths))


def load_results(folder: str | Path = "results") -> Results:
    """Load the tables of a results folder.

    Args:
        folder: what the workflow made.

    Raises:
        ResurfaceError: a table is missing or damaged.
    """
    place = Path(folder)
    kinds = {
        "verdicts": (VERDICT_KINDS, False),
        "evidence": (EVIDENCE_KINDS, False),
        "summary": (SUMMARY_KINDS, False),
        "worst_case": (WORST_CASE_KINDS, True),
        "perplexity": (PERPLEXITY_SUMMARY_KINDS, True),
        "answers": (ANSWER_KINDS, False),
        "costs": (COST_KINDS, False),
    }
    tables = {
        name: _type_columns(read_results(place / f"{name}.parquet", columns, is_empty_allowed))
        for name, (columns, is_empty_allowed) in kinds.items()
    }
    return Results(place, **tables)


def _type_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Texts as `string` and seeds as `Int64`, whatever parquet made of them."""
    texts = [
        name for name in table.columns if table[name].dtype == object or isinstance(table[name].dtype, pd.StringDtype)
    ]
    seeds = {"seed": "Int64"} if "seed" in table.columns else {}
    return table.astype({**dict.fromkeys(texts, "string"), **seeds})
