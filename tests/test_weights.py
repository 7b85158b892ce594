"""Weights against ArviZ, closed forms and a process of known autocorrelation time."""

import arviz
import numpy as np
import pytest

from sbi_flows.weights import autocorrelation_time, kish_ess, log_mean_error, log_mean_exp, pareto_k, smooth_weights


def test_log_mean_exp_does_not_overflow():
    v = np.array([[1000.0, 1000.0], [-1000.0, -np.inf]])
    assert log_mean_exp(v) == pytest.approx(1000 - np.log(2))
    assert np.allclose(log_mean_exp(v, axis=1), [1000, -1000 - np.log(2)])


def test_kish_ess():
    assert kish_ess(np.full(50, -1e4)) == pytest.approx(50)
    assert kish_ess(np.log([0.5, 0.25, 0.25])) == pytest.approx(1 / 0.375)
    assert kish_ess(np.array([0.0, -np.inf, -np.inf])) == pytest.approx(1)
    assert kish_ess(np.full(3, -np.inf)) == 0


@pytest.mark.parametrize("shape", [0.1, 0.4, 0.7, 1.2])
@pytest.mark.parametrize("n", [200, 1000, 20_000])
def test_pareto_k_is_that_of_arviz(shape, n):
    log_weights = np.random.default_rng(n).exponential(shape, n) + 5        # the weights' tail is Pareto with this k
    _, expected = arviz.psislw(log_weights.copy())
    assert pareto_k(log_weights) == pytest.approx(float(expected), abs=1e-6)


def test_pareto_k_recovers_the_shape_of_the_tail():
    log_weights = np.random.default_rng(0).exponential(0.6, 1_000_000)
    # 3000 points in the tail: the standard error of k is (1 + k) / sqrt(3000) = 0.03; 4 of them.
    assert pareto_k(log_weights) == pytest.approx(0.6, abs=0.12)


def test_pareto_k_with_autocorrelation_looks_further_into_the_tail_like_arviz():
    log_weights = np.random.default_rng(1).exponential(0.5, 4000)
    _, expected = arviz.psislw(log_weights.copy(), reff=0.2)
    assert pareto_k(log_weights, relative_ess=0.2) == pytest.approx(float(expected), abs=1e-6)


def test_pareto_k_with_repeated_rows_as_metropolis_gives_them():
    log_weights = np.repeat(np.random.default_rng(2).exponential(0.5, 2000), 3)
    _, expected = arviz.psislw(log_weights.copy())
    assert pareto_k(log_weights) == pytest.approx(float(expected), abs=1e-6)


def test_pareto_k_ignores_the_scale_and_rows_of_no_weight():
    log_weights = np.random.default_rng(3).exponential(0.5, 5000)
    k = pareto_k(log_weights)
    assert pareto_k(log_weights + 3000) == pytest.approx(k, abs=1e-9)
    assert pareto_k(log_weights - 3000) == pytest.approx(k, abs=1e-9)
    without = np.concatenate([log_weights, np.full(100, -np.inf)])
    assert np.isfinite(pareto_k(without))


def test_pareto_k_of_degenerate_weights():
    assert pareto_k(np.zeros(1000)) == -np.inf
    assert pareto_k(np.r_[np.zeros(10), np.full(1000, -np.inf)]) == np.inf
    assert pareto_k(np.r_[100.0, np.zeros(999)]) == np.inf        # one weight holds everything


def ar1(coefficient, shape, seed):
    rng = np.random.default_rng(seed)
    x = np.empty(shape)
    x[..., 0] = rng.standard_normal(shape[:-1])
    noise = np.sqrt(1 - coefficient**2) * rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        x[..., i] = coefficient * x[..., i - 1] + noise[..., i]
    return x


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(200_000,), (8, 25_000)])
def test_autocorrelation_time_of_a_known_process(coefficient, shape):
    expected = (1 + coefficient) / (1 - coefficient)
    # Relative error sqrt(2 (2 w + 1) / n) with a window w of a few times tau: below 4 % here, three of them.
    assert autocorrelation_time(ar1(coefficient, shape, 0)) == pytest.approx(expected, rel=0.12)


def test_antithetic_series_have_a_time_below_one():
    assert autocorrelation_time(ar1(-0.5, (50_000,), 0)) == pytest.approx(1 / 3, rel=0.15)


def test_chains_that_disagree_have_a_long_time():
    independent = np.random.default_rng(0).standard_normal((4, 2000))
    assert autocorrelation_time(independent) < 1.5
    assert autocorrelation_time(independent + 3 * np.arange(4)[:, None]) > 200


def test_constant_and_short_series_have_no_memory():
    assert autocorrelation_time(np.ones(100)) == 1
    assert autocorrelation_time(np.array([1.0, 2.0])) == 1


def test_smoothing_keeps_order_and_mean_and_tames_the_largest():
    """Weights exp(0.8 z) of a log-normal: smoothed or not their mean is exp(0.32), to 4 standard errors."""
    log_weights = 0.8 * np.random.default_rng(0).normal(size=20_000)
    smoothed = smooth_weights(log_weights)
    assert (np.argsort(smoothed, kind="stable") == np.argsort(log_weights, kind="stable")).mean() > 0.97
    assert smoothed.max() <= log_weights.max()
    error = np.sqrt(np.expm1(0.64) / 20_000)
    assert abs(log_mean_exp(smoothed) - 0.32) < 4 * error
    few = np.zeros(10)
    np.testing.assert_array_equal(smooth_weights(few), few)


def test_smoothing_lowers_the_error_of_heavy_weights():
    """Mean of Pareto weights of k = 0.6 from 1000 draws, 200 times over: the raw mean squared error is the larger."""
    rng = np.random.default_rng(1)
    log_weights = -0.6 * np.log(rng.random((200, 1000)))
    raw = np.exp(log_mean_exp(log_weights, axis=1))
    smooth = np.array([np.exp(log_mean_exp(smooth_weights(row))) for row in log_weights])
    assert np.mean((smooth - 2.5) ** 2) < np.mean((raw - 2.5) ** 2)


@pytest.mark.parametrize("k", [0.3, 0.6, 0.7])
def test_error_of_a_mean_of_heavy_weights(k):
    """400 means of 2000 Pareto weights: within one error in 68 % of cases, less 10 at most (binomial error 2.3). The naive error fails."""
    log_weights = -k * np.log(np.random.default_rng(0).random((400, 2000)))
    truth = -np.log(1 - k)
    off = np.abs(log_mean_exp(log_weights, axis=1) - truth)
    stated = np.array([log_mean_error(row) for row in log_weights])
    assert 0.58 < np.mean(off < stated) < 0.76
    if k > 0.5:
        naive = np.array([np.sqrt(1 / kish_ess(row) - 1 / 2000) for row in log_weights])
        assert np.mean(off < naive) < 0.58


def test_error_of_a_mean_without_weight():
    assert log_mean_error(np.full(100, -np.inf)) == np.inf
    assert log_mean_error(np.zeros(100)) == 0
