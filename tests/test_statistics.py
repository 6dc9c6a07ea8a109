"""The statistics against brute force, and against what they promise in simulations."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm, t

from resurface.analysis.statistics import (
    Uncertainty,
    detectable,
    effective_questions,
    holm,
    interval_of,
    mcnemar,
    needed_facts,
    needed_seeds,
    resample_mean,
    sign_test,
    wilson,
)


@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_a_library(right, more, confidence):
    count = right + more
    expected = binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert wilson(right / count, count, confidence) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("p", [0.005, 0.02, 0.1, 0.5, 0.98])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_intervals_of_shares_cover_at_their_rate_near_the_ends_too(p, alike):
    """Facts of three questions, all of one answer in a share of facts; where none is right, three are no more than one."""
    generator = np.random.default_rng(0)
    facts, runs = 256, 400
    sizes = np.full(facts, 3.0)
    covered = 0
    for _ in range(runs):
        same = 3.0 * (generator.random(facts) < p)
        right = np.where(generator.random(facts) < alike, same, generator.binomial(3, p, facts))
        low, high = wilson(right.sum() / sizes.sum(), effective_questions(right, sizes, 0.95), 0.95)
        covered += low <= p <= high
    assert 0.92 <= covered / runs <= 0.995
    assert effective_questions(np.zeros(facts), sizes, 0.95) == pytest.approx(facts)
    assert effective_questions(sizes, sizes, 0.95) == pytest.approx(facts)
    assert effective_questions(np.ones(facts), np.ones(facts), 0.95) == facts


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=9))
def test_the_sign_test_counts_all_signs(differences):
    found = sign_test(np.array(differences))
    told = [value for value in differences if value]
    distance = abs(sum(told))
    signs = list(product([-1, 1], repeat=len(told)))
    assert found == pytest.approx(sum(abs(sum(one)) >= distance for one in signs) / len(signs))


def test_of_single_questions_it_is_mcnemars():
    generator = np.random.default_rng(0)
    one, other = (generator.random((2, 200)) < [[0.4], [0.3]]).astype(int)
    only_one, only_other = ((one == 1) & (other == 0)).sum(), ((one == 0) & (other == 1)).sum()
    expected = 2 * binom.cdf(min(only_one, only_other), only_one + only_other, 0.5)
    assert sign_test(one - other) == mcnemar(only_one, only_other) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferronis(p_values):
    """A hypothesis falls if every set of hypotheses that holds it does, by Bonferroni's test of the set."""
    found = holm(p_values)
    places = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(places, size)]
    for place in places:
        closed = max(len(chosen) * min(p_values[i] for i in chosen) for chosen in sets if place in chosen)
        assert found[place] == pytest.approx(min(1.0, closed))


