"""The three estimators on densities known exactly, so that only their own statistics are on trial."""

import numpy as np
import pytest
from scipy import stats

from sbi_flows.model_evidence.density import fold_of
from sbi_flows.model_evidence.inputs import read_draws
from sbi_flows.model_evidence.methods import Fold, bridge, fold_correlation, harmonic, importance
from sbi_flows.weights import log_mean_exp

ESTIMATORS = {"harmonic": harmonic, "importance": importance, "bridge": bridge}


def log_posterior(x):
    return -0.5 * (x**2).sum(axis=1)


def log_z(d):
    return 0.5 * d * np.log(2 * np.pi)


def gaussian_folds(rng, n, d, inflate=1.0, proposals=2):
    """Draws of a unit Gaussian, cross-fitted by Gaussians whose covariance is multiplied by ``inflate``."""
    x = rng.normal(size=(n, d))
    draws = read_draws(x, log_posterior)
    fold, folds = fold_of(draws), []
    for k in (0, 1):
        test, train = x[fold == k], x[fold != k]
        f = stats.multivariate_normal(train.mean(axis=0), inflate * np.atleast_2d(np.cov(train.T, bias=True)))
        y = f.rvs(int(proposals * n / 2), random_state=rng).reshape(-1, d)
        ratio = [log_posterior(rows) - f.logpdf(rows) for rows in (test, train, y)]
        folds.append(Fold(np.flatnonzero(fold == k), ratio[0], f.logpdf(test), ratio[1], y, ratio[2], f.logpdf(y)))
    return draws, folds


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("d", "inflate"), [(2, 1.0), (5, 1.3), (20, 1.0)])
def test_errors_are_calibrated(name, d, inflate):
    """Standardised errors of 200 repetitions have unit mean square; its standard error is .1, the bounds are 3.5 of them (1e-3 a test)."""
    rng = np.random.default_rng(17)
    estimates = [ESTIMATORS[name](*gaussian_folds(rng, 1000, d, inflate)) for _ in range(200)]
    pulls = np.array([(e.log_z - log_z(d)) / e.log_z_err for e in estimates])
    assert abs(pulls.mean()) < 3.5 / np.sqrt(200)
    # An estimator may overstate its error where its weights hardly vary (harmonic, d = 2), never understate it.
    assert (0.3 if d == 2 else 0.65) < np.mean(pulls**2) < 1.35


def test_fold_correlation_is_one_for_a_parametric_fit_and_small_for_a_misfit():
    rng = np.random.default_rng(5)
    parametric = np.mean([fold_correlation(gaussian_folds(rng, 1000, 10)[1]) for _ in range(20)])
    misfit = np.mean([fold_correlation(gaussian_folds(rng, 4000, 3, inflate=2.0)[1]) for _ in range(20)])
    assert parametric > 0.85 and misfit < 0.1


def test_fold_correlation_is_the_correlation_of_the_folds_errors():
    """600 repetitions of a parametric fit: the correlation of the folds' errors has standard error .02; 4 of them plus the spread of the
    prediction's own bias (early terms of order 1/n) are allowed."""
    rng = np.random.default_rng(6)
    errors, predicted = [], []
    for _ in range(600):
        _, folds = gaussian_folds(rng, 1000, 10, proposals=0.02)
        errors.append([-log_mean_exp(-fold.ratio) - log_z(10) for fold in folds])
        predicted.append(fold_correlation(folds))
    measured = np.corrcoef(np.transpose(errors))[0, 1]
    assert np.mean(predicted) == pytest.approx(measured, abs=0.1)
    assert measured > 0.7


def test_truncation_keeps_its_share_of_draws_in_any_dimension():
    """For a perfect density, cutting to retained mass a leaves ESS/N = a, where a shrunken base leaves (s sqrt(2 - s^2))^d."""
    rng = np.random.default_rng(7)
    for d in (1, 20, 100):
        x, y = rng.normal(size=(4000, d)), rng.normal(size=(4000, d))
        draws = read_draws(x, log_posterior)
        f, f_y = log_posterior(x) - log_z(d), log_posterior(y) - log_z(d)
        estimate = harmonic(draws, [Fold(np.arange(4000), log_posterior(x) - f, f, np.zeros(0), y, None, f_y)])
        assert estimate.ess == pytest.approx(0.99, abs=0.01)
        assert abs(estimate.log_z - log_z(d)) < 4 * estimate.log_z_err < 0.015  # the error is sqrt(2 x .01 / 4000), .0022


def test_hard_edges_unknown_to_the_density_do_not_bias_the_harmonic_mean():
    """A half-normal posterior under a full normal density: half of f lies where the posterior is zero."""
    rng = np.random.default_rng(8)
    x, y = np.abs(rng.normal(size=(20_000, 1))), rng.normal(size=(20_000, 1))
    draws = read_draws(x, log_posterior)
    f, f_y = stats.norm.logpdf(x[:, 0]), stats.norm.logpdf(y[:, 0])
    ratio = np.where(y[:, 0] > 0, log_posterior(y) - f_y, -np.inf)
    fold = Fold(np.arange(20_000), log_posterior(x) - f, f, np.zeros(0), y, ratio, f_y)
    for estimator in ESTIMATORS.values():
        estimate = estimator(draws, [fold])
        assert abs(estimate.log_z - (log_z(1) - np.log(2))) < 4 * estimate.log_z_err < 0.06


def test_optimal_bridge_beats_both_others():
    rng = np.random.default_rng(9)
    errors = {name: [] for name in ESTIMATORS}
    for _ in range(60):
        draws, folds = gaussian_folds(rng, 1000, 5, inflate=1.4)
        for name, estimator in ESTIMATORS.items():
            errors[name].append(estimator(draws, folds).log_z - log_z(5))
    rms = {name: np.sqrt(np.mean(np.square(values))) for name, values in errors.items()}
    assert rms["bridge"] < 0.9 * min(rms["harmonic"], rms["importance"])
