"""The worst case: what an adversary who may choose among all attacks gets out of a model.

Three numbers for each model, on the domain's test questions:

- the accuracy of its *best attack*, chosen on validation questions as variants are;
- the share of facts that at least one attack *recovers*, i.e. answers in every wording, each attack by its selected variant and
  template;
- the *excess* of that share over the control's. The control went through the same attacks, each by the variant and template selected
  on it, so its share holds whatever an adversary gets from a model that never knew the domain: luck, habits, and what attacks
  teach. This is the number to read. Its interval is a bootstrap over facts, with the same facts drawn for both. Attacks that
  only one of the two went through have no part in it.

A second correction needs no control, and says less. Many attacks recover some facts by luck. A guesser answers all k wordings of a
fact with c choices with probability c^−k, and one of A independent guessers does with g = 1 − (1 − c^−k)^A. So beside the share s
stands g, as the mean over facts, and `beyond_guessing` = (s − g) / (1 − g), which is 0 for guessers and 1 if every fact comes back.
That is a correction for the number of attacks, not for habits: who does not know a fact may still prefer one value in all its
wordings, and attacks on one model err alike. The control goes through the same count: a control well above 0 has such habits, or was
taught, and then this number flatters every other model too.
"""

import numpy as np
import pandas as pd

from resurface.analysis.statistics import draw_weights, find_tails
from resurface.analysis.tables import CONTROL
from resurface.errors import ResurfaceError
from resurface.settings.summary import SummarySettings

CHOICE = ["domain", "method", "seed", "attack", "variant", "template"]
WORST_CASE_COLUMNS = [
    *("domain", "method", "seed"),
    *("best_attack", "best_variant", "best_template", "accuracy", "ci_low", "ci_high"),
    *("attacks", "facts", "recovered", "excess", "excess_ci_low", "excess_ci_high", "guessing", "beyond_guessing"),
]


def find_worst_case(scores: pd.DataFrame, summary: pd.DataFrame, settings: SummarySettings) -> pd.DataFrame:
    """One row per attacked model.

    Args:
        scores: score tables (`summary.read_scores`).
        summary: their summary, which says what was selected.
        settings: confidence level, resamples, seed.

    Returns:
        the columns of `WORST_CASE_COLUMNS`; empty if there was no attack. The excess is null where there is no control.

    Raises:
        ResurfaceError: the summary is of other scores.
    """
    own = summary[(summary["benchmark"] == summary["domain"]) & summary["selected"] & (summary["attack"] != "none")]
    asked = scores[(scores["benchmark"] == scores["domain"]) & (scores["split"] == "test")].astype({"seed": "Int64"})
    rows = []
    by_model: dict[tuple, pd.DataFrame] = {}
    for key, choices in own.groupby(["domain", "method", "seed"], dropna=False, sort=False):
        validation = choices[choices["split"] == "validation"]
        answers = asked.merge(choices.loc[choices["split"] == "test", CHOICE], on=CHOICE)
        if set(validation["attack"]) != set(choices["attack"]) or set(answers["attack"]) != set(choices["attack"]):
            raise ResurfaceError(
                f"{', '.join(map(str, key))}: the summary selects variants of {', '.join(sorted(set(choices['attack'])))}, which "
                "it has no validation questions of or the score tables no answers; it is of other scores: delete it and run the "
                "workflow again"
            )
        best = validation.sort_values("accuracy", ascending=False, kind="stable").iloc[0]
        chosen = choices[choices["split"] == "test"]
        result = chosen[chosen["attack"] == best["attack"]].iloc[0]
        by_fact = answers.groupby(["attack", "cluster"])["correct"].all().unstack("attack")
        by_model[key] = by_fact
        wordings = answers.groupby(["attack", "cluster"]).size().groupby("cluster").first()
        attacks = by_fact.shape[1]
        choices_of = answers.groupby("cluster")["choices"].first()
        guessing = float((1 - (1 - choices_of.astype(float) ** -wordings) ** attacks).mean())
        recovered = float(by_fact.any(axis=1).mean())
        rows.append(
            dict(zip(("domain", "method", "seed"), key, strict=True))
            | {f"best_{name}": best[name] for name in ("attack", "variant", "template")}
            | {name: result[name] for name in ("accuracy", "ci_low", "ci_high")}
            | {
                "attacks": attacks,
                "facts": len(by_fact),
                "recovered": recovered,
                "guessing": guessing,
                "beyond_guessing": (recovered - guessing) / (1 - guessing),
            }
        )
    for row, (domain, method, seed) in zip(rows, by_model, strict=True):
        control = by_model.get((domain, CONTROL, seed))
        if method != CONTROL and control is not None:
            row |= _excess(by_model[domain, method, seed], control, settings)
    return pd.DataFrame(rows, columns=WORST_CASE_COLUMNS).astype({"seed": "Int64"})


def _excess(own: pd.DataFrame, control: pd.DataFrame, settings: SummarySettings) -> dict[str, float]:
    """The share of facts recovered by some attack, minus the control's, and its interval.

    Args:
        own: whether each attack recovers each fact `[facts, attacks]`.
        control: the same of the control.
        settings: confidence level, resamples, seed.
    """
    shared = own.columns.intersection(control.columns)
    if shared.empty:
        return {}
    gains = (own[shared].any(axis=1).astype(float) - control[shared].any(axis=1).astype(float)).to_numpy()
    generator = np.random.default_rng(settings.seed)
    weights = draw_weights(len(gains), settings.resamples, generator)
    low, high = np.percentile(weights @ gains / len(gains), find_tails(settings.confidence))
    return {"excess": float(gains.mean()), "excess_ci_low": float(low), "excess_ci_high": float(high)}
