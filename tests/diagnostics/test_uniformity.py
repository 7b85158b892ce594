"""The exact test of uniform ranks: against counting all outcomes, against simulation, and its bands."""

import itertools

import numpy as np
import pytest
from scipy import stats

from sbi_flows.diagnostics.uniformity import (
    holm,
    leaving_probability,
    shape_in_words,
    thresholds,
    uniformity_band,
    uniformity_p_value,
)


@pytest.mark.parametrize(("m", "n_draws"), [(4, 3), (5, 2), (3, 6)])
def test_the_distribution_of_the_p_value_by_counting_all_outcomes(m, n_draws):
    """P(p <= a) <= a for every a, with equality at the values p takes: the definition of an exact p-value."""
    outcomes = np.array(list(itertools.product(range(n_draws + 1), repeat=m)))
    p_values = np.array([uniformity_p_value(outcome, n_draws) for outcome in outcomes])
    for value in np.unique(p_values.round(10)):
        assert np.mean(p_values <= value + 1e-9) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("m", "n_draws"), [(50, 20), (500, 1000)])
def test_p_values_of_uniform_ranks_are_uniform(m, n_draws):
    """False alarm 1e-4 (Kolmogorov-Smirnov; discreteness only makes it rarer to reject)."""
    rng = np.random.default_rng(1)
    p_values = [uniformity_p_value(rng.integers(0, n_draws + 1, m), n_draws) for _ in range(150)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_bands_hold_together_with_the_stated_confidence():
    rng = np.random.default_rng(2)
    probability, low, high = uniformity_band(200, 99, 0.9)
    points = np.rint(probability * 100)
    ranks = rng.integers(0, 100, (4000, 200))
    below = (ranks[:, :, None] < points).mean(axis=1)
    inside = ((below >= low) & (below <= high)).all(axis=1).mean()
    # Three standard errors of 4000 trials, and no more than one step of the discrete level above.
    assert 0.9 - 0.0143 < inside < 0.93


def test_small_departures_in_the_tails_are_seen():
    rng = np.random.default_rng(3)
    u = stats.norm.cdf(1.25 * rng.normal(size=1000))
    p_value = uniformity_p_value((u * 101).astype(int), 100)
    assert p_value < 1e-4
    assert shape_in_words((u * 101).astype(int), 100) == "draws too narrow"


def test_many_ranks_and_tiny_p_values_stay_ordered():
    values = [leaving_probability(20_000, thresholds(1000) / 1001, level) for level in (1e-3, 1e-8, 1e-30)]
    assert 1 >= values[0] > values[1] > values[2] > 0
    assert uniformity_p_value(np.zeros(500, int), 100) < 1e-100


@pytest.mark.parametrize(("u", "words"), [(0.2, "too high"), (-0.2, "too low")])
def test_a_shift_is_named(u, words):
    ranks = np.arange(1000) * 101 // 1000
    assert words in shape_in_words(np.clip(ranks - 100 * u, 0, 100), 100)


def test_holm():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
