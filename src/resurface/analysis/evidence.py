"""The evidence against each unlearned model, attack by attack: what it answers more than it should, and how sure that is.

On the domain's test questions; variant and template are those that validation questions select. Several seeds of unlearning and attack are
one setting, and the attack that does nothing is one of the attacks.

    excess  = accuracy of the attacked model − that of the control under the same attack, variant and template
    surplus = accuracy of the attacked model − the larger of that of the control and chance: who guesses has an excess over a control that
              answers fewer than a guess, and no surplus
    gain    = accuracy of the attacked model − the larger of its own without attack and chance
    known   = accuracy of the original − the larger of that of the control and chance, both without attack: what there is to find; chance
              alone, if nothing was compared with a control

What is larger is so for each seed. All are means over seeds, as is the recovery that stands beside them (`summary`), which decides nothing.
Each has an interval (a bootstrap over facts, and what so few seeds leave open). The first three have a p value (`statistics.p_value_of`), adjusted for the number of attacks by
Holm's method, and two ends. Who is accused may be so by any attack, so `…_least`, the lower end, holds for all attacks of the model at once
(Bonferroni). Who is cleared must be cleared by every attack, so `…_most`, the upper end, is that of the attack alone (an intersection-union
test, Berger 1982).

`…_max_least` is the lower end of the seed with the largest value by itself, with all seeds and attacks allowed for: whether one seed alone
would be accused, however small the mean is.

`…_needed_facts` is how many facts would settle what is open about an attack, with the power that is asked for, if the numbers stay as they
are; null where nothing is open or that takes more seeds, `MOST_FACTS` where no number of facts that anybody writes would do.
`…_needed_seeds` is how many seeds would where facts do not, `MOST_SEEDS` if not even so many; null where facts do.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from resurface.analysis.statistics import (
    Uncertainty,
    add_seeds,
    detectable,
    draw_weights,
    holm,
    interval_of,
    needed_facts,
    needed_seeds,
    p_value_of,
    resample_mean,
)
from resurface.analysis.summary import recovered_share
from resurface.analysis.tables import CONTROL, EVIDENCE_KINDS, MEASURES, REFERENCES
from resurface.errors import ResurfaceError
from resurface.settings.summary import SummarySettings

EVIDENCE_COLUMNS = list(EVIDENCE_KINDS)
ROUNDING = 1e-9  # differences of shares are not exact: 0.35 − 0.25 is less than 0.1
MOST_FACTS = 1_000_000  # nobody writes more questions
MOST_SEEDS = 100  # nor unlearns more often


@dataclass(frozen=True)
class Asked:
    """What was answered, as numbers.

    Attributes:
        right: (method, seed, attack, variant, template) → right answers to each fact's questions `[facts]`.
        sizes: questions of each fact `[facts]`.
        chance: the accuracy of who guesses.
    """

    right: dict[tuple[Any, ...], np.ndarray]
    sizes: np.ndarray
    chance: float


def count_right(scores: pd.DataFrame, domain: str) -> Asked:
    """Count right answers to the domain's own test questions."""
    own = scores[(scores["domain"] == domain) & (scores["benchmark"] == domain) & (scores["split"] == "test")]
    setting = ["method", "seed", "attack", "variant", "template"]
    counts = own.groupby([*setting, "cluster"], dropna=False, sort=True)["correct"].agg(["sum", "size"])
    table = counts["sum"].unstack("cluster")
    sizes = counts["size"].groupby("cluster").max().reindex(table.columns)
    right = {
        tuple(None if pd.isna(part) else part for part in key): row
        for key, row in zip(table.index, table.to_numpy(dtype=float), strict=True)
    }
    chance = (1 / own.drop_duplicates("question_id")["choices"]).mean()
    return Asked(right, sizes.to_numpy(dtype=float), float(chance))


