"""The statistics of an audit: intervals of shares, tests of paired answers, corrections for many attacks, and what a test can see.

What is independent is the *fact*: questions that ask for the same thing are right and wrong together. So tests count facts, and
resamples draw facts. Nothing here knows of models or attacks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
        freedom: how many degrees of freedom all this is known by; infinite for one seed.
    """

    resampled: np.ndarray
    by_facts: float
    by_seeds: float
    facts: int
    freedom: float = math.inf

    @property
    def deviation(self) -> float:
        """The standard deviation of the mean."""
        return math.hypot(self.by_facts, self.by_seeds)

    def quantile(self, level: float) -> float:
        """How many deviations a mean is off at most, but with probability `level`."""
        return float(t.ppf(1 - level / 2, self.freedom))

    def half_width(self, level: float) -> float:
        """Half of the interval that misses the true mean with probability `level`, by a t distribution.

        For levels at which a few thousand resamples have no tails. Where hardly a fact differs, the deviation says nothing: what n facts
        do not show may still be true of −ln(level / 2) / n of all.
        """
        return max(self.quantile(level) * self.deviation, -math.log(level / 2) / self.facts)

    def p_value(self, mean: float) -> float:
        """Two-sided p value of a mean being none: the level at which half of its interval is as wide as it is large."""
        by_deviation = 2 * float(t.sf(abs(mean) / self.deviation, self.freedom)) if self.deviation else 0.0
        return min(1.0, max(by_deviation, 2 * math.exp(-abs(mean) * self.facts)))


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
    the true one in half of all cases, so it is divided by the median of what it follows, and the whole has a t distribution, with
    Satterthwaite's degrees of freedom (Satterthwaite 1946). To draw seeds with replacement too would count the interaction three times
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
    by_seeds = math.sqrt(max(0.0, between - explained) / seeds)
    if between == 0:
        return Uncertainty(mean + moved, by_facts, 0.0, facts)
    # Never fewer than those of the variance between seeds, though estimates may say so.
    freedom = max(seeds - 1.0, float((by_facts**2 + by_seeds**2) ** 2 / ((between / seeds) ** 2 / (seeds - 1))))
    moved = moved + by_seeds * generator.standard_normal(resamples)
    moved = moved * np.sqrt(freedom / generator.chisquare(freedom, resamples))
    return Uncertainty(mean + moved, by_facts, by_seeds, facts, freedom)


def detectable(uncertainty: Uncertainty, level: float, margin: float, power: float) -> float:
    """The smallest true mean difference that is found with a power: measured as at least a margin, and told from none at a level.

    By the normal approximation; but no exact sign test of fewer than 1 + log2(1 / level) facts can reach its level at all.

    Args:
        uncertainty: of the mean difference.
        level: of the two-sided test, after correction for how many tests there are.
        margin: below which nothing is found.
        power: the chance to find it.
    """
    least = math.ceil(1 + math.log2(1 / level)) / uncertainty.facts
    missed = float(norm.ppf(power)) * uncertainty.deviation
    return min(1.0, max(least, uncertainty.half_width(level) + missed, margin + missed))


def needed_facts(uncertainty: Uncertainty, distance: float, level: float, power: float) -> float:
    """How many facts would tell a mean from something at a level with a power; NaN if no number would.

    Args:
        uncertainty: of the mean difference as it is.
        distance: from the mean to what it is to be told from; if that is not above 0, no number tells.
        level: with which the interval misses; 1 asks only that the mean itself lies on this side.
        power: the chance that it does.
    """
    deviation = distance / (uncertainty.quantile(level) + float(norm.ppf(power)))
    left = deviation**2 - uncertainty.by_seeds**2
    if distance <= 0 or left <= 0:
        return math.nan
    by_deviation = uncertainty.facts * uncertainty.by_facts**2 / left
    return math.ceil(max(uncertainty.facts + 1, by_deviation, -math.log(level / 2) / distance))
