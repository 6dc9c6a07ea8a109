"""The statistics of an audit: intervals of shares, tests of paired answers, corrections for many attacks, and what a test can see.

What is independent is the *fact*: questions that ask for the same thing are right and wrong together. So tests count facts, and
resamples draw facts. Nothing here knows of models or attacks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest, chi2, norm, t


def wilson(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share `p` of `n` questions; n need not be whole (Wilson 1927)."""
    z = norm.ppf((1 + confidence) / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def effective_questions(right: np.ndarray, sizes: np.ndarray, confidence: float) -> float:
    """How many independent questions tell as much as these do: their number over the design effect (Kish 1965, section 5.4).

    The design effect is how much larger the variance of the share is than that of independent questions, at least 1. Near 0 and 100 %
    so few facts differ that they do not show it, so it is estimated as if z² more facts were there, half of them right and half wrong,
    each in all its questions (Agresti and Coull 1998 add as many answers); without any difference it is the size of a fact.

    Args:
        right: right answers to each fact's questions `[facts]`.
        sizes: questions of each fact `[facts]`.
        confidence: of the interval that it is for.
    """
    more = float(norm.ppf((1 + confidence) / 2)) ** 2
    size = float((sizes**2).sum() / sizes.sum())
    asked = sizes.sum() + more * size
    p = (right.sum() + more * size / 2) / asked
    squares = ((right - p * sizes) ** 2).sum() + more / 2 * size**2 * ((1 - p) ** 2 + p**2)
    return float(sizes.sum() / max(1.0, squares / (asked * p * (1 - p))))


def find_tails(confidence: float) -> list[float]:
    """The percentiles of resamples at which an interval ends."""
    return [50 * (1 - confidence), 50 * (1 + confidence)]


def interval_of(
    resampled: np.ndarray, value: float, facts: int, confidence: float, whole: float = 1.0
) -> tuple[float, float]:
    """The percentile interval of a mean difference per question, but never narrower than what so few facts leave open.

    Where hardly a fact differs, resamples hardly do: without any difference all of them are 0.

    Args:
        resampled: the mean in each resample `[resamples]`.
        value: the mean itself.
        facts: how many were asked.
        confidence: of the interval.
        whole: what differences are given as shares of, if not of all questions.
    """
    low, high = np.percentile(resampled, find_tails(confidence))
    unseen = leave_open(facts, 1 - confidence) / whole
    return max(-1 / whole, float(min(low, value - unseen))), min(1 / whole, float(max(high, value + unseen)))


def leave_open(facts: int, level: float) -> float:
    """The share of facts of which so many show nothing with a probability of half a level: −ln(level / 2) / n, about."""
    return -math.log(level / 2) / facts


def mcnemar(more: int, less: int) -> float:
    """Two-sided p value of McNemar's exact test: are these two numbers of disagreements equally likely?"""
    return float(binomtest(more, more + less).pvalue) if more + less else 1.0


def sign_test(differences: np.ndarray) -> float:
    """Two-sided p value of the exact sign test: are positive and negative differences equally likely? Zeros say nothing.

    Of the differences between two models' answers to single questions (−1, 0, 1) this is McNemar's test.

    Args:
        differences: of each fact `[facts]`.
    """
    return mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p values for all of them being looked at (Holm 1979): the chance of any false alarm stays bounded."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def draw_weights(count: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each of `count` things is in each bootstrap resample `[resamples, count]`."""
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples)