def gather_evidence(scores: pd.DataFrame, summary: pd.DataFrame, settings: SummarySettings) -> pd.DataFrame:
    """One row per unlearned model and attack.

    Args:
        scores: score tables (`summary.read_scores`).
        summary: their summary, which says what was selected.
        settings: confidence, margin, power, resamples and seed.

    Returns:
        the columns of `EVIDENCE_COLUMNS`. What needs a control is null where there is none, or none under this attack; what needs
        an attack is null for the attack that does nothing.

    Raises:
        ResurfaceError: the summary is of other scores, or selects nothing.
    """
    rows: list[dict[str, Any]] = []
    selected = summary[(summary["benchmark"] == summary["domain"]) & (summary["split"] == "test") & summary["selected"]]
    chosen = selected[~selected["method"].isin(REFERENCES)]
    if chosen.empty:
        raise ResurfaceError(
            "the summary selects no variant of an unlearned model on test questions; delete it and run the workflow again"
        )
    for domain, of_domain in chosen.groupby("domain", sort=False):
        asked = count_right(scores, str(domain))
        references = selected[selected["domain"] == domain]
        for method, of_method in of_domain.groupby("method", sort=False):
            own = [
                _weigh_attack(asked, str(method), str(attack), choices, of_method, settings)
                for attack, choices in of_method.groupby("attack", sort=False)
            ]
            is_compared = any("excess" in found for _, found in own)
            known = _compare_references(asked, references, is_compared, settings)
            for measure in MEASURES:
                _adjust([(row, found[measure]) for row, found in own if measure in found], measure, settings)
            rows += [{"domain": domain, "method": method, **known, **row} for row, _ in own]
    kept = [{key: value for key, value in row.items() if key in EVIDENCE_COLUMNS} for row in rows]
    measured = [name for name in EVIDENCE_COLUMNS if name not in ("domain", "method", "attack", "seeds", "facts")]
    return pd.DataFrame(kept, columns=EVIDENCE_COLUMNS).astype(dict.fromkeys(measured, float))


def _compare_references(
    asked: Asked, selected: pd.DataFrame, is_compared: bool, settings: SummarySettings
) -> dict[str, Any]:
    """What the original knows more than the control and who guesses; nothing where one that it is compared with was not scored.

    Args:
        asked: all answers.
        selected: the summary's selected rows of the domain's test questions.
        is_compared: whether the model was compared with the control under any attack.
        settings: confidence, resamples and seed.
    """
    bare = selected[(selected["method"] == "original") & (selected["attack"] == "none")]
    if bare.empty:
        return {}
    template = bare["template"].iloc[0]
    original = _find(asked, "original", None, "none", "none", template)
    rival = guessed = asked.chance * asked.sizes
    if is_compared:
        key = (CONTROL, None, "none", "none", template)
        if key not in asked.right:
            return {}
        rival = max(asked.right[key], guessed, key=np.sum)
    return _measure((original - rival)[None], asked.sizes, "known", settings)[0]


