"""What a posterior known up to a constant says of itself, and narrow modes."""

import math

import numpy as np
import torch

from sbi_flows.distributions import BoxUniform
from sbi_flows.inference import TargetPosterior
from sbi_flows.results import Reliability
from sbi_flows.samplers import anneal
from sbi_flows.targets import posterior

PRIOR = BoxUniform([-1.0, -1.0], [1.0, 1.0])


def two_modes(narrow, mass):
    """A wide normal at (-.4, -.4), and a narrow one with most of the mass."""

    def log_likelihood(x):
        wide = math.log(1 - mass) - 0.5 * ((x + 0.4) / 0.15).square().sum(-1) - 2 * math.log(0.15)
        other = math.log(mass) - 0.5 * ((x - 0.6) / narrow).square().sum(-1) - 2 * math.log(narrow)
        return torch.logaddexp(wide, other) - math.log(2 * math.pi)

    return log_likelihood


def of(log_likelihood, **settings):
    return TargetPosterior([posterior(log_likelihood, PRIOR)], PRIOR, ("a", "b"), np.zeros(1), Reliability(True), **settings)


def wide(x):
    return -0.5 * (x / 0.3).square().sum(-1)


def test_it_says_that_it_was_not_sampled_and_what_may_be_missed():
    result = of(wide)
    assert "not sampled yet" in repr(result)
    result.sample(200, random_state=0)
    assert "not sampled yet" not in repr(result) and "20000 draws of the prior" in repr(result)


def test_the_verdict_on_chains_reaches_log_z_and_weights(monkeypatch):
    """Chains judged by what none can meet: log_z, and through it the posterior, must not be called reliable."""
    monkeypatch.setattr("sbi_flows.inference.target_posterior._MAX_RHAT", 0.5)
    monkeypatch.setattr("sbi_flows.inference.target_posterior._DOUBLINGS", 0)
    result = of(wide)
    assert math.isfinite(result.log_z)
    assert not result.reliability.ok and any(reason.startswith("log_z") for reason in result.reliability.reasons)
    weighted = result.reweight(lambda theta: wide(torch.from_numpy(theta)).numpy(), 500, random_state=0)
    assert weighted.pareto_k < 0.7 and any("R-hat" in reason for reason in weighted.reliability.reasons)


def test_more_draws_of_the_prior_find_a_narrow_mode():
    """Width .004: 20 000 draws of the prior put 6 within five widths on average, none in 1 of 500 runs; 200 find it in 1 of 16."""
    target = posterior(two_modes(0.004, 0.9), PRIOR)

    def found(n_prior):
        points = anneal(target, 200, torch.Generator().manual_seed(0), n_prior=n_prior)
        return points.shape == (200, 2) and bool(((points - 0.6).abs().amax(1) < 0.04).any())

    assert found(20_000) and not found(200)
