"""NLE against a conjugate problem; trials; kinds of data; and what it says to bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from sbi_flows import NLE, NPE, ConditionalFlow
from sbi_flows.distributions import BoxUniform, Product, from_pair, from_torch
from sbi_flows.inference import TargetPosterior
from sbi_flows.inference.modelled import Modelled
from sbi_flows.samplers import RandomWalk, run_chains
from tests.inference.conjugate import exact_posterior, observed_trials, simulations

SMALL = {"flow": "maf", "layers": 1, "hidden": (32,)}


@pytest.fixture(scope="module")
def gaussian():
    prior, theta, x = simulations(3000)
    return NLE(prior, ConditionalFlow(**SMALL), random_state=0).fit(theta, x)


def test_the_likelihood_is_found_and_normalised(gaussian):
    """3000 simulations determine the regression to 0.5 / sqrt(3000) = 0.01 a coefficient, ln p to a few hundredths at typical points."""
    _, theta, x = simulations(200, seed=1)
    exact = stats.norm(theta, 0.5).logpdf(x).sum(1)
    found = gaussian.log_likelihood(theta, x)
    assert np.abs(found - exact).mean() < 0.1
    grid = np.stack(np.meshgrid(np.linspace(-4, 4, 161), np.linspace(-4, 4, 161)), axis=-1).reshape(-1, 2)
    density = np.exp(gaussian.log_likelihood(np.broadcast_to([0.3, -0.2], grid.shape), grid))
    assert density.sum() * 0.05**2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("t", [1, 8])
def test_posterior_of_trials(gaussian, t):
    """The fit moves the mean by a few hundredths, the chains (ESS > 400) by 0.05 standard deviations: 0.1 and a quarter are allowed."""
    trials = observed_trials(t)
    mean, variance = exact_posterior(trials)
    posterior = gaussian.posterior(trials, trials=True)
    draws = posterior.sample(2000, random_state=0)
    assert posterior.reliability.ok, posterior.reliability
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.25)
    if t == 1:
        alone = gaussian.sample(trials[0], 50, random_state=1)
        np.testing.assert_array_equal(alone, gaussian.sample(trials, 50, random_state=1, trials=True))


def test_log_likelihoods_of_trials_add(gaussian):
    trials, theta = observed_trials(5), simulations(4, seed=2)[1]
    each = np.array([gaussian.log_likelihood(theta, trial) for trial in trials])
    np.testing.assert_allclose(gaussian.log_likelihood(theta, trials, trials=True), each.sum(0), rtol=1e-6)
    padded = np.stack([trials, np.concatenate([trials[:2], np.full((3, 2), np.nan)])])
    expected = [each.sum(0)[0], each[:2].sum(0)[1]]
    np.testing.assert_allclose(gaussian.log_likelihood(theta[:2], padded, trials=True), expected, rtol=1e-6)


def test_shapes_seeds_and_batches(gaussian):
    batch = gaussian.posterior(np.zeros((2, 2)))
    draws = batch.sample(60, random_state=0)
    assert isinstance(batch, TargetPosterior) and draws.shape == (2, 60, 2)
    np.testing.assert_array_equal(draws, gaussian.sample(np.zeros((2, 2)), 60, random_state=0))
    assert batch.log_prob(np.zeros((4, 2))).shape == (2, 4) and batch[1].log_prob(np.zeros((4, 2))).shape == (4,)
    assert gaussian.posterior(np.zeros((2, 3, 2)), trials=True).n_observations == 2
    with pytest.raises(ValueError, match="single observation"):
        batch.map()


def test_log_prob_is_the_posterior_up_to_a_constant(gaussian):
    mean, variance = exact_posterior([[0.5, 0.1]])
    theta = mean + np.sqrt(variance) * simulations(50, seed=5)[1]
    difference = gaussian.log_prob(theta, [0.5, 0.1]) - stats.norm(mean, np.sqrt(variance)).logpdf(theta).sum(1)
    assert np.std(difference) < 0.15
    np.testing.assert_allclose(gaussian.posterior([0.5, 0.1]).log_prob(theta), gaussian.log_prob(theta, [0.5, 0.1]), rtol=1e-6)
    rows = gaussian.log_prob(theta, np.repeat([[0.5, 0.1]], 50, axis=0))
    np.testing.assert_allclose(rows, gaussian.log_prob(theta, [0.5, 0.1]), rtol=1e-6)


def test_the_posterior_is_a_target_and_has_a_mode(gaussian):
    posterior = gaussian.posterior([0.5, -0.5])
    chains = run_chains(RandomWalk(), posterior.target, np.zeros((10, 2)), n_steps=20, n_warmup=10, random_state=0)
    assert chains.names == posterior.names == ("theta_0", "theta_1")
    np.testing.assert_allclose(posterior.map(random_state=0), [0.4, -0.4], atol=0.1)


def test_a_second_fit_adds_simulations():
    prior, theta, x = simulations(1200)
    nle = NLE(prior, ConditionalFlow(**SMALL), random_state=0).fit(theta[:200], x[:200])
    before = nle.log_likelihood(theta, x)
    nle.fit(theta[200:], x[200:])
    assert nle.n_simulations_ == 1200 and nle.log_likelihood(theta, x).mean() > before.mean()


def test_draws_stay_inside_every_support():
    """A box, an angle and a half-line; x says little, so that draws reach the edges."""
    generator = torch.Generator().manual_seed(0)
    angle = from_pair(
        lambda n, g: 2 * np.pi * torch.rand(n, 1, generator=g, dtype=torch.float64) - np.pi,
        lambda v: torch.full((len(v),), -np.log(2 * np.pi), dtype=torch.float64),
        1,
        support="circular",
    )
    rate = from_torch(torch.distributions.Gamma(torch.ones(1).double(), torch.ones(1).double()))
    prior = Product([BoxUniform([0.0], [1.0]), angle, rate])
    theta = prior.sample(800, generator)
    x = torch.stack([torch.cos(theta[:, 1]), theta[:, 0] + theta[:, 2]], dim=1) + torch.randn(800, 2, generator=generator)
    nle = NLE(prior, ConditionalFlow(**SMALL, max_epochs=10), random_state=0).fit(theta.numpy(), x.numpy())
    draws = nle.posterior([0.5, 1.0]).sample(1000, random_state=0)
    assert np.isfinite(prior.log_prob(torch.from_numpy(draws)).numpy()).all()
    seam = nle.log_likelihood([[0.5, -np.pi + 1e-9, 1.0], [0.5, np.pi - 1e-9, 1.0]], [0.5, 1.0])
    assert seam[0] == pytest.approx(seam[1], abs=1e-3)


def counts(n, seed=0):
    rng = np.random.default_rng(seed)
    theta = rng.uniform(5, 30, size=(n, 1))
    return BoxUniform([5.0], [30.0], names=["rate"]), theta, rng.poisson(theta).astype(float)


def test_counts_get_probabilities_and_say_so():
    """Poisson counts: probabilities of whole numbers sum to one, and lie near the exact ones."""
    prior, theta, x = counts(2000)
    nle = NLE(prior, ConditionalFlow(flow="nsf", layers=1, hidden=(32,)), random_state=0).fit(theta, x)
    assert any("probabilities are learned" in note for note in nle.history_.reliability.notes) and nle.history_.reliability.ok
    k = np.arange(0.0, 200)[:, None]
    probability = np.exp(nle.log_likelihood(np.full_like(k, 15.0), k))
    assert probability.sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(probability - stats.poisson(15).pmf(k[:, 0])).sum() < 0.15


@pytest.mark.parametrize("rates", ["uniform", "logarithmic"])
def test_rare_counts_have_the_right_probability(rates):
    """Rates of which few are small: 5000 simulations, of which 100 (uniform) or most have rates below 0.1, determine p(0) at .05 as a
    smooth function of the rate to about .03; a density of counts made continuous by noise gave .50 for .95 there."""
    rng = np.random.default_rng(3)
    prior = BoxUniform([0.0], [5.0]) if rates == "uniform" else stats.loguniform(1e-3, 5)
    theta = rng.uniform(0, 5, size=(5000, 1)) if rates == "uniform" else stats.loguniform(1e-3, 5).rvs((5000, 1), random_state=3)
    x = rng.poisson(theta).astype(float)
    nle = NLE(prior, random_state=3).fit(theta, x)
    k = np.arange(0.0, 100)[:, None]
    for rate in (0.05, 0.2, 1.0, 3.0):
        probability = np.exp(nle.log_likelihood(np.full_like(k, rate), k))
        assert probability.sum() == pytest.approx(1, abs=1e-3)
        assert np.abs(probability - stats.poisson(rate).pmf(k[:, 0])).sum() / 2 < 0.1
    posterior = nle.posterior([0.0])
    draws = posterior.sample(2000, random_state=0)
    # Given no count, uniform rates are exponential with mean 1 (cut at 5), as in the exact posterior: mean .966, to .15.
    assert posterior.reliability.ok
    if rates == "uniform":
        assert draws.mean() == pytest.approx(0.966, abs=0.15)
    assert nle.log_likelihood([[1.0]], [-1.0])[0] == -np.inf


def test_numbers_of_all_kinds_get_probabilities(tmp_path):
    """A yes or no, a signed difference of counts and a continuous column, all given the rate; exact log-likelihoods to .1 on average."""
    rng = np.random.default_rng(0)

    def simulate(n):
        rate = rng.uniform(1, 4, size=(n, 1))
        yes = rng.random((n, 1)) < 1 / (1 + np.exp(2 - rate))
        difference, y = rng.poisson(rate) - rng.poisson(2.0, (n, 1)), rate + 0.3 * rng.normal(size=(n, 1))
        exact = np.where(yes, -np.log1p(np.exp(2 - rate)), -np.log1p(np.exp(rate - 2)))
        exact = exact + stats.skellam(rate, 2.0).logpmf(difference) + stats.norm(rate, 0.3).logpdf(y)
        return rate, np.hstack([yes, y, difference]).astype(float), exact[:, 0]

    theta, x, _ = simulate(3000)
    nle = NLE(BoxUniform([1.0], [4.0]), ConditionalFlow(**SMALL), random_state=0).fit(theta, x)
    assert nle.history_.reliability.ok, nle.history_.reliability
    fresh, z, exact = simulate(4000)
    assert (exact - nle.log_likelihood(fresh, z)).mean() < 0.1
    nle.save(tmp_path / "nle")
    np.testing.assert_array_equal(NLE.load(tmp_path / "nle").log_likelihood(fresh, z), nle.log_likelihood(fresh, z))
    with pytest.raises(ValueError, match="such whole numbers as in the first simulations; got 2 and 0 more"):
        nle.fit(theta[:200], np.where(np.arange(200)[:, None] == 3, [[2.0, 0.0, 0.0]], x[:200]))


def test_numbers_that_hardly_repeat_are_dequantised_and_say_so():
    rng = np.random.default_rng(0)
    theta = rng.uniform(100, 3000, size=(2000, 1))
    x = rng.poisson(theta).astype(float)
    nle = NLE(BoxUniform([100.0], [3000.0]), ConditionalFlow(flow="nsf", layers=1, hidden=(32,)), random_state=0).fit(theta, x)
    assert any("dequantisation" in note for note in nle.history_.reliability.notes) and nle.history_.reliability.ok
    k = np.arange(500.0, 1500)[:, None]
    probability = np.exp(nle.log_likelihood(np.full_like(k, 1000.0), k))
    assert np.abs(probability - stats.poisson(1000).pmf(k[:, 0])).sum() / 2 < 0.15


def test_few_levels_are_a_reason_against_a_flow_without_probabilities():
    prior, theta, x = counts(300)
    with pytest.warns(UserWarning, match="gives them probabilities"):
        nle = NLE(prior, ConditionalFlow(flow="nsf-coupling", layers=1, hidden=(16,), max_epochs=2), random_state=0).fit(
            theta, np.c_[x, x > 15]
        )
    assert not nle.posterior([15.0, 0.0]).reliability.ok


def test_heavy_tails_and_wild_units():
    prior, theta, x = simulations(800)
    rng = np.random.default_rng(0)
    wild = np.c_[1e6 * x[:, :1], 1e-6 * x[:, 1:], np.exp(5 * x[:, :1]), rng.standard_cauchy(800)]
    nle = NLE(prior, ConditionalFlow(**SMALL, max_epochs=40), random_state=0).fit(theta, wild)
    assert nle.modelled_.support == ["real", "real", (0.0, np.inf), "heavy"]
    mean, variance = exact_posterior(x[:1])
    theta_0 = mean + np.sqrt(variance) * rng.normal(size=(200, 2))
    exact = stats.norm(mean, np.sqrt(variance)).logpdf(theta_0).sum(1)
    # A posterior of twice or two thirds the variance would be off by half of the exact scatter: 0.44; the fit is off by 0.2.
    assert np.std(nle.log_prob(theta_0, wild[0]) - exact) < 0.35


@pytest.mark.parametrize(
    ("x", "support", "scale"),
    [
        (lambda t, rng: t + 0.02 * rng.normal(size=len(t)), "real", ""),
        (lambda t, rng: t + 0.02 * rng.standard_cauchy(len(t)), "heavy", ""),
        (lambda t, rng: np.exp(3 * t + 0.1 * rng.normal(size=len(t))), (0.0, np.inf), ""),
        (lambda t, rng: -np.exp(3 * t + 0.1 * rng.normal(size=len(t))), (-np.inf, 0.0), ""),
        (lambda t, rng: rng.poisson(50 * (1.1 + t)).astype(float), "real", "root"),
        (lambda t, rng: np.round(np.exp(5 + 4 * t + 0.3 * rng.normal(size=len(t)))), "real", "log"),
    ],
)
def test_x_is_mapped_by_what_it_is_given_theta(x, support, scale):
    """Parameters of the whole prior and of a small part of it, as rounds have them: the marginal of x is a peak on a plateau, for which
    x needs no map."""
    rng = np.random.default_rng(0)
    theta = np.concatenate([rng.uniform(-1, 1, 400), rng.uniform(0.28, 0.32, 400)])
    modelled = Modelled().fit(x(theta, rng)[:, None], theta[:, None], probabilities=False)
    assert modelled.support == [support] and modelled.cells.scales == (scale,)


def test_names_come_back():
    prior, theta, x = simulations(300)
    frame, data = pd.DataFrame(theta, columns=["a", "b"]), pd.DataFrame(x, columns=["u", "v"])
    nle = NLE(prior, ConditionalFlow(**SMALL, max_epochs=2), random_state=0).fit(frame, data)
    assert nle.theta_names_ == ("a", "b") and nle.posterior([0.0, 0.0]).names == ("a", "b")
    np.testing.assert_array_equal(nle.log_likelihood(frame[["b", "a"]], data[["v", "u"]]), nle.log_likelihood(theta, x))


def test_files_bring_everything_back(tmp_path):
    prior, theta, x = counts(300)
    noise = np.random.default_rng(1).normal(size=(300, 1))
    data = np.c_[x, -np.exp(x / 10 + noise)]
    nle = NLE(prior, ConditionalFlow(**SMALL, max_epochs=2), random_state=0).fit(pd.DataFrame(theta, columns=["rate"]), data)
    nle.save(tmp_path / "nle.safetensors")
    again = NLE.load(tmp_path / "nle.safetensors")
    observed = [15.0, -5.0]
    np.testing.assert_array_equal(again.log_likelihood(theta, observed), nle.log_likelihood(theta, observed))
    assert again.theta_names_ == ("rate",) and again.posterior(observed).reliability.notes == nle.posterior(observed).reliability.notes
    again.fit(theta, data)
    with pytest.raises(ValueError, match="holds a NLE"):
        NPE.load(tmp_path / "nle.safetensors")
    with pytest.raises(ValueError, match="of 1 parameters; got one of 2"):
        NLE.load(tmp_path / "nle.safetensors", prior=BoxUniform([0.0, 0.0], [1.0, 1.0]))


BAD = {
    "missing": (lambda p, t, x: NLE(p).fit(t, np.where(x > 1, np.nan, x)), "NPE or NRE, which take them"),
    "outside": (lambda p, t, x: NLE(BoxUniform([-0.1] * 2, [0.1] * 2)).fit(t, x), "drawn from the prior"),
    "constant": (lambda p, t, x: NLE(p).fit(t, 0 * x), "constant"),
    "shape": (lambda p, t, x: _tiny(p, t, x).posterior([0.0]), r"Expected x_o of shape \(2,\)"),
    "trials": (lambda p, t, x: _tiny(p, t, x).posterior([0.0, 0.0], trials=True), r"Expected x_o of shape \(n_trials, 2\)"),
    "no trial": (lambda p, t, x: _tiny(p, t, x).posterior([[np.nan] * 2], trials=True), "at least one trial"),
    "rows": (lambda p, t, x: _tiny(p, t, x).log_likelihood(t[:3], x[:2]), "as many rows of theta as of x"),
    "refit": (lambda p, t, x: _tiny(p, t, x).fit(t, x[:, :1]), "Expected x of shape"),
}


def _tiny(prior, theta, x):
    return NLE(prior, ConditionalFlow(**SMALL, max_epochs=1), random_state=0).fit(theta, x)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(*simulations(200))


def test_other_estimators_are_refused():
    prior, theta, x = simulations(200)
    with pytest.raises(TypeError, match="ConditionalFlow or None; got NPE"):
        NLE(prior, NPE(prior)).fit(theta, x)


def test_an_observation_like_no_simulation_is_reported(gaussian):
    posterior = gaussian.posterior([50.0, 0.0])
    assert not posterior.reliability.ok and "outside the range" in posterior.reliability.reasons[0]
