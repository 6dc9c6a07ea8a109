"""From score tables to the summary (design §4): accuracy, recovery and excess, with intervals.

Definitions (design §1), on the domain's own questions:

    floor    = max(accuracy of the unlearned model, accuracy of the control), both without attack; chance without a control
    recovery = (attacked − floor) / (original − floor)
    excess   = attacked − control under the same attack, variant and template

Floor and original count in their better template: that a model says less in one template than in another is no knowledge
brought back by an attack.

Questions that ask for the same fact are a cluster, and clusters are what is independent. Accuracies have Wilson intervals for the
effective number of questions (`statistics.effective_questions`); recovery and excess have percentile intervals of a paired bootstrap
over clusters; `p_value` is McNemar's where each question is its own cluster, else that of the excess (`statistics.p_value_of`), and
`p_adjusted` allows for all variants, templates and attacks of the model. A variant and a template are *selected* per model and attack
by their accuracy on validation questions, the first of equals.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resurface.analysis.statistics import (
    Uncertainty,
    draw_weights,
    effective_questions,
    holm,
    interval_of,
    p_value_of,
    wilson,
)
from resurface.analysis.tables import SCORE_KINDS, check_scores, read_results
from resurface.settings.summary import SummarySettings

SETTING = ["domain", "method", "seed", "attack", "variant", "template", "benchmark", "split"]
SCORE_COLUMNS = [*SETTING, "question_id", "cluster", "correct", "logprobs"]
SUMMARY_COLUMNS = [
    *SETTING,
    "n",
    "accuracy",
    "ci_low",
    "ci_high",
    "recovery",
    "recovery_ci_low",
    "recovery_ci_high",
    "control_accuracy",
    "excess",
    "excess_ci_low",
    "excess_ci_high",
    "p_value",
    "p_adjusted",
    "selected",
]
TRANSFERRED = "from-"  # what the names of variants begin with that were made on another model


@dataclass(frozen=True)
class Answers:
    """The answers of one row of the summary.

    Attributes:
        correct: `[questions]`, in the order of the benchmark's questions.
        right: right answers per cluster, `[clusters]`.
        sizes: questions per cluster, `[clusters]`.
        resampled: accuracy in each bootstrap resample, `[resamples]`.
        choices: number of choices of a question.
    """

    correct: np.ndarray
    right: np.ndarray
    sizes: np.ndarray
    resampled: np.ndarray
    choices: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())


def read_scores(paths: list[Path]) -> pd.DataFrame:
    """Read score tables into one, without log-probabilities but with the number of choices.

    Raises:
        ResurfaceError: a table is missing or broken, or does not belong to the others.
    """
    tables = {}
    for path in paths:
        table = read_results(path, SCORE_KINDS)
        tables[path] = table[SCORE_COLUMNS[:-1]].assign(choices=table["logprobs"].str.len())
    check_scores(tables)
    return pd.concat(tables.values(), ignore_index=True)


def summarize(scores: pd.DataFrame, settings: SummarySettings) -> pd.DataFrame:
    """One row per model × variant × template × benchmark × split.

    Args:
        scores: score tables (`read_scores`), with every model's attack `none`.
        settings: confidence level, resamples, seed.

    Returns:
        the columns of `SUMMARY_COLUMNS`.
    """
    answers: dict[tuple, Answers] = {}
    for (_, _, _), table in scores.groupby(["domain", "benchmark", "split"], sort=False):
        answers.update(_resample(table, settings))

    rows = []
    for key, own in answers.items():
        domain, method, seed, attack, _, _, benchmark, split = key
        asked = effective_questions(own.right, own.sizes, settings.confidence)
        low, high = wilson(own.accuracy, asked, settings.confidence)
        row = dict(zip(SETTING, key, strict=True)) | {
            "n": len(own.correct),
            "accuracy": own.accuracy,
            "ci_low": low,
            "ci_high": high,
        }
        if benchmark == domain and method not in ("original", "never_learned"):

            def of(
                method: str, seed: int | None, domain: str = domain, benchmark: str = benchmark, split: str = split
            ) -> list[Answers]:
                """A model's answers without attack, in every template."""
                found = (
                    answers.get((domain, method, seed, "none", "none", template, benchmark, split))
                    for template in ("plain", "chat")
                )
                return [one for one in found if one is not None]

            row |= _recovery(
                own, of(method, seed), of("never_learned", None), of("original", None), settings.confidence
            )
            control_seed = None if attack == "none" else seed
            control = answers.get((domain, "never_learned", control_seed, *key[3:]))
            if control is not None:
                row |= _excess(own, control, settings.confidence)
        rows.append(row)
    summary = pd.DataFrame(rows).reindex(columns=SUMMARY_COLUMNS)
    summary["p_adjusted"] = _adjust(summary)
    summary["selected"] = _select(summary)
    return summary.astype({"seed": "Int64"})