def test_the_bootstrap_is_one_of_questions():
    """Of one seed and facts of several sizes, drawn fact by fact."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 4, 40).astype(float)
    differences = generator.integers(-1, 3, (1, 40)) * 1.0
    found = resample_mean(differences, sizes, 20_000, generator).resampled
    drawn = [generator.integers(0, 40, 40) for _ in range(20_000)]
    expected = [differences[0, chosen].sum() / sizes[chosen].sum() for chosen in drawn]
    for percent in (2.5, 50, 97.5):
        assert np.percentile(found, percent) == pytest.approx(np.percentile(expected, percent), abs=0.02)


def simulate(generator, seeds, facts, excess, spread=0.0):
    """Right answers of a model above those of its control `[seeds, facts]`: three questions a fact, facts and seeds differ."""
    ease = generator.beta(1, 3, facts)
    shifts = excess + spread * generator.standard_normal(seeds)
    own = generator.binomial(3, np.clip(ease + shifts[:, None], 0, 1))
    return (own - generator.binomial(3, ease, (seeds, facts))).astype(float)


@pytest.mark.parametrize(
    ("seeds", "spread", "is_uneven"),
    [
        (1, 0.0, False),
        (1, 0.0, True),
        (2, 0.0, False),
        (2, 0.02, False),
        (2, 0.08, False),
        (3, 0.0, False),
        (3, 0.08, False),
        (3, 0.08, True),
        (8, 0.05, False),
    ],
)
def test_intervals_cover_at_their_rate(seeds, spread, is_uneven):
    """Several seeds do not tell for sure how little they differ, so intervals are rather too wide; and two not how much."""
    generator = np.random.default_rng(0)
    facts, runs, true = 160, 800, 0.2
    sizes = np.where(np.arange(facts) % 2, 1.0, 5.0) if is_uneven else np.full(facts, 3.0)
    truth = np.mean([simulate(generator, 200, 400, true, spread).mean() / 3 for _ in range(40)])
    covered, wide = 0, 0
    for _ in range(runs):
        differences = simulate(generator, seeds, facts, true, spread) * sizes / 3
        uncertainty = resample_mean(differences, sizes, 400, generator)
        low, high = np.percentile(uncertainty.resampled, [2.5, 97.5])
        covered += low <= truth <= high
        wide += abs(differences.sum() / seeds / sizes.sum() - truth) <= uncertainty.half_width(0.01)
    least = 0.9 if seeds == 2 and spread > 0.02 else 0.93
    assert least <= covered / runs <= (0.97 if seeds == 1 or spread > 0.02 else 0.995)
    assert wide / runs >= (0.93 if seeds == 2 else 0.98)


@pytest.mark.parametrize("share", [0.0, 0.005, 0.02, 0.05])
@pytest.mark.parametrize("facts", [20, 60, 256])
def test_intervals_cover_where_hardly_a_fact_differs(share, facts):
    """A model that answers a few facts more than its control, and none fewer: resamples of none that differ are all alike."""
    generator = np.random.default_rng(0)
    covered, runs, sizes = 0, 400, np.ones(facts)
    for _ in range(runs):
        differences = (generator.random((1, facts)) < share).astype(float)
        resampled = resample_mean(differences, sizes, 400, generator).resampled
        low, high = interval_of(resampled, differences.mean(), facts, 0.95)
        covered += low <= share <= high
        assert high - low > 0
    assert covered / runs >= 0.92


@pytest.mark.parametrize(("seeds", "most"), [(2, 0.03), (3, 0.01), (5, 0.01)])
def test_the_end_that_allows_for_eight_attacks_misses_rarely(seeds, most):
    """Where seeds differ by 8 points. It should miss in 0.3 %; of two seeds no more is known."""
    generator = np.random.default_rng(0)
    facts, runs, true = 256, 1500, 0.2
    missed = 0
    for _ in range(runs):
        differences = simulate(generator, seeds, facts, true, 0.08)
        uncertainty = resample_mean(differences, np.full(facts, 3.0), 100, generator)
        missed += differences.mean() / 3 - uncertainty.half_width(0.05 / 8) > true
    assert missed / runs <= most


@pytest.mark.parametrize(("seeds", "spread", "least"), [(1, 0.0, 0.7), (2, 0.03, 0.5), (3, 0.05, 0.5), (5, 0.05, 0.55)])
def test_what_is_detectable_is_found_as_often_as_it_says(seeds, spread, least):
    """Measured as at least the margin, and told from none; of several seeds less often, as how far they differ is hardly known."""
    generator = np.random.default_rng(0)
    facts, level, sizes = 300, 0.01, np.full(300, 3.0)
    for margin in (0.02, 0.1):
        found = []
        for _ in range(250):
            first = resample_mean(simulate(generator, seeds, facts, 0.1, spread), sizes, 100, generator)
            excess = detectable(first, level, margin, 0.8)
            # The clipped shares of easy facts lower the excess a little.
            drawn = simulate(generator, seeds, facts, excess * 1.05, spread)
            end = resample_mean(drawn, sizes, 100, generator).half_width(level)
            found.append(drawn.mean() / 3 >= max(margin, end))
        assert least < np.mean(found) < 0.95, margin
    none = Uncertainty(np.zeros(1), 0.0, 0.0, facts)
    assert detectable(none, level, 0.01, 0.8) == pytest.approx(8 / facts)
    assert sign_test(np.ones(8)) <= level < sign_test(np.ones(7))


def test_what_no_fact_shows_may_still_be_true_of_some():
    """If a share of -ln(level / 2) / n of facts differs, n facts show none of it with a probability of level / 2."""
    facts, level = 200, 0.05
    share = Uncertainty(np.zeros(1), 0.0, 0.0, facts).half_width(level)
    assert (1 - share) ** facts == pytest.approx(level / 2, rel=0.1)
    assert Uncertainty(np.zeros(1), 0.1, 0.0, facts).half_width(level) == pytest.approx(0.1 * t.ppf(0.975, facts - 1))
    assert Uncertainty(np.zeros(1), 0.0, 0.1, facts, 4).half_width(level) == pytest.approx(0.1 * t.ppf(0.975, 3))


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_p_value_is_the_level_at_which_the_interval_just_misses_none(seeds):
    found = Uncertainty(np.zeros(1), 0.03, 0.01 * (seeds - 1), 200, seeds)
    assert found.freedom == pytest.approx(199) if seeds == 1 else 2 < found.freedom < 50
    for mean in (0.02, -0.05, 0.15):
        level = found.p_value(mean)
        assert found.half_width(level) == pytest.approx(abs(mean))
    assert found.p_value(0.0) == 1.0
    assert Uncertainty(np.zeros(1), 0.0, 0.0, 200).p_value(0.01) == pytest.approx(2 * np.exp(-2))


@pytest.mark.parametrize(
    ("seeds", "spread", "least"), [(1, 0.0, 0.68), (2, 0.0, 0.4), (3, 0.0, 0.4), (3, 0.03, 0.4), (5, 0.05, 0.6)]
)
def test_as_many_facts_as_are_needed_are_enough(seeds, spread, least):
    """With the power that is asked for of one seed; several look alike by chance, and then fewer facts seem enough."""
    generator = np.random.default_rng(0)
    facts, level, distance = 40, 0.05, 0.1
    ends = []
    for _ in range(150):
        ease, shifts = generator.beta(1, 3, 100_000), spread * generator.standard_normal(seeds)
        shifts -= shifts.mean()

        def ask(count, ease=ease, shifts=shifts):
            easy = ease[generator.integers(0, len(ease), count)]
            own = generator.binomial(3, np.clip(easy + shifts[:, None], 0, 1))
            differences = (own - generator.binomial(3, easy)).astype(float)
            return differences, resample_mean(differences, np.full(count, 3.0), 100, generator)

        needed = needed_facts(ask(facts)[1], distance, level, 0.8, 100_000)
        if np.isnan(needed):
            continue
        differences, found = ask(int(needed))
        ends.append(differences.mean() / 3 + found.half_width(level))
    assert len(ends) > 75
    assert least < np.mean(np.array(ends) < distance) < 0.95


def test_what_no_number_of_facts_settles():
    facts, level = 40, 0.05
    assert needed_facts(Uncertainty(np.zeros(1), 0.05, 0.0, facts), -0.01, level, 0.8, 1000) == 1000, (
        "on the wrong side"
    )
    assert needed_facts(Uncertainty(np.zeros(1), 0.05, 0.0, facts), 0.001, level, 0.8, 1000) == 1000
    differing = Uncertainty(np.zeros(1), 0.02, 0.05, facts, 3, 0.01)
    assert np.isnan(needed_facts(differing, 0.08, level, 0.8, 1_000_000)), "seeds decide"
    needed = needed_facts(Uncertainty(np.zeros(1), 0.05, 0.0, facts), 0.05, level, 0.8, 1_000_000)
    assert needed == pytest.approx(facts * (norm.ppf(0.975) + norm.ppf(0.8)) ** 2, rel=0.01), "the closed form"


def test_more_seeds_settle_what_facts_do_not():
    """As many as in the closed form, where facts and answers add nothing."""
    level, distance, spread = 0.05, 0.05, 0.04
    found = Uncertainty(np.zeros(1), 1e-9, spread / np.sqrt(3), 200, 3)
    enough = [
        seeds
        for seeds in range(4, 100)
        if (t.ppf(0.975, seeds - 1) + t.ppf(0.8, seeds - 1)) * spread / np.sqrt(seeds) <= distance
    ]
    assert np.isnan(needed_facts(found, distance, level, 0.8, 1_000_000))
    assert needed_seeds(found, distance, level, 0.8, 100) == enough[0]
    assert needed_seeds(Uncertainty(np.zeros(1), 0.05, 0.02, 200, 3), 0.05, level, 0.8, 100) == 100, "facts are too few"