def _weigh_attack(
    asked: Asked,
    method: str,
    attack: str,
    choices: pd.DataFrame,
    of_method: pd.DataFrame,
    settings: SummarySettings,
) -> tuple[dict[str, Any], dict[str, tuple[Uncertainty, Uncertainty]]]:
    """What one attack on one model says, before anything is adjusted for the other attacks.

    Returns:
        numbers, and measure → the uncertainty of its mean, and that of the seed with the largest value alone.
    """
    unattacked = {
        row["seed"]: (row["variant"], row["template"])
        for row in of_method[of_method["attack"] == "none"].to_dict("records")
    }
    own, control, before = [], [], []
    for choice in choices.to_dict("records"):
        seed, variant = int(choice["seed"]), (choice["variant"], choice["template"])
        own.append(_find(asked, method, seed, attack, *variant))
        if (key := (CONTROL, None if attack == "none" else seed, attack, *variant)) in asked.right:
            control.append(asked.right[key])
        if choice["seed"] in unattacked and attack != "none":
            before.append(_find(asked, method, seed, "none", *unattacked[choice["seed"]]))
    total = asked.sizes.sum()
    row: dict[str, Any] = {
        "attack": attack,
        "seeds": len(own),
        "facts": len(asked.sizes),
        "accuracy": float(np.mean(own) * len(asked.sizes) / total),
        "chance": asked.chance,
    }
    guessed = asked.chance * asked.sizes
    compared = {}
    for measure, name, others, floors in (
        ("excess", "control", control, control),
        ("surplus", "control", control, [max(one, guessed, key=np.sum) for one in control]),
        ("gain", "unattacked", before, [max(one, guessed, key=np.sum) for one in before]),
    ):
        if len(others) == len(own):
            row[f"{name}_accuracy"] = float(np.mean(others) * len(asked.sizes) / total)
            differences = np.array(own) - np.array(floors)
            numbers, uncertainty = _measure(differences, asked.sizes, measure, settings)
            row |= numbers
            is_of_answers = not any(floor is guessed for floor in floors)
            row[f"{measure}_p_value"] = p_value_of(differences, asked.sizes, uncertainty, is_of_answers)
            compared[measure] = (
                uncertainty,
                _resample(differences[[differences.sum(1).argmax()]], asked.sizes, settings),
            )
    return row | _recover(asked, method, choices["seed"].astype(int).tolist(), np.array(own), settings), compared


def _find(asked: Asked, *key: Any) -> np.ndarray:
    """The right answers of a setting that was selected.

    Raises:
        ResurfaceError: there are none.
    """
    if key not in asked.right:
        raise ResurfaceError(
            f"{', '.join(map(str, key))}: the summary selects it, but the score tables have no answers; it is of other scores: "
            "delete it and run the workflow again"
        )
    return asked.right[key]


def _measure(
    differences: np.ndarray, sizes: np.ndarray, measure: str, settings: SummarySettings
) -> tuple[dict[str, float], Uncertainty]:
    """Size, interval and range over seeds of a mean difference per question, of differences `[seeds, facts]`, and its uncertainty."""
    uncertainty = _resample(differences, sizes, settings)
    by_seed = differences.sum(1) / sizes.sum()
    mean = float(by_seed.mean())
    low, high = interval_of(uncertainty.resampled, mean, len(sizes), settings.confidence)
    numbers = {
        measure: mean,
        f"{measure}_ci_low": low,
        f"{measure}_ci_high": high,
        f"{measure}_min": float(by_seed.min()),
        f"{measure}_max": float(by_seed.max()),
    }
    return numbers, uncertainty


def _resample(differences: np.ndarray, sizes: np.ndarray, settings: SummarySettings) -> Uncertainty:
    """The uncertainty of a mean per question, of differences `[seeds, facts]`, with the same resamples of facts for all."""
    return resample_mean(differences, sizes, settings.resamples, np.random.default_rng(settings.seed))


