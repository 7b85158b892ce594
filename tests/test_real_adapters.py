"""Targets from cobaya and bilby themselves, where they are installed: what doubles of theirs cannot show."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sbi_flows import targets
from sbi_flows.samplers import RandomWalk, run_chains

pytestmark = pytest.mark.filterwarnings("default")  # theirs


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- cobaya ---------------------------------------------------------------------------------------------------------------------


def test_cobaya_angles_are_circular():
    pytest.importorskip("cobaya")
    target = targets.from_cobaya({
        "likelihood": {"g": "lambda a, b: 3 * __import__('numpy').cos(a) - b**2"},
        "params": {"a": {"prior": [0, 2 * math.pi], "periodic": True}, "b": {"prior": {"dist": "norm", "loc": 0, "scale": 1}}},
    })
    assert target.names == ("a", "b") and target.support == [("circular", 0.0, 2 * math.pi), "real"]
    exact = 3 * math.cos(0.5) - 1 - math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi) - 0.5
    assert float(target.log_prob(rows([0.5, 1.0]))) == pytest.approx(exact)
    start = target.prior.sample(8, torch.Generator().manual_seed(0))
    chains = run_chains(RandomWalk(), target, start, n_steps=300, n_warmup=100, random_state=0)
    # The mode lies across the ends, and walks step over them.
    assert np.any(np.abs(np.diff(chains.samples[..., 0], axis=1)) > math.pi)


# --- bilby ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prior():
    return pytest.importorskip("bilby.core.prior")


FLAT = SimpleNamespace(log_likelihood=lambda parameters: 0.0)
MEANS, COVARIANCE = [1.0, -2.0], [[1.0, 0.6], [0.6, 2.0]]


def gaussian(prior, names=("b", "a"), bounds=None):
    return prior.MultivariateGaussianDist(list(names), mus=[MEANS], covs=[COVARIANCE], bounds=bounds)


@pytest.mark.parametrize("kind", ["PriorDict", "ConditionalPriorDict"])
def test_bilby_joint_priors_are_drawn_and_weighed(prior, kind):
    mvn = gaussian(prior)  # its own order of the parameters is not that of the priors
    a, b = (prior.MultivariateGaussian(mvn, name) for name in "ab")
    priors = getattr(prior, kind)({"a": a, "c": prior.Uniform(0, 4), "b": b})
    priors["fixed"] = 3.0  # a number put in later
    target = targets.from_bilby(FLAT, priors)
    assert target.names == ("a", "c", "b") and target.support == ["real", (0.0, 4.0), "real"]
    x = rows([-1.0, 2.0, 0.5])
    exact = torch.distributions.MultivariateNormal(rows(*MEANS), rows(*COVARIANCE)).log_prob(rows([0.5, -1.0])) - math.log(4)
    torch.testing.assert_close(target.log_prob(x), exact, rtol=0, atol=1e-9)
    draws = target.prior.sample(2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws, target.prior.sample(2000, torch.Generator().manual_seed(0)), rtol=0, atol=0)
    whitened = torch.linalg.solve(torch.linalg.cholesky(rows(*COVARIANCE)), (draws[:, [2, 0]] - rows(*MEANS)).T)
    # Errors: .022 of a mean and of a correlation, .032 of a square; 4.5 of each, chance 5e-5 together.
    assert float(whitened.mean(1).abs().max()) < 0.1
    assert float((torch.cov(whitened) - torch.eye(2)).abs().max()) < 0.15 and abs(float(torch.cov(whitened)[0, 1])) < 0.1
    assert float(draws[:, 1].min()) >= 0 and float(draws[:, 1].max()) > 3.9


def test_bilby_mixtures_are_drawn_by_our_generator(prior):
    mixed = prior.MultivariateGaussianDist(["a", "b"], nmodes=2, mus=[[-5, 0], [5, 0]], covs=[np.eye(2), np.eye(2)], weights=[1, 3])
    target = targets.from_bilby(FLAT, prior.PriorDict({name: prior.MultivariateGaussian(mixed, name) for name in "ab"}))
    draws = target.prior.sample(2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws, target.prior.sample(2000, torch.Generator().manual_seed(0)), rtol=0, atol=0)
    assert abs(float((draws[:, 0] > 0).double().mean()) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 2000)  # chance 6e-5


def test_bilby_priors_without_a_density_are_named(prior):
    def refused(match, **entries):
        with pytest.raises(ValueError, match=match):
            targets.from_bilby(FLAT, prior.PriorDict({"x": prior.Uniform(0, 1), **entries}))

    refused("prior of 'b'; got the text 'x'", b="x")
    refused(r"'c' is discrete \(Categorical\)", c=prior.Categorical(3))
    refused("'s' has a spike", s=prior.SlabSpikePrior(slab=prior.Uniform(0, 1), spike_location=0, spike_height=0.3))
    whole, cut = gaussian(prior), gaussian(prior, bounds=[(-1, 1), (-np.inf, np.inf)])
    refused("not that of 'a' in these priors", b=prior.MultivariateGaussian(whole, "b"), a=prior.Uniform(0, 1))
    refused("cut off in 'b'", **{name: prior.MultivariateGaussian(cut, name) for name in "ab"})
    other = prior.JointPrior(prior.BaseJointPriorDist(["a"]), "a")
    refused("is no Gaussian one", a=other)
    mvn = gaussian(prior)
    tied = prior.ConditionalUniform(lambda reference_params, a: {"minimum": 0, "maximum": 1 + a**2}, minimum=0, maximum=1)
    entries = {"a": prior.MultivariateGaussian(mvn, "a"), "b": prior.MultivariateGaussian(mvn, "b"), "t": tied}
    with pytest.raises(ValueError, match="prior of 't' depends on parameters of a joint prior"):
        targets.from_bilby(FLAT, prior.ConditionalPriorDict(entries))
