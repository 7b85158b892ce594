"""NRE against a conjugate problem, data that have no density, and bad input."""

import numpy as np
import pytest
from scipy import stats
from torch import nn

from sbi_flows import NRE, ConditionalFlow, RatioClassifier
from sbi_flows.distributions import BoxUniform, Choice, MultivariateNormal, Product
from tests.inference.conjugate import exact_posterior, observed_trials, simulations

SMALL = {"hidden": (32, 32), "n_contrasts": 4}


@pytest.fixture(scope="module")
def gaussian():
    prior, theta, x = simulations(3000)
    return NRE(prior, RatioClassifier(**SMALL), random_state=0).fit(theta, x)


@pytest.mark.parametrize("t", [1, 4])
def test_posterior_of_trials(gaussian, t):
    """A network that knows nothing of normals: a third of a standard deviation of the mean and 40 % of the variance are allowed."""
    trials = observed_trials(t)
    mean, variance = exact_posterior(trials)
    posterior = gaussian.posterior(trials, trials=True)
    draws = posterior.sample(2000, random_state=0)
    assert posterior.reliability.ok, posterior.reliability
    assert (np.abs(draws.mean(0) - mean) < np.sqrt(variance) / 3).all()
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.4)


def test_ratios_of_trials_add_and_log_prob_adds_the_prior(gaussian):
    trials, theta = observed_trials(3), simulations(5, seed=2)[1]
    each = np.array([gaussian.log_ratio(theta, trial) for trial in trials])
    np.testing.assert_allclose(gaussian.log_ratio(theta, trials, trials=True), each.sum(0), rtol=1e-5)
    log_prior = stats.norm().logpdf(theta).sum(1)
    np.testing.assert_allclose(gaussian.log_prob(theta, trials[0]), log_prior + each[0], rtol=1e-5)


def test_balanced_posteriors_are_wider():
    """From the same simulations: the contrastive variance is near the exact 0.2 (chains: 10 %), the balanced one above both."""
    prior, theta, x = simulations(1000)
    variance = {}
    for loss in ("contrastive", "balanced"):
        nre = NRE(prior, RatioClassifier(**SMALL), loss=loss, random_state=0).fit(theta, x)
        assert nre.estimator_.loss == loss
        variance[loss] = nre.posterior([0.5, 0.0]).sample(2000, random_state=0).var(0)
    np.testing.assert_allclose(variance["contrastive"], 0.2, rtol=0.4)
    assert (variance["balanced"] > 1.2 * variance["contrastive"]).all() and (variance["balanced"] > 0.2).all()


def test_discrete_data_and_missing_values():
    """Poisson counts, a tenth of them missing, beside a bit: the posterior of the rate is near the exact one."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(5, 30, size=(3000, 1))
    count = rng.poisson(theta).astype(float)
    x = np.c_[np.where(rng.random((3000, 1)) < 0.1, np.nan, count), rng.integers(0, 2, size=3000)]
    nre = NRE(BoxUniform([5.0], [30.0], names=["rate"]), RatioClassifier(**SMALL), random_state=0).fit(theta, x)
    grid = np.linspace(5, 30, 500)
    exact = stats.poisson(grid).pmf(15) / stats.poisson(grid).pmf(15).sum()
    mean = exact @ grid
    width = np.sqrt(exact @ (grid - mean) ** 2)
    posterior = nre.posterior([15.0, 1.0])
    draws = posterior.sample(2000, random_state=0)
    assert posterior.names == ("rate",) and (draws > 5).all() and (draws < 30).all()
    assert abs(draws.mean() - mean) < 0.4 * width and abs(draws.std() / width - 1) < 0.3
    blind = nre.posterior([np.nan, 1.0]).sample(2000, random_state=0)
    assert blind.std() > 0.8 * 25 / np.sqrt(12)


def test_a_second_fit_goes_on():
    prior, theta, x = simulations(500)
    nre = NRE(prior, RatioClassifier(**SMALL, max_epochs=3), random_state=0).fit(theta[:250], x[:250])
    before = nre.log_ratio(theta[:5], x[:5])
    assert (nre.fit(theta[250:], x[250:]).log_ratio(theta[:5], x[:5]) != before).any() and nre.n_simulations_ == 500


@pytest.mark.parametrize("n_members", [1, 2])
def test_files_bring_everything_back(tmp_path, n_members):
    prior, theta, x = simulations(300)
    classifier = RatioClassifier(**SMALL, max_epochs=2, n_members=n_members, dtype="float64")
    nre = NRE(prior, classifier, random_state=0).fit(theta, np.where(x > 2, np.nan, x))
    nre.save(tmp_path / "nre.safetensors")
    again = NRE.load(tmp_path / "nre.safetensors")
    observed = [np.nan, 0.3]
    np.testing.assert_array_equal(again.log_ratio(theta, observed), nre.log_ratio(theta, observed))
    assert again.history_.reliability == nre.history_.reliability and again.n_simulations_ == 300
    again.fit(theta, x)
    nre.estimator_.save(tmp_path / "ratio.safetensors")
    alone = RatioClassifier.load(tmp_path / "ratio.safetensors")
    rows = nre.observations_.transform(x)
    np.testing.assert_array_equal(alone.log_ratio(theta, rows), nre.estimator_.log_ratio(theta, rows))
    with pytest.raises(ValueError, match="without embedding="):
        RatioClassifier.load(tmp_path / "ratio.safetensors", embedding=nn.Linear(2, 2))


def test_exchangeable_trials_get_an_embedding(tmp_path):
    """x of shape (trials, 1): the set network is chosen by shape, comes back from a file, and does not mind the order."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(300, 1))
    x = theta[:, None] + rng.normal(size=(300, 6, 1))
    prior = MultivariateNormal([0.0], [[1.0]])
    nre = NRE(prior, RatioClassifier(**SMALL, max_epochs=2), embedding="set", random_state=0).fit(theta, x)
    here = nre.log_ratio(theta, x[0])
    np.testing.assert_allclose(nre.log_ratio(theta, x[0][::-1]), here, atol=1e-5)
    nre.save(tmp_path / "nre.safetensors")
    np.testing.assert_array_equal(NRE.load(tmp_path / "nre.safetensors").log_ratio(theta, x[0]), here)


