"""Reverse KL and the variational posterior: exact evidences, gradients that vanish at the optimum, verdicts that notice a lost mode."""

import copy
import math

import numpy as np
import pytest
import torch

from sbi_flows import NLE, ConditionalFlow
from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.flows import nsf, realnvp
from sbi_flows.inference import VariationalPosterior, variational
from sbi_flows.losses import Batch, reverse_kl
from sbi_flows.targets import from_log_prob, posterior
from tests.inference.conjugate import exact_posterior, simulations
from tests.properties import randomise


def banana(x):
    return -0.5 * (x[:, 0] / 0.5).square() - 0.5 * ((x[:, 1] - x[:, 0].square()) / 0.3).square()


def banana_target():
    return posterior(banana, BoxUniform([-4.0, -4.0], [4.0, 8.0], names=["a", "b"]))


EXACT = math.log(2 * math.pi * 0.5 * 0.3 / 96)


def test_the_loss_is_the_divergence_and_its_gradient_vanishes_at_the_optimum():
    """At q = p every row's loss is ln Z and its gradient zero without noise; the plain gradient would scatter about zero."""
    flow = randomise(realnvp(2, layers=2, hidden=(8,))).double()
    truth = copy.deepcopy(flow).requires_grad_(False)
    z = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = reverse_kl(lambda x: truth.log_prob(x) + 3)(flow, Batch(z), torch.Generator())
    torch.testing.assert_close(values, torch.full((64,), -3.0, dtype=torch.float64), rtol=0, atol=1e-8)
    gradients = torch.autograd.grad(values.sum(), list(flow.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-6


def test_the_gradient_is_that_of_the_divergence():
    """Mean over 20000 draws of the path gradient against the plain one's, in one direction: both estimate the same number.

    The plain one's noise: standard error s of 20000 terms; four of them allowed, false alarm 6e-5.
    """
    flow = randomise(realnvp(1, layers=1, hidden=(4,))).double()
    z = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def target(x):
        return -0.5 * (x[:, 0] - 1).square()

    parameters = [p for p in flow.parameters() if p.requires_grad]
    path = torch.autograd.grad(reverse_kl(target)(flow, Batch(z), torch.Generator()).mean(), parameters, allow_unused=True)
    x, log_det = flow.from_base(z)
    plain_rows = flow.base.log_prob(z) - log_det - target(x)
    plain = torch.autograd.grad(plain_rows.mean(), parameters, allow_unused=True)
    for a, b in zip(path, plain, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=4 * 3 / math.sqrt(20_000))


@pytest.fixture(scope="module")
def fitted():
    flow = nsf(2, layers=2, hidden=(16,), autoregressive=False, support=[(-4, 4), (-4, 8)], generator=torch.Generator().manual_seed(0))
    return variational(banana_target(), flow=flow, n_steps=50, n_particles=1000, random_state=0)


def test_evidence_and_density_are_right_within_the_error(fitted):
    """False alarm 6e-5: four standard errors."""
    assert fitted.reliability.ok, fitted.reliability
    assert abs(fitted.log_z - EXACT) < 4 * fitted.log_z_err and fitted.log_z_err < 0.03
    points = np.array([[0.0, 0.0], [0.5, 0.2], [5.0, 0.0]])
    exact = banana(torch.from_numpy(points)).numpy() - math.log(96) - EXACT
    np.testing.assert_allclose(fitted.log_prob(points)[:2], exact[:2], atol=4 * fitted.log_z_err)
    assert fitted.log_prob(points)[2] == -math.inf


def test_draws_have_the_right_moments(fitted):
    """2000 draws: a is N(0, 0.25), and b - a^2 is N(0, 0.09). Five standard errors, as resampled rows may repeat."""
    draws = fitted.sample(2000, random_state=1)
    assert draws.shape == (2000, 2) and fitted.names == ("a", "b")
    np.testing.assert_array_equal(draws, fitted.sample(2000, random_state=1))
    rest = draws[:, 1] - draws[:, 0] ** 2
    assert abs(draws[:, 0].mean()) < 5 * 0.5 / math.sqrt(2000) and abs(rest.mean()) < 5 * 0.3 / math.sqrt(2000)
    assert abs(draws[:, 0].std() / 0.5 - 1) < 5 / math.sqrt(4000) and abs(rest.std() / 0.3 - 1) < 5 / math.sqrt(4000)


def test_a_lost_mode_is_noticed():
    """A flow on one of two modes: its weights look perfect, the annealed points do not."""
    modes = torch.tensor([[-3.0], [3.0]], dtype=torch.float64)
    target = posterior(lambda x: torch.logsumexp(-0.5 * ((x[:, None, 0] - modes[:, 0]) / 0.3).square(), 1), BoxUniform([-6.0], [6.0]))
    generator = torch.Generator().manual_seed(0)
    one = 3 + 0.3 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    narrow = realnvp(1, layers=1, hidden=(4,), support=(-6, 6), generator=generator).fit_scaling(one)
    alone = VariationalPosterior(target, narrow.requires_grad_(False), one, random_state=0)
    both = VariationalPosterior(target, narrow, torch.cat([one, -one]), random_state=0)
    assert not any("misses" in reason and "annealing" in reason for reason in alone.reliability.reasons)
    assert any("50% of the points found by annealing" in reason for reason in both.reliability.reasons)


def test_of_a_learned_likelihood():
    """From NLE: evidence and reweighting agree with the exact ones to what the fit allows (0.1)."""
    prior, theta, x = simulations(2000)
    nle = NLE(prior, ConditionalFlow(flow="maf", layers=1, hidden=(32,)), random_state=0).fit(theta, x)
    x_o = np.array([0.5, -0.5])
    mean, variance = exact_posterior(x_o[None])
    posterior_o = nle.posterior(x_o)
    log_z = -0.5 * np.square(x_o).sum() / 1.25 - np.log(2 * np.pi * 1.25)
    assert posterior_o.log_z == pytest.approx(log_z, abs=0.1) and posterior_o.log_z_err < 0.03
    small = realnvp(2, layers=1, hidden=(8,), generator=torch.Generator().manual_seed(0))
    fast = posterior_o.variational(flow=small, n_steps=0, random_state=0)
    assert fast.log_z == pytest.approx(posterior_o.log_z, abs=5 * math.hypot(fast.log_z_err, posterior_o.log_z_err))
    np.testing.assert_allclose(fast.sample(2000, random_state=0).mean(0), mean, atol=0.1)

    def log_likelihood(theta):
        return -0.5 * np.square((x_o - theta) / 0.5).sum(1) - np.log(2 * np.pi * 0.25)

    weighted = posterior_o.reweight(log_likelihood, 2000, random_state=0)
    assert weighted.log_z == pytest.approx(log_z, abs=5 * math.hypot(weighted.log_z_err, posterior_o.log_z_err) + 0.02)
    np.testing.assert_allclose(np.average(weighted.samples, axis=0, weights=weighted.weights), mean, atol=5 * math.sqrt(variance / 400))


def test_what_it_needs():
    with pytest.raises(ValueError, match="with a prior"):
        variational(from_log_prob(lambda x: -x.square().sum(1), 1))
    no_gradient = posterior(lambda x: x.detach()[:, 0], MultivariateNormal([0.0], [[1.0]]))
    with pytest.raises(ValueError, match="has no gradient"):
        variational(no_gradient, flow=realnvp(1, layers=1, hidden=(4,)), n_particles=100, random_state=0)
    with pytest.raises(ValueError, match="n_steps"):
        variational(banana_target(), n_steps=-1)
