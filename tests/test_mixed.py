"""Mixed discrete and continuous densities: normalisation, draws, exact joint, estimators, files, and priors with discrete columns."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from sbi_flows import NPE, ConditionalFlow
from sbi_flows.distributions import BoxUniform, Choice, MultivariateNormal, Product, as_prior
from sbi_flows.distributions.files import prior_from_data, prior_to_data
from sbi_flows.flows import MixedDensity, build, mixed

FAST = {"layers": 1, "hidden": (16,), "max_epochs": 10, "random_state": 0}


def bent(flow, seed=0):
    """The flow in float64 with random weights, so that nothing is at its start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in flow.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return flow.double()


def test_it_sums_and_integrates_to_one():
    flow = bent(mixed(3, 2, discrete={0: 2, 2: [-1.0, 0.5, 7.0]}, support=["real", (0, 1), "real"], hidden=(8,), layers=1))
    logit = torch.linspace(-36, 36, 8001, dtype=torch.float64)
    y, jacobian = torch.sigmoid(logit), torch.sigmoid(logit) * torch.sigmoid(-logit) * (logit[1] - logit[0])
    context = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    total = 0.0
    for k, m in itertools.product([0.0, 1.0], [-1.0, 0.5, 7.0]):
        x = torch.stack([torch.full_like(y, k), y, torch.full_like(y, m)], dim=1)
        total += (flow.log_prob(x, context.expand(len(x), -1)).exp() * jacobian).sum().item()
    assert total == pytest.approx(1.0, abs=1e-4)