def _resample(table: pd.DataFrame, settings: SummarySettings) -> dict[tuple, Answers]:
    """Answers of every model and variant to one benchmark's questions, with the same resamples of clusters for all."""
    questions = table.drop_duplicates("question_id").sort_values("question_id")
    clusters, codes = np.unique(questions["cluster"].to_numpy(dtype=str), return_inverse=True)
    sizes = np.bincount(codes, minlength=len(clusters)).astype(float)
    generator = np.random.default_rng(settings.seed)
    weights = draw_weights(len(clusters), settings.resamples, generator)
    asked = weights @ sizes

    found = {}
    for key, group in table.groupby(SETTING, dropna=False, sort=False):
        group = group.sort_values("question_id")
        correct = group["correct"].to_numpy(dtype=float)
        assert len(correct) == len(questions), f"{key}: {len(correct)} answers to {len(questions)} questions"
        right = np.bincount(codes, weights=correct, minlength=len(clusters))
        parts: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        key = tuple(None if pd.isna(part) else part for part in parts)
        found[key] = Answers(correct, right, sizes, weights @ right / asked, int(group["choices"].iloc[0]))
    return found


def _recovery(
    own: Answers, unlearned: list[Answers], control: list[Answers], original: list[Answers], confidence: float
) -> dict[str, float]:
    """Recovery and its interval; nothing where the original knows no more than the floor."""
    if not unlearned or not original:
        return {}
    chance = [] if control else [1 / own.choices]
    floors = [*unlearned, *control]
    lows, tops = [*(one.accuracy for one in floors), *chance], [one.accuracy for one in original]
    share = float(recovered_share(own.accuracy, lows, tops))
    if np.isnan(share):
        return {}
    guessed = [np.full_like(own.resampled, one) for one in chance]
    shares = recovered_share(
        own.resampled, [one.resampled for one in floors] + guessed, [one.resampled for one in original]
    )
    known = shares[np.isfinite(shares)]
    low, high = interval_of(known, share, len(own.sizes), confidence, max(tops) - max(lows))
    return {"recovery": share, "recovery_ci_low": low, "recovery_ci_high": high}


def recovered_share(own: Any, floors: list[Any], tops: list[Any]) -> np.ndarray:
    """(attacked − floor) / (original − floor), as numbers or in each resample; NaN where the original knows no more than the floor.

    Args:
        own: right answers, or their share, under attack.
        floors: of all that count as the floor; the largest is it.
        tops: of the original in each template; the largest counts.
    """
    floor = np.max(floors, axis=0)
    gap = np.max(tops, axis=0) - floor
    return np.where(gap > 0, (own - floor) / np.where(gap > 0, gap, 1), np.nan)


def _excess(own: Answers, control: Answers, confidence: float) -> dict[str, float]:
    """Excess over the control, its interval, and its test."""
    resampled, excess = own.resampled - control.resampled, own.accuracy - control.accuracy
    low, high = interval_of(resampled, excess, len(own.sizes), confidence)
    uncertainty = Uncertainty(resampled, float(resampled.std()), 0.0, len(own.sizes))
    return {
        "control_accuracy": control.accuracy,
        "excess": excess,
        "excess_ci_low": low,
        "excess_ci_high": high,
        "p_value": p_value_of((own.right - control.right)[None], own.sizes, uncertainty),
    }


def _adjust(summary: pd.DataFrame) -> pd.Series:
    """The p values adjusted by Holm's method for all variants, templates and attacks of a model on a split."""
    tested = summary[summary["p_value"].notna()]
    models = tested.groupby(["domain", "method", "seed", "split"], dropna=False, sort=False)["p_value"]
    return models.transform(lambda values: holm(values.tolist())).reindex(summary.index)


def _select(summary: pd.DataFrame) -> pd.Series:
    """Mark the variant and template that are best on validation, per model and attack; variants made on another do not count."""
    group = ["domain", "method", "seed", "attack"]
    choice = [*group, "variant", "template"]
    validation = summary[(summary["benchmark"] == summary["domain"]) & (summary["split"] == "validation")]
    validation = validation[~validation["variant"].str.startswith(TRANSFERRED)]
    best = validation.loc[validation.groupby(group, dropna=False, sort=False)["accuracy"].idxmax(), choice]
    chosen = {tuple(None if pd.isna(part) else part for part in row) for row in best.itertuples(index=False)}
    return (
        summary[choice]
        .apply(lambda row: tuple(None if pd.isna(part) else part for part in row) in chosen, axis=1)
        .astype(bool)
    )
