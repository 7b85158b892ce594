"""NPE under priors that are boxes, are none, or have heavy tails: no draw leaves them."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from npe_cases import quick

from sbi_flows import NPE, ConditionalFlow, Reliability
from sbi_flows.distributions import BoxUniform, from_pair
from sbi_flows.inference.flow_posterior import FlowPosterior


def test_no_draw_leaves_the_prior():
    prior = BoxUniform([0.0, -1.0], [1.0, 1.0])
    theta = prior.sample(1000, torch.Generator().manual_seed(0)).numpy()
    x = theta + 0.3 * np.random.default_rng(0).normal(size=theta.shape)
    npe = NPE(prior, ConditionalFlow(layers=1, hidden=(16,), max_epochs=3), random_state=0).fit(theta, x)
    draws = npe.sample([1.5, -2.0], 20_000, random_state=0)
    assert np.isfinite(prior.log_prob(torch.from_numpy(draws)).numpy()).all()


def test_a_prior_whose_support_is_no_box():
    """Triangle a < b: no draw outside, and the density integrates to one over it (grid of 200 x 200: 2 % at the diagonal)."""

    def sample(n, generator):
        return torch.rand(n, 2, generator=generator, dtype=torch.float64).sort(-1).values

    def log_prob(x):
        inside = (x[:, 0] < x[:, 1]) & (x >= 0).all(-1) & (x <= 1).all(-1)
        return torch.where(inside, math.log(2), -math.inf)

    prior = from_pair(sample, log_prob, 2, support=[(0, 1), (0, 1)])
    theta = prior.sample(1000, torch.Generator().manual_seed(0)).numpy()
    x = theta + 0.5 * np.random.default_rng(0).normal(size=theta.shape)
    npe = quick(prior, max_epochs=10).fit(theta, x)
    posterior = npe.posterior([0.5, 0.5])
    assert 0.1 < posterior.acceptance[0] < 0.99 and "lie inside the prior's support" in str(posterior.reliability)
    draws = posterior.sample(3000, random_state=0)
    assert draws.shape == (3000, 2) and (draws[:, 0] < draws[:, 1]).all()
    grid = (np.arange(200) + 0.5) / 200
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    assert np.exp(posterior.log_prob(points)).mean() == pytest.approx(1, abs=0.04)
    assert (posterior.log_prob(points[points[:, 0] > points[:, 1]]) == -np.inf).all()
    assert npe.sample(x[:3], 7, random_state=0).shape == (3, 7, 2)


def test_a_prior_that_forbids_a_corner():
    """x_o in the forbidden corner, which few simulations come near: no draw leaves the prior there, and the verdict says what was cut."""

    def allowed(x):
        return ((x >= 0) & (x <= 1)).all(-1) & ~(x > 0.9).all(-1)

    def sample(n, generator):
        x = torch.rand(2 * n + 50, 2, generator=generator, dtype=torch.float64)
        return x[allowed(x)][:n]

    prior = from_pair(sample, lambda x: torch.where(allowed(x), -math.log(0.99), -math.inf), 2, support=[(0, 1), (0, 1)])
    theta = prior.sample(1000, torch.Generator().manual_seed(0)).numpy()
    npe = quick(prior, hidden=(32,), max_epochs=20).fit(theta, theta + 0.02 * np.random.default_rng(0).normal(size=theta.shape))
    corner, middle = [0.93, 0.93], [0.5, 0.5]
    batch = npe.posterior([middle] * 24 + [corner])
    assert batch.acceptance[24] < 0.9 and (batch.acceptance[:24] > 0.99).all()
    assert allowed(torch.from_numpy(batch.sample(500, random_state=0))).all()
    assert "lie inside the prior's support, which is no box; the others are rejected (for observation 24" in str(batch.reliability)
    assert npe.posterior([1.1, 1.1]).log_prob([[0.95, 0.95]]) == -np.inf


def test_a_leak_spoils_the_verdict_of_batches_of_any_size():
    class Leaky(ConditionalFlow):
        def sample(self, condition, n_samples, random_state=None):
            return np.linspace(-2, 1, n_samples)[None, :, None].repeat(len(condition), 0)

    estimator, many = Leaky(), np.zeros((25, 1))
    for rows, m in ((many[:1], None), (many, 25)):
        posterior = FlowPosterior(estimator, rows, BoxUniform([0], [1]), ["a"], rows, Reliability(True), m, rejects=True)
        posterior.remark([], ["seen"])
        assert not posterior.reliability.ok and posterior.reliability.notes == ("seen",) and len(posterior.reliability.reasons) == 1


def test_a_prior_with_heavy_tails():
    """Cauchy prior, noise 0.3: at x_o = 0.5 the posterior is nearly N(0.5, 0.3^2). Moments of the draws give no scale."""
    rng = np.random.default_rng(0)
    theta = rng.standard_cauchy((2000, 1))
    npe = quick(scipy.stats.cauchy(), hidden=(32,), max_epochs=30).fit(theta, theta + 0.3 * rng.normal(size=theta.shape))
    draws = npe.sample([0.5], 4000, random_state=0)
    assert abs(np.median(draws) - 0.5) < 0.15 and 0.15 < np.std(draws) < 0.6