def test_draws_have_the_density_they_are_given_with():
    flow = bent(mixed(2, 1, discrete={1: 3}, hidden=(8,), layers=1))
    x, log_prob = flow.sample_and_log_prob(500, torch.zeros(1, 1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(x, torch.zeros(500, 1)), log_prob, rtol=0, atol=1e-8)
    again = flow.sample(500, torch.zeros(1, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    assert set(x[:, 1].tolist()) <= {0.0, 1.0, 2.0}


def test_draws_have_the_stated_frequencies():
    """Counts of the 6 cells of two discrete columns against their probabilities: chi squared, false alarm 1e-4."""
    flow = bent(mixed(2, discrete={0: 2, 1: 3}))
    cells = torch.tensor(list(itertools.product([0.0, 1.0], [0.0, 1.0, 2.0])), dtype=torch.float64)
    expected = flow.log_prob(cells).exp().detach().numpy()
    assert expected.sum() == pytest.approx(1.0, abs=1e-12)
    x = flow.sample(20_000, generator=torch.Generator().manual_seed(1)).numpy()
    counts = np.array([(x == cell).all(1).sum() for cell in cells.numpy()])
    assert scipy.stats.chisquare(counts, expected * 20_000).pvalue > 1e-4


def test_other_values_are_impossible_and_refused_in_a_fit():
    flow = mixed(2, discrete={0: 3})
    assert flow.log_prob(torch.tensor([[0.5, 0.0], [3.0, 0.0]])).tolist() == [-np.inf, -np.inf]
    with pytest.raises(ValueError, match=r"column 0 to hold 0, 1, 2; got 1 other values, the first 7 in row 2"):
        flow.fit_scaling(torch.tensor([[0.0, 1.0], [1.0, 2.0], [7.0, 0.0]]))
    with pytest.raises(ValueError, match="2 to 1000 different categories of column 0"):
        mixed(2, discrete={0: [1.0, 1.0]})
    with pytest.raises(ValueError, match="discrete columns from 0 to 1; got 2"):
        mixed(2, discrete={2: 2})
    with pytest.raises(ValueError, match="at least one discrete column"):
        mixed(2, discrete={})
    with pytest.raises(ValueError, match="flow to be one of"):
        mixed(2, discrete={0: 2}, flow="cnf")


def test_spec_builds_it_again():
    flow = mixed(3, 1, discrete={1: [2, 4]}, support=[(0, 1), "real", "circular"], layers=2, hidden=(5,))
    again = build(flow.spec)
    assert again.spec == flow.spec and again.values == [(2.0, 4.0)]
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in flow.state_dict().items()}


def data(n, seed=0):
    """k is 0, 1, 2 with logits linear in x; y is N(2 k - x, 1/4)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1))
    probabilities = scipy.special.softmax(x * [-1.0, 0.0, 1.0], axis=1)
    k = (rng.random((n, 1)) > probabilities.cumsum(1)).sum(1)
    y = 2 * k - x[:, 0] + 0.5 * rng.normal(size=n)
    exact = np.log(probabilities[np.arange(n), k]) + scipy.stats.norm.logpdf(y, 2 * k - x[:, 0], 0.5)
    return x, np.stack([k, y], axis=1), exact


@pytest.mark.parametrize("members", [1, 3])
def test_an_estimator_learns_the_exact_joint(tmp_path, members):
    """Within .05 nats of the truth on 2000 fresh rows, where either part unlearned would lose more than .3."""
    X, y, _ = data(3000)
    model = ConditionalFlow(flow=MixedDensity({0: 3}), **FAST, n_members=members).fit(X, y)
    fresh, z, exact = data(2000, seed=1)
    assert -0.02 < (exact - model.log_prob(fresh, z)).mean() < 0.05
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(ConditionalFlow.load(tmp_path / "model").log_prob(fresh, z), model.log_prob(fresh, z))
    draws = model.sample(fresh[:2], 50, random_state=0)
    assert draws.shape == (2, 50, 2) and set(draws[..., 0].ravel()) <= {0.0, 1.0, 2.0}


def test_behind_an_embedding():
    X, y, _ = data(300)
    model = ConditionalFlow(flow=MixedDensity({0: 3}), **FAST, embedding={"embedding": "vector", "shape": [1]}).fit(X, y)
    assert np.isfinite(model.log_prob(X, y)).all()


# --- Priors and NPE ------------------------------------------------------------------------------------------------------------


def test_choice_is_a_prior():
    prior = Choice([4.0, 1.0, 2.0], [1, 1, 2], names=["n"])
    assert prior.log_prob(torch.tensor([[1.0], [2.0], [3.0]])).exp().tolist() == pytest.approx([0.25, 0.5, 0.0])
    counts = np.bincount(prior.sample(4000, torch.Generator().manual_seed(0))[:, 0].long().numpy(), minlength=5)[[1, 2, 4]]
    assert scipy.stats.chisquare(counts, [1000, 2000, 1000]).pvalue > 1e-4  # the false-alarm rate
    both = Product([BoxUniform([0, 0], [1, 1]), prior])
    assert both.discrete == {2: (1.0, 2.0, 4.0)} and not both.box
    again = prior_from_data(prior_to_data(both))
    x = both.sample(5, torch.Generator().manual_seed(0))
    assert torch.equal(again.log_prob(x), both.log_prob(x))
    with pytest.raises(ValueError, match="different finite values"):
        Choice([1.0, 1.0])
    with pytest.raises(ValueError, match="3 positive probabilities"):
        Choice(3, [1.0, 0.0, 1.0])


def test_scipy_has_discrete_priors_too():
    prior = as_prior({"k": scipy.stats.binom(2, 0.5), "mu": scipy.stats.norm()})
    assert prior.discrete == {0: (0.0, 1.0, 2.0)} and prior.names == ("k", "mu")
    value = prior.log_prob(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert value.item() == pytest.approx(np.log(0.5) + scipy.stats.norm.logpdf(0.0))
    with pytest.raises(ValueError, match="Truncate it"):
        as_prior([scipy.stats.poisson(3.0), scipy.stats.norm()])


def test_npe_with_a_discrete_parameter(tmp_path):
    """p(k | x) against Bayes' rule on a grid of x, to .06: three models of one mean each, x = k + mu + noise, mu given k and x normal."""
    prior = Product([Choice(3, names=["k"]), MultivariateNormal([0.0], [[0.25]], names=["mu"])])
    theta = prior.sample(4000, torch.Generator().manual_seed(0)).numpy()
    x = 1.5 * theta[:, :1] + theta[:, 1:] + 0.5 * np.random.default_rng(0).normal(size=(4000, 1))
    npe = NPE(prior, ConditionalFlow(layers=1, hidden=(32,), max_epochs=15), random_state=0).fit(theta, x)
    x_o = np.array([[-0.5], [0.7], [1.5], [2.4]])
    draws = npe.sample(x_o, 4000, random_state=0)
    evidence = scipy.stats.norm.pdf(x_o, [0.0, 1.5, 3.0], np.sqrt(0.5))
    exact = evidence / evidence.sum(1, keepdims=True)
    shares = np.stack([(draws[..., 0] == k).mean(1) for k in range(3)], axis=1)
    np.testing.assert_allclose(shares, exact, atol=0.06)
    means = np.array([draws[1, draws[1, :, 0] == k, 1].mean() for k in (0, 1)])
    np.testing.assert_allclose(means, 0.5 * (0.7 - 1.5 * np.array([0, 1])), atol=0.1)
    assert set(draws[..., 0].ravel()) <= {0.0, 1.0, 2.0}
    # At x_o = .7, k = 0 has the higher evidence and mu is normal around .35.
    np.testing.assert_allclose(npe.posterior(x_o[1]).map(0), [0.0, 0.35], atol=0.1)
    given = npe.posterior(x_o[1]).conditional({"k": 1.0})
    assert given.sample(2000, random_state=0).mean() == pytest.approx(means[1], abs=0.05)
    models = npe.posterior(x_o[1]).marginal(["k"])
    assert np.exp(models.log_prob(np.array([[0.0], [1.0], [2.0]]))) == pytest.approx(shares[1], abs=0.03)
    npe.save(tmp_path / "npe")
    np.testing.assert_array_equal(NPE.load(tmp_path / "npe").log_prob(theta, x), npe.log_prob(theta, x))
