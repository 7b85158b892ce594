"""Skies that no draw of the posterior explains, too loud or too quiet, by every way that results come."""

import dataclasses

import numpy as np
import pytest
import torch

from sbi_flows.diagnostics.chi_squared import predictive_p
from sbi_flows.physics.pta import synthetic_pulsars, timing_likelihood
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.physics.pta.timing_misfit import judged, misfit
from sbi_flows.physics.pta.timing_refine import Rounds, refined


@pytest.fixture(scope="module")
def array():
    """Two made-up pulsars with a sky of a background and noise that can be told."""
    pulsars = synthetic_pulsars(2, n_times=100, n_frequencies=14, random_state=0)
    target = timing_likelihood(pulsars)
    theta = torch.tensor([[-14.6, 4.0, -14.5, 3.0, -16.0, 2.0]], dtype=torch.float64)
    return pulsars.with_data(target.simulate(theta, torch.Generator().manual_seed(3))[0].numpy())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda array: array, None),
        (lambda array: array.with_data(0 * array.tnr), "quieter than its own measurement errors"),
        (lambda array: array.with_data(array.tnr / 10), "quieter than its own measurement errors"),
        (lambda array: dataclasses.replace(array, tnt=array.tnt / 100, tnr=array.tnr / 100), "quieter than its own"),
        (lambda array: array.with_data(1e6 * array.tnr), "cannot make such a sky"),
    ],
)
def test_chi_squared_is_judged_on_both_sides(array, change, said):
    target = timing_likelihood(change(array))
    weighted = refined(Cube(target, 2), n_samples=100, rounds=Rounds(draws=200, most=3))
    reasons = [reason for reason in judged(weighted, target).reliability.reasons if "chi-squared" in reason]
    assert (not reasons) if said is None else said in reasons[0]


def test_predictive_p_is_uniform_where_the_truth_is_known():
    """Both tails, at one draw that is true: Kolmogorov-Smirnov on 2000 skies, false alarm 1e-4."""
    from scipy import stats

    values = stats.chi2.rvs(40, size=2000, random_state=0)
    assert stats.kstest([predictive_p(value[None], 40) for value in values], "uniform").pvalue > 1e-4
    assert predictive_p(np.array([np.nan]), 40) == 0


def test_draws_that_are_all_impossible_are_a_reason(array):
    theta = torch.tensor([[40.0, 3.0, -14.0, 3.0, -14.0, 3.0]], dtype=torch.float64)
    reasons, _ = misfit(timing_likelihood(array), theta)
    assert "impossible" in reasons[0]


def test_chi_squared_of_other_skies_and_of_loud_ones(array):
    """Rows of other skies as each by itself; a million times the residuals are a million squared the chi-squared."""
    target = timing_likelihood(array)
    theta = target.prior.sample(4, torch.Generator().manual_seed(0))
    skies = target.simulate(theta, torch.Generator().manual_seed(1))
    together, _ = target.chi_squared(theta, skies)
    alone = [float(target.with_data(sky.numpy()).chi_squared(row[None])[0]) for sky, row in zip(skies, theta, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    loud, _ = target.chi_squared(theta, 1e6 * skies)
    np.testing.assert_allclose(loud, 1e12 * together, rtol=1e-5)
