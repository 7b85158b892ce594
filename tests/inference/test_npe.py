"""NPE against posteriors that are known, and what it says to bad input."""

import numpy as np
import pytest
import torch

from sbi_flows import NPE, ConditionalFlow
from sbi_flows.distributions import BoxUniform, MultivariateNormal


def conjugate(n, seed=0):
    """theta ~ N(0, I), x = theta + N(0, I / 4): the posterior is N(0.8 x, 0.2 I)."""
    generator = torch.Generator().manual_seed(seed)
    prior = MultivariateNormal([0.0, 0.0], np.eye(2))
    theta = prior.sample(n, generator)
    return prior, theta.numpy(), (theta + 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)).numpy()


@pytest.fixture(scope="module")
def gaussian():
    prior, theta, x = conjugate(3000)
    return NPE(prior, ConditionalFlow(flow="maf", layers=1, hidden=(32,)), random_state=0).fit(theta, x)


def test_conjugate_gaussian_is_recovered(gaussian):
    """Errors of the fit: 3000 simulations determine a linear regression to 0.5 / sqrt(3000) = 0.01; allowed is ten times that."""
    for x_o in ([0.0, 0.0], [1.0, -1.0]):
        draws = gaussian.posterior(x_o).sample(20_000, random_state=0)
        np.testing.assert_allclose(draws.mean(0), 0.8 * np.array(x_o), atol=0.1)
        np.testing.assert_allclose(np.cov(draws.T), 0.2 * np.eye(2), atol=0.05)


def test_shapes_of_single_observations_and_batches(gaussian):
    single, batch = gaussian.posterior([0.0, 1.0]), gaussian.posterior(np.zeros((3, 2)))
    assert single.sample(5, random_state=0).shape == (5, 2)
    assert batch.sample(5, random_state=0).shape == (3, 5, 2)
    assert single.log_prob(np.zeros((4, 2))).shape == (4,)
    assert batch.log_prob(np.zeros((4, 2))).shape == (3, 4)
    assert gaussian.log_prob(np.zeros((3, 2)), np.zeros((3, 2))).shape == (3,)
    assert batch[1].sample(5, random_state=0).shape == (5, 2)


def test_map_is_the_mode(gaussian):
    """The mode of a normal is its mean, to the 0.1 of the fit."""
    np.testing.assert_allclose(gaussian.posterior([0.5, -0.5]).map(random_state=0), [0.4, -0.4], atol=0.1)


def test_reweighting_reaches_the_exact_posterior_and_evidence(gaussian):
    """ln Z of N(0, 1.25 I) at x_o; its error is 1 / sqrt(ESS), and four of them are allowed (false alarm 1e-4)."""
    x_o = np.array([0.5, -0.5])

    def log_likelihood(theta):
        return -0.5 * np.square((x_o - theta) / 0.5).sum(1) - np.log(2 * np.pi * 0.25)

    weighted = gaussian.posterior(x_o).reweight(log_likelihood, 5000, random_state=0)
    exact = -0.5 * np.square(x_o).sum() / 1.25 - np.log(2 * np.pi * 1.25)
    assert weighted.ess > 2500
    log_z = np.log(np.mean(np.exp(weighted.log_weights)))
    assert abs(log_z - exact) < 4 / np.sqrt(weighted.ess)


def test_no_draw_leaves_the_prior():
    prior = BoxUniform([0.0, -1.0], [1.0, 1.0])
    theta = prior.sample(1000, torch.Generator().manual_seed(0)).numpy()
    x = theta + 0.3 * np.random.default_rng(0).normal(size=theta.shape)
    npe = NPE(prior, ConditionalFlow(layers=1, hidden=(16,), max_epochs=3), random_state=0).fit(theta, x)
    draws = npe.sample([1.5, -2.0], 20_000, random_state=0)
    assert np.isfinite(prior.log_prob(torch.from_numpy(draws)).numpy()).all()
