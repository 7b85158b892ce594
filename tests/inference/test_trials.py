"""Repeated trials among the columns of x: found where they are, not where they are not, and used without their order."""

import numpy as np
import pytest

from sbi_flows import NPE, ConditionalFlow
from sbi_flows.distributions import BoxUniform
from sbi_flows.inference.trials import Trials, find_trials


def parameters(n, d, seed):
    rng = np.random.default_rng([seed, n])
    return rng.uniform(-1, 1, size=(n, d)), rng


def pairs_of_means(n, seed, k=4):
    """k points with means theta_0, theta_1, a spread and a correlation that depend on theta: ``(n, 2 k)``."""
    theta, rng = parameters(n, 3, seed)
    first, second = rng.normal(size=(2, n, k))
    width = 0.1 + theta[:, 2:3] ** 2
    x = theta[:, :1] + width * first
    y = theta[:, 1:2] + width * (theta[:, 2:3] * first + np.sqrt(1 - theta[:, 2:3] ** 2) * second)
    return theta, np.stack([x, y], axis=2).reshape(n, 2 * k)


def as_sets(trials):
    return {frozenset(trial) for trial in trials.columns.tolist()}


@pytest.mark.parametrize("n", [1000, 5000])
def test_trials_are_found_in_any_order_of_columns_beside_others(n):
    theta, x = pairs_of_means(n, seed=0)
    rng = np.random.default_rng(1)
    x = np.hstack([x, rng.standard_cauchy(size=(n, 2)), theta[:, :1] + rng.normal(size=(n, 1))])
    order = rng.permutation(x.shape[1])
    place = np.argsort(order)
    found = find_trials(theta, x[:, order])
    assert as_sets(found) == {frozenset(place[[2 * i, 2 * i + 1]].tolist()) for i in range(4)}


def test_units_do_not_matter():
    theta, x = pairs_of_means(2000, seed=2)
    assert as_sets(find_trials(theta * 1e6, x * 1e-6)) == as_sets(find_trials(theta, x))


def test_true_trials_are_seldom_overlooked():
    """Some twenty comparisons a problem, each false with a probability below .01 by a bound that is far from tight: normal sums are beyond
    it with about a hundredth of that, and four of twenty problems with about 1e-7."""
    found = [find_trials(*pairs_of_means(1000, seed)) for seed in range(20)]
    assert sum(one is None for one in found) < 4


def series(theta, rng, k=6):
    """A stationary autoregression about theta: every column has one distribution."""
    x = [rng.normal(size=len(theta))]
    for _ in range(k - 1):
        x.append(0.5 * x[-1] + np.sqrt(0.75) * rng.normal(size=len(theta)))
    return theta[:, :1] + np.stack(x, axis=1)


NO_SETS = {
    "one parameter a column": lambda theta, rng: theta[:, :4] + 0.3 * rng.normal(size=(len(theta), 4)),
    "a stationary series": series,
    "an alternating series": lambda theta, rng: series(theta, rng) * [1, -1, 1, -1, 1, -1],
    "volatility that persists": lambda theta, rng: rng.normal(size=(len(theta), 6)) * np.exp(series(theta, rng)),
    "deviations of 1, 1.5 and 2 tenths": lambda theta, rng: theta[:, :1] + rng.normal(size=(len(theta), 3)) * [0.1, 0.15, 0.2],
    "a rate that grows": lambda theta, rng: rng.poisson(np.exp(theta[:, :1] + 1) * [1, 1.2, 1.4, 1.6]).astype(float),
    "a design": lambda theta, rng: (rng.random((len(theta), 5)) < 1 / (1 + np.exp(-4 * theta @ (np.eye(5) + 0.25)))).astype(float),
    "distances": lambda theta, rng: np.abs(theta[:, :1] - [-0.5, 0.0, 0.5]) + 0.1 * rng.normal(size=(len(theta), 3)),
}


@pytest.mark.parametrize("name", NO_SETS)
def test_what_is_no_set_is_not_read_as_one(name):
    """Of 40 other seeds at 1000 simulations none was read as a set, but 2 of the series whose volatility persists."""
    for seed in range(6):
        theta, rng = parameters(1000, 5, seed)
        assert find_trials(theta, NO_SETS[name](theta, rng)) is None, seed


def test_too_little_to_judge_by():
    theta, x = pairs_of_means(1000, seed=3)
    missing = x.copy()
    missing[0, 0] = np.nan
    assert find_trials(theta[:999], x[:999]) is None
    assert find_trials(theta, missing) is None
    assert find_trials(theta, x[:, :2]) is None


def test_summaries_keep_everything_but_the_order():
    rng = np.random.default_rng(4)
    trials = Trials(np.array([[1, 4], [2, 5], [3, 6]]))
    x = np.floor(rng.normal(size=(200, 8)) * 2)  # with many ties
    told = trials.summaries(x)
    shuffled = x.copy()
    for row in shuffled:
        order = rng.permutation(3)
        row[[1, 2, 3]], row[[4, 5, 6]] = row[[1, 2, 3]][order], row[[4, 5, 6]][order]
    np.testing.assert_array_equal(trials.summaries(shuffled)[:, :8], told[:, :8])
    np.testing.assert_allclose(trials.summaries(shuffled), told, atol=1e-9)
    np.testing.assert_array_equal(np.sort(told[:, :8], axis=1), np.sort(x, axis=1))


def test_npe_uses_trials_without_their_order_and_says_so(tmp_path):
    theta, x = pairs_of_means(1000, seed=5)
    prior = BoxUniform([-1.0] * 3, [1.0] * 3)
    small = ConditionalFlow(layers=1, hidden=(16,), max_epochs=2)
    npe = NPE(prior, small, random_state=0).fit(theta, x)
    assert "4 exchangeable trials of 2 values" in " ".join(npe.history_.reliability.notes)
    draws = npe.sample(x[0], 50, random_state=0)
    other = x[0].reshape(4, 2)[[2, 0, 3, 1]].ravel()
    np.testing.assert_allclose(npe.sample(other, 50, random_state=0), draws, rtol=1e-5)
    npe.save(tmp_path / "npe.safetensors")
    np.testing.assert_array_equal(NPE.load(tmp_path / "npe.safetensors").sample(x[0], 50, random_state=0), draws)
    plain = NPE(prior, small, embedding=None, random_state=0).fit(theta, x)
    assert plain.estimator_.n_features_in_ == 8