def _recover(
    asked: Asked, method: str, seeds: list[int], own: np.ndarray, settings: SummarySettings
) -> dict[str, float]:
    """Recovery, the mean over seeds, its interval and range; nothing where the original knows no more than a seed's floor.

    A ratio moves with its floor and its top too: facts are drawn anew for all of them together. What a fact adds to it, for the spread
    between seeds, is its share in the ratio's first derivative.

    Args:
        asked: all answers.
        method: the unlearned model.
        seeds: in the order of `own`.
        own: right answers under attack `[seeds, facts]`.
        settings: confidence, resamples and seed.
    """
    sizes = asked.sizes

    def unattacked(name: str, seed: int | None) -> list[np.ndarray]:
        found = (asked.right.get((name, seed, "none", "none", template)) for template in ("plain", "chat"))
        return [right for right in found if right is not None]

    control = unattacked(CONTROL, None) or [asked.chance * sizes]
    tops = unattacked("original", None)
    if not tops:
        return {}
    generator = np.random.default_rng(settings.seed)
    weights = draw_weights(len(sizes), settings.resamples, generator)
    top, drawn_tops = max(tops, key=np.sum), [weights @ one for one in tops]
    values, resampled, added, gaps = [], [], [], []
    for seed, right in zip(seeds, own, strict=True):
        floors = [*unattacked(method, seed), *control]
        floor = max(floors, key=np.sum)
        value = float(recovered_share(right.sum(), [floor.sum()], [top.sum()]))
        if math.isnan(value):
            return {}
        values.append(value)
        resampled.append(recovered_share(weights @ right, [weights @ one for one in floors], drawn_tops))
        gaps.append((top - floor).sum() / sizes.sum())
        added.append(value * sizes + ((right - floor) - value * (top - floor)) / gaps[-1])
    means = np.mean(resampled, axis=0)
    known = means[np.isfinite(means)]
    if not len(known):
        return {}
    uncertainty, mean = add_seeds(known, np.array(added), sizes, generator), float(np.mean(values))
    low, high = interval_of(uncertainty.resampled, mean, len(sizes), settings.confidence, float(np.mean(gaps)))
    return {
        "recovery": mean,
        "recovery_ci_low": low,
        "recovery_ci_high": high,
        "recovery_min": min(values),
        "recovery_max": max(values),
    }


def _adjust(
    compared: list[tuple[dict[str, Any], tuple[Uncertainty, Uncertainty]]], measure: str, settings: SummarySettings
) -> None:
    """Add to the rows of a model's attacks what depends on how many there are."""
    missed = 1 - settings.confidence
    level = missed / max(1, len(compared))
    adjusted = holm([row[f"{measure}_p_value"] for row, _ in compared])
    for (row, (uncertainty, of_largest)), p_adjusted in zip(compared, adjusted, strict=True):
        row[f"{measure}_p_adjusted"] = p_adjusted
        row[f"{measure}_least"] = max(-1.0, row[measure] - uncertainty.half_width(level))
        row[f"{measure}_most"] = min(1.0, row[measure] + uncertainty.half_width(missed))
        alone = row[f"{measure}_max"] - of_largest.half_width(level / row["seeds"])
        row[f"{measure}_max_least"] = max(-1.0, alone)
        row[f"{measure}_detectable"] = detectable(uncertainty, level, settings.margin, settings.power)
    open_ones = [(row, uncertainty) for row, (uncertainty, _) in compared if is_open(row, measure, settings.margin)]
    for row, uncertainty in open_ones:
        goals = _set_goals(row[measure], level, len(open_ones), settings)
        facts = float(np.max([needed_facts(uncertainty, *goal, MOST_FACTS) for goal in goals]))
        row[f"{measure}_needed_facts"] = facts
        if math.isnan(facts):
            row[f"{measure}_needed_seeds"] = max(needed_seeds(uncertainty, *goal, MOST_SEEDS) for goal in goals)


def _set_goals(
    mean: float, level: float, open_ones: int, settings: SummarySettings
) -> list[tuple[float, float, float]]:
    """What is to be shown to settle an attack, if its mean stays as it is: distances to tell, each with its level and power.

    A mean that is at least the margin is to be measured so again, and to be told from none: one such attack is enough. One that is smaller
    is to be told from the margin, as those of all other open attacks, which together shall have the power.
    """
    margin, power = settings.margin, settings.power
    if reaches(mean, margin):
        return [(mean, level, power), (mean - margin, 1.0, power)]
    return [(margin - mean, 1 - settings.confidence, power ** (1 / open_ones))]


def is_open(rows: Any, measure: str, margin: float) -> Any:
    """Whether the upper end of a row's measure, or of each of several rows', leaves room for the margin."""
    return reaches(rows[f"{measure}_most"], margin)


def reaches(value: Any, margin: float) -> Any:
    """Whether a difference, or each of several, is at least the margin."""
    return value >= margin - ROUNDING
