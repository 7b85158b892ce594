"""Annealing from the prior finds narrow posteriors and keeps the masses of modes."""

import math

import pytest
import torch

from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.samplers import anneal
from sbi_flows.targets import from_log_prob, posterior


def test_a_narrow_posterior_in_ten_dimensions():
    """Standard deviation 0.01 of the prior's width: mean and spread to five standard errors of 1000 correlated particles (ESS > 100)."""
    target = posterior(lambda x: -0.5 * ((x - 1) / 0.1).square().sum(1), BoxUniform([-5.0] * 10, [5.0] * 10))
    points = anneal(target, 1000, torch.Generator().manual_seed(0))
    assert points.shape == (1000, 10)
    assert float((points.mean(0) - 1).abs().max()) < 5 * 0.1 / 10
    assert float((points.std(0) / 0.1 - 1).abs().max()) < 5 / math.sqrt(2 * 100)


def test_masses_of_modes():
    """Two modes of mass 0.3 and 0.7 that no local step connects. Four binomial errors of ESS > 200: false alarms 1e-4."""
    modes = torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    log_mass = torch.log(torch.tensor([0.3, 0.7], dtype=torch.float64))
    target = posterior(
        lambda x: torch.logsumexp(log_mass - 0.5 * ((x[:, None] - modes) / 0.1).square().sum(-1), 1), BoxUniform([-5.0] * 2, [5.0] * 2)
    )
    points = anneal(target, 1000, torch.Generator().manual_seed(0))
    assert abs(float((points[:, 0] > 0).double().mean()) - 0.7) < 4 * math.sqrt(0.21 / 200)


def test_same_seed_same_points_and_all_inside():
    target = posterior(lambda x: torch.where(x[:, 0] > 0, 0.0, -math.inf), BoxUniform([-1.0], [1.0]))
    points = anneal(target, 200, torch.Generator().manual_seed(3))
    assert bool((points > 0).all()) and bool((points < 1).all())
    assert torch.equal(points, anneal(target, 200, torch.Generator().manual_seed(3)))


def test_hopeless_targets_are_told():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="zero at all of 50 draws"):
        anneal(posterior(lambda x: torch.full((len(x),), -math.inf), MultivariateNormal([0.0], [[1.0]])), 50, generator)
    with pytest.raises(ValueError, match="with a prior"):
        anneal(from_log_prob(lambda x: -x.square().sum(1), 1), 50, generator)