BAD = {
    "loss": (lambda p, t, x: NRE(p, loss="nre").fit(t, x), ValueError, "'contrastive', 'balanced'"),
    "support": (lambda p, t, x: NRE(p, RatioClassifier(support=(0, 1))).fit(t, x), ValueError, "which the prior decides"),
    "kind": (lambda p, t, x: NRE(p, ConditionalFlow()).fit(t, x), TypeError, "RatioClassifier or None; got ConditionalFlow"),
    "discrete": (
        lambda p, t, x: NRE(Product([Choice(3), BoxUniform(-9.0, 9.0)])).fit(t, x),
        ValueError,
        "1 discrete ones, among which the chains of NRE cannot move",
    ),
    "shape": (lambda p, t, x: NRE(p, RatioClassifier(**SMALL, max_epochs=1)).fit(t, x).posterior([1.0]), ValueError, "Expected x_o"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(*simulations(200))


def test_further_simulations_with_a_value_missing_for_the_first_time_are_left_out_and_counted():
    prior, theta, x = simulations(300)
    nre = NRE(prior, RatioClassifier(hidden=(8,), max_epochs=10), random_state=0).fit(theta, x)
    more = simulations(40, seed=3)
    gappy = more[2].copy()
    gappy[:5, 0] = np.nan
    nre.fit(more[1], gappy)
    verdict = nre.history_.reliability
    assert nre.n_simulations_ == 335 and any("5 of 340" in said for said in (*verdict.reasons, *verdict.notes))


def test_a_ratio_that_does_not_integrate_to_one_is_told(monkeypatch):
    """Over the prior: within .3 of one for a good fit (its own error .02 to .15), twice that where every ratio is."""
    prior, theta, x = simulations(2000)
    nre = NRE(prior, RatioClassifier(hidden=(32, 32), max_epochs=30), random_state=0).fit(theta, x)
    good = nre.posterior(np.zeros((3, 2))).reliability
    assert good.ok and any("the ratio at x_o has the mean" in note and "where 1 would be right" in note for note in good.notes)
    honest = NRE._pairs
    monkeypatch.setattr(NRE, "_pairs", lambda self, theta, rows: honest(self, theta, rows) + np.log(2))
    wrong = nre.posterior([0.0, 0.0])
    assert "over the prior, where 1 would be right: the posterior's shape may be as wrong" in wrong.reliability.reasons[0]
    wrong.sample(50, random_state=0)
    assert not wrong.reliability.ok and not nre.posterior(np.zeros((3, 2)))[1].reliability.ok
    assert nre.posterior(np.zeros((3, 2)), trials=True).reliability.ok  # a product of ratios has no such mean
