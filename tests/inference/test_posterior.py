"""Everything a posterior does that follows from its draws and density, on a posterior that is exact."""

import numpy as np
import pytest
import torch

from sbi_flows import Reliability, WeightedSamples
from sbi_flows._random import torch_generator
from sbi_flows.distributions import MultivariateNormal
from sbi_flows.inference import Posterior
from sbi_flows.plots import corner

COV = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 4.0]])
MEAN = np.array([1.0, 2.0, 3.0])


class Exact(Posterior):
    """A normal posterior under a wide normal prior."""

    def __init__(self, widened=1.0):
        prior = MultivariateNormal(np.zeros(3), 100 * np.eye(3), names=["a", "b", "c"])
        super().__init__(prior, ["a", "b", "c"], np.zeros(2), Reliability(True))
        self._normal = MultivariateNormal(MEAN, widened * COV)

    def sample(self, n_samples=1, random_state=None):
        return self._normal.sample(n_samples, torch_generator(random_state)).numpy()

    def log_density(self, theta):
        return self._normal.log_prob(theta)


def log_likelihood(theta):
    """Such that likelihood times prior is exp(0.5) times the exact normal."""
    exact, prior = MultivariateNormal(MEAN, COV), MultivariateNormal(np.zeros(3), 100 * np.eye(3))
    return (0.5 + exact.log_prob(torch.from_numpy(theta)) - prior.log_prob(torch.from_numpy(theta))).numpy()


def test_map():
    np.testing.assert_allclose(Exact().map(random_state=1), MEAN, atol=1e-3)


def test_reweighting_gives_the_evidence_and_a_verdict():
    """ln Z = 0.5 to four standard errors. A proposal of w times the covariance has weights of Pareto shape 1 - w, .9 here, which 20 000
    draws tell to .09: below .7 in 0.5 % of seeds, and the seed is fixed."""
    weighted = Exact(widened=1.5).reweight(log_likelihood, 5000, random_state=1)
    assert abs(weighted.log_z - 0.5) < 4 * weighted.log_z_err and weighted.reliability.ok
    assert weighted.names == ("a", "b", "c") and "ok" in repr(weighted)
    doubtful = Exact(widened=1.5)
    doubtful.remark(["its training failed"], ["of old"])
    for each in (weighted := doubtful.reweight(log_likelihood, 5000, random_state=1), weighted.smoothed()):
        assert each.reliability.reasons == ("its training failed",) and each.reliability.notes == ("of old",)
    narrow = Exact(widened=0.1).reweight(log_likelihood, 20_000, random_state=1)
    assert abs(narrow.pareto_k - 0.9) < 4 * 0.09 and not narrow.reliability.ok
    few = WeightedSamples(narrow.samples[:100], np.log(np.arange(1, 101) ** -0.9), narrow.names)
    assert 0.5 < few.pareto_k < 0.7 and "> 0.5: a few draws carry the weight" in str(few.reliability)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda theta: 0.0, r"log_likelihood\(theta\) of shape \(100,\)"),
        (lambda theta: np.full(len(theta), np.nan), "below .inf and not NaN; got 100 such values"),
    ],
)
def test_bad_likelihoods(bad, message):
    with pytest.raises(ValueError, match=message):
        Exact().reweight(bad, 100, random_state=0)


def test_marginal():
    """p(a, c) = N((1, 3), diag(1, 4)); the fitted density is good to a tenth of a nat at the centre."""
    part = Exact().marginal(["c", "a"])
    np.testing.assert_array_equal(part.sample(10, 1), Exact().sample(10, 1)[:, [2, 0]])
    assert part.names == ("c", "a")
    assert part.log_prob(np.array([[3.0, 1.0]]))[0] == pytest.approx(-np.log(2 * np.pi * 2), abs=0.1)
    with pytest.raises(ValueError, match="prior density of some of its parameters is not known"):
        part.reweight(lambda theta: np.zeros(len(theta)), 10, random_state=0)


def test_conditional():
    """a given b = 3: N(1.8, 0.36), c stays N(3, 4); the density of b = 3 itself is N(2, 1). Four standard errors of 4000 draws."""
    part = Exact().conditional({"b": 3.0}, random_state=0)
    draws = part.sample(4000, random_state=0)
    error = 4 * np.array([0.6, 2.0]) / np.sqrt(4000)
    assert part.reliability.ok and (np.abs(draws.mean(0) - [1.8, 3.0]) < error).all()
    np.testing.assert_allclose(draws.std(0), [0.6, 2.0], rtol=4 / np.sqrt(8000))
    assert abs(part.log_density_of_fixed - (-0.5 * np.log(2 * np.pi) - 0.5)) < 4 * part.log_density_of_fixed_err + 1e-3
    exact = MultivariateNormal([1.8, 3.0], np.diag([0.36, 4.0]))
    points = np.array([[1.8, 3.0], [1.0, 5.0]])
    np.testing.assert_allclose(part.log_prob(points), exact.log_prob(torch.from_numpy(points)).numpy(), atol=0.05)


def test_corner_takes_a_posterior():
    assert corner(Exact().marginal(["c", "a"])).axes[2].get_xlabel() == "c"


def test_unknown_and_missing_names():
    with pytest.raises(ValueError, match="some of the parameters a, b, c, each once; got z"):
        Exact().marginal("z")
    with pytest.raises(ValueError, match="at least one free parameter"):
        Exact().conditional({"a": 0, "b": 0, "c": 0})


def test_tables_and_arviz():
    posterior = Exact()
    assert list(posterior.to_dataframe(20, 0).columns) == ["a", "b", "c"]
    data = posterior.to_arviz(50, 0)
    assert data["posterior"]["b"].shape == (1, 50)
    np.testing.assert_allclose(data["sample_stats"]["lp"].to_numpy()[0], posterior.log_prob(posterior.sample(50, 0)))