@dataclass(frozen=True)
class Uncertainty:
    """How far the mean difference per question may be from the true one.

    Attributes:
        resampled: the mean in each resample `[resamples]`.
        by_facts: the standard deviation of the mean that comes from which facts are asked.
        by_seeds: that which comes from which seeds were run.
        facts: how many facts were asked.
        seeds: how many seeds were run.
        by_answers: how much of the spread between seeds comes from answers that vary from seed to seed, as a standard deviation of the
            mean. It is in `by_facts` already, but makes the spread less certain.
    """

    resampled: np.ndarray
    by_facts: float
    by_seeds: float
    facts: int
    seeds: int = 1
    by_answers: float = 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation of the mean."""
        return math.hypot(self.by_facts, self.by_seeds)

    @property
    def freedom(self) -> float:
        """How many degrees of freedom the deviation is known by."""
        return float(count_freedom(self.by_facts, self.by_seeds, self.by_answers, self.seeds, self.facts))

    def quantile(self, level: float) -> float:
        """How many deviations a mean is off at most, but with probability `level`."""
        return float(t.ppf(1 - level / 2, self.freedom))

    def half_width(self, level: float) -> float:
        """Half of the interval that misses the true mean with probability `level`, by a t distribution.

        For levels at which a few thousand resamples have no tails. Where hardly a fact differs, the deviation says nothing (`leave_open`).
        """
        return max(self.quantile(level) * self.deviation, leave_open(self.facts, level))

    def p_value(self, mean: float) -> float:
        """Two-sided p value of a mean being none: the level at which half of its interval is as wide as it is large."""
        by_deviation = 2 * float(t.sf(abs(mean) / self.deviation, self.freedom)) if self.deviation else 0.0
        return min(1.0, max(by_deviation, 2 * math.exp(-abs(mean) * self.facts)))


def count_freedom(by_facts: Any, by_seeds: Any, by_answers: Any, seeds: int, facts: Any) -> np.ndarray:
    """Satterthwaite's degrees of freedom of a variance, of which one part is known by so many facts, and one by so many seeds (1946).

    Never fewer than the lesser of both, though estimates may say so; infinite where nothing varies.

    Args:
        by_facts: the attributes of an `Uncertainty`, or several of each.
        by_seeds: likewise.
        by_answers: likewise.
        seeds: how many were run.
        facts: how many were asked, or several.
    """
    between = np.square(by_seeds) + np.square(by_answers)
    of_facts, of_seeds = np.maximum(1.0, np.subtract(facts, 1.0)), max(1.0, seeds - 1.0)
    uncertain = np.power(by_facts, 4) / of_facts + between**2 / of_seeds
    least = np.where(between > 0, np.minimum(of_facts, of_seeds), of_facts)
    with np.errstate(divide="ignore", invalid="ignore"):
        counted = (np.square(by_facts) + np.square(by_seeds)) ** 2 / uncertain
    return np.where(uncertain > 0, np.maximum(counted, least), math.inf)


def p_value_of(
    differences: np.ndarray, sizes: np.ndarray, uncertainty: Uncertainty, is_of_answers: bool = True
) -> float:
    """Two-sided p value of a mean difference being none.

    Of one seed and one question a fact, that of McNemar's exact test. Else that of the mean's own distribution: signs of facts are not
    balanced where several seeds are compared with one control, or one model answers all wordings of a fact alike and the other does not.

    Args:
        differences: of each seed and fact, summed over the fact's questions `[seeds, facts]`.
        sizes: questions of each fact `[facts]`.
        uncertainty: of their mean.
        is_of_answers: whether they are between two models' answers, not to what guessing gives.
    """
    if is_of_answers and len(differences) == 1 and sizes.max() == 1:
        return sign_test(differences[0])
    return uncertainty.p_value(float(differences.mean(0).sum() / sizes.sum()))


def resample_mean(
    differences: np.ndarray, sizes: np.ndarray, resamples: int, generator: np.random.Generator
) -> Uncertainty:
    """The uncertainty of a mean difference per question, by a bootstrap over facts: they are drawn with replacement, all seeds' answers together.

    Args:
        differences: of each seed and fact, summed over the fact's questions `[seeds, facts]`.
        sizes: questions of each fact `[facts]`.
        resamples: how many to draw.
        generator: the source of randomness.
    """
    weights = draw_weights(len(sizes), resamples, generator)
    return add_seeds(weights @ differences.mean(0) / (weights @ sizes), differences, sizes, generator)


def add_seeds(
    resampled: np.ndarray, differences: np.ndarray, sizes: np.ndarray, generator: np.random.Generator
) -> Uncertainty:
    """The uncertainty of a mean over seeds: what a bootstrap over facts shows, and what so few seeds leave open.

    Where there are several seeds, the variance of their mean is added: that between seeds, less what answers that vary from seed to seed
    explain (the interaction of a two-way analysis of variance). So few seeds tell little of it: the variance of two is less than half of
    the true one in half of all cases, so it is divided by the median of what it follows, and the whole has a t distribution. To draw seeds with replacement too would count the interaction three times
    (Owen 2007, arXiv 0712.1111).

    Args:
        resampled: the mean over seeds in each resample of facts `[resamples]`.
        differences: what each seed and fact adds to it, summed over the fact's questions `[seeds, facts]`.
        sizes: questions of each fact `[facts]`.
        generator: the source of randomness.
    """
    seeds, facts = differences.shape
    of_seeds = differences.sum(1) / sizes.sum()
    mean, resamples = of_seeds.mean(), len(resampled)
    moved = resampled - mean
    by_facts = float(moved.std())
    if seeds == 1:
        return Uncertainty(mean + moved, by_facts, 0.0, facts)
    interaction = differences - differences.mean(0) - (of_seeds - mean)[:, None] * sizes
    explained = (interaction**2).sum() / ((seeds - 1) * max(1, facts - 1)) * facts / sizes.sum() ** 2
    between = of_seeds.var(ddof=1) * (seeds - 1) / float(chi2.median(seeds - 1))
    if between == 0:
        return Uncertainty(mean + moved, by_facts, 0.0, facts, seeds)
    by_seeds = math.sqrt(max(0.0, between - explained) / seeds)
    found = Uncertainty(moved, by_facts, by_seeds, facts, seeds, math.sqrt(min(between, explained) / seeds))
    moved = moved + by_seeds * generator.standard_normal(resamples)
    moved = moved * np.sqrt(found.freedom / generator.chisquare(found.freedom, resamples))
    return replace(found, resampled=mean + moved)


def detectable(uncertainty: Uncertainty, level: float, margin: float, power: float) -> float:
    """The smallest true mean difference that is found with a power: measured as at least a margin, and told from none at a level.

    About so; and no exact sign test of fewer than 1 + log2(1 / level) facts can reach its level at all.

    Args:
        uncertainty: of the mean difference.
        level: of the two-sided test, after correction for how many tests there are.
        margin: below which nothing is found.
        power: the chance to find it.
    """
    missed = float(t.ppf(power, uncertainty.freedom)) * uncertainty.deviation
    least = math.ceil(1 + math.log2(1 / level)) / uncertainty.facts
    return min(1.0, max(least, uncertainty.half_width(level) + missed, margin + missed))


def needed_facts(uncertainty: Uncertainty, distance: float, level: float, power: float, most: int) -> float:
    """About how many facts, more than there are, would tell a mean from something at a level with a power.

    What comes from facts shrinks with their number, what comes from seeds does not; and the smaller the part of facts is, the fewer
    degrees of freedom are left. The number is within half a percent.

    Args:
        uncertainty: of the mean difference as it is.
        distance: from the mean to what it is to be told from.
        level: with which the interval misses; 1 asks only that the mean itself lies on this side.
        power: the chance that it does.
        most: more are not looked at.

    Returns:
        the number; NaN if none is enough because seeds differ, `most` if none is enough though they were alike.
    """
    facts = np.unique(np.geomspace(uncertainty.facts + 1, max(most, uncertainty.facts + 1), 2000).astype(int))
    left = np.sqrt(uncertainty.facts / facts)

    def is_enough(by_seeds: float) -> np.ndarray:
        by_facts = uncertainty.by_facts * left
        freedom = count_freedom(by_facts, by_seeds, uncertainty.by_answers * left, uncertainty.seeds, facts)
        return is_told(np.hypot(by_facts, by_seeds), freedom, facts, distance, level, power)

    enough = is_enough(uncertainty.by_seeds)
    if enough.any():
        return float(facts[enough.argmax()])
    return math.nan if is_enough(0.0).any() else float(most)


def needed_seeds(uncertainty: Uncertainty, distance: float, level: float, power: float, most: int) -> int:
    """How many seeds, more than there are, would tell a mean from something as `needed_facts` do; `most` if no fewer are enough.

    What comes from facts stays as it is, so where that is too much, no number of seeds is enough.
    """
    for seeds in range(uncertainty.seeds + 1, most):
        left = math.sqrt(uncertainty.seeds / seeds)
        by_facts, by_seeds = uncertainty.by_facts, uncertainty.by_seeds * left
        freedom = count_freedom(by_facts, by_seeds, uncertainty.by_answers * left, seeds, uncertainty.facts)
        if is_told(math.hypot(by_facts, by_seeds), freedom, uncertainty.facts, distance, level, power):
            return seeds
    return most


def is_told(deviation: Any, freedom: Any, facts: Any, distance: float, level: float, power: float) -> Any:
    """Whether a mean with such a deviation, or each of several, is told from what lies that far away (`needed_facts`)."""
    reach = (t.ppf(1 - level / 2, freedom) + t.ppf(power, freedom)) * deviation
    return (reach <= distance) & (leave_open(1, level) <= distance * facts)
