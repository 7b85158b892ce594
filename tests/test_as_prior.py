"""Priors from other libraries, from functions, and what is found out about functions."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sbi_flows import evidence
from sbi_flows.distributions import BoxUniform, Product, as_prior, from_pair, from_scipy


def box(low, high):
    low, high = torch.tensor(low).double(), torch.tensor(high).double()

    def sample(n, generator):
        return low + (high - low) * torch.rand(n, len(low), generator=generator, dtype=torch.float64)

    def log_prob(x):
        inside = ((x >= low) & (x <= high)).all(-1)
        return torch.where(inside, -torch.log(high - low).sum(), -math.inf)

    return sample, log_prob


PRIORS = {
    "ours": (BoxUniform([0.0, 0.0], [1.0, 1.0]), [(0, 1), (0, 1)]),
    "scipy": (scipy.stats.norm(1, 2), ["real"]),
    "scipy list": ([scipy.stats.uniform(2, 3), scipy.stats.gamma(2)], [(2, 5), (0, math.inf)]),
    "scipy multivariate": (scipy.stats.multivariate_normal([0, 1]), ["real", "real"]),
    "torch": (torch.distributions.Uniform(torch.zeros(2), torch.ones(2)), [(0, 1), (0, 1)]),
    "mixed list": ([torch.distributions.Exponential(1.0), scipy.stats.norm()], [(0, math.inf), "real"]),
    "functions": (box([-1.0, 3.0], [1.0, 9.0]), [(-1, 1), (3, 9)]),
}


@pytest.mark.parametrize("name", PRIORS)
def test_supports_are_read_or_found(name):
    given, support = PRIORS[name]
    prior = as_prior(given)
    for found, expected in zip(prior.support, support, strict=True):
        assert found == expected if isinstance(expected, str) else found == pytest.approx(expected)
    draws = prior.sample(50, torch.Generator().manual_seed(0))
    assert torch.isfinite(prior.log_prob(draws)).all()


def test_names_come_from_a_dict():
    assert as_prior({"a": scipy.stats.norm(), "b": torch.distributions.Gamma(2.0, 1.0)}).names == ("a", "b")


def test_an_end_found_in_functions_is_noted():
    assert "ends column 0" in as_prior(box([0.0], [1.0])).notes[0]


def test_underflow_is_not_taken_for_an_end():
    """exp(-x^2 / 2) is zero in float64 beyond 38, where a normal has no edge."""

    def log_prob(x):
        return torch.log(torch.exp(-0.5 * x[:, 0] ** 2) / math.sqrt(2 * math.pi))

    prior = as_prior((lambda n, generator: torch.randn(n, 1, generator=generator, dtype=torch.float64), log_prob))
    assert prior.support == ["real"]


def test_a_support_that_is_no_box_is_told():
    sample, log_prob = box([0.0, 0.0], [1.0, 1.0])

    def triangle(x):
        return torch.where(x[:, 0] < x[:, 1], log_prob(x) + math.log(2), -math.inf)

    with pytest.warns(UserWarning, match="support is no box"):
        prior = as_prior((lambda n, generator: sample(n, generator).sort(-1).values, triangle))
    assert prior.support[0] == pytest.approx((0, math.inf)) and not prior.box


def test_draws_that_stop_where_the_density_goes_on_are_told():
    sample, _ = box([0.0], [1.0])
    with pytest.warns(UserWarning, match="posteriors may leak over the edge. Declare it"):
        as_prior((sample, lambda x: torch.zeros(len(x))))


def test_functions_that_contradict_each_other():
    sample, _ = box([0.0], [1.0])
    with pytest.raises(ValueError, match=r"draws lie where its density is; .* of 4000 draws"):
        as_prior((sample, box([0.5], [1.0])[1]))


def test_heavy_tails_are_declared():
    """A Cauchy's and a Student t's of 1.5 degrees, but not those of a normal or of Laplace's distribution."""
    prior = as_prior([scipy.stats.cauchy(5, 2), scipy.stats.norm(), scipy.stats.laplace(), torch.distributions.StudentT(1.5)])
    assert prior.support == ["heavy", "real", "real", "heavy"] and "heavy tails in column" in prior.notes[-1]


def test_adapters_are_looked_at_as_what_they_adapt():
    """Alone or in a product, and without a change to what the user holds; a support that is declared is believed."""
    wrapped = from_scipy(scipy.stats.cauchy(), names=["a"])
    assert as_prior(wrapped).support == ["heavy"] and wrapped.support == ["real"]
    product = as_prior(Product([BoxUniform([0.0], [1.0], names=["b"]), wrapped]))
    assert product.support == [(0, 1), "heavy"] and product.names == ("b", "a")
    assert as_prior(product) is product

    sample, log_prob = box([-1.0], [1.0])
    found = as_prior(from_pair(sample, log_prob, 1))
    assert found.support[0] == pytest.approx((-1, 1)) and "ends column 0" in found.notes[0]
    with pytest.warns(UserWarning, match="posteriors may leak over the edge"):
        as_prior(from_pair(sample, lambda x: torch.zeros(len(x)), 1))
    declared = from_pair(sample, log_prob, 1, support=(-2, 2))
    assert as_prior(declared) is declared


@pytest.mark.parametrize(
    "angle",
    [
        torch.distributions.VonMises(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 30.0])),
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(2)), torch.distributions.VonMises(torch.tensor([0.0, 2.0]), torch.ones(2))
        ),
        scipy.stats.vonmises(0.1),
    ],
    ids=["torch", "mixture", "scipy"],
)
def test_angles_are_circles(angle):
    """On the line the density would repeat for ever, and a flow put mass beyond pi."""
    prior = as_prior(angle)
    assert prior.support == [("circular", -math.pi, math.pi)] * prior.features and "repeats in column 0" in prior.notes[0]


def test_angles_of_functions_start_where_their_draws_do():
    von_mises = scipy.stats.vonmises(1.0, loc=math.pi)
    prior = as_prior((lambda n: von_mises.rvs(n, random_state=0)[:, None] % (2 * math.pi), lambda x: von_mises.logpdf(x[:, 0])))
    assert prior.support == [("circular", 0.0, 2 * math.pi)]
    narrow = as_prior([scipy.stats.norm(0, 0.01), scipy.stats.laplace(1, 0.1)])
    assert narrow.support == ["real", "real"]


@pytest.mark.parametrize("weights", [scipy.stats.dirichlet([1.0, 2.0, 3.0]), torch.distributions.Dirichlet(torch.ones(3))])
def test_draws_on_a_plane_have_no_density(weights):
    with pytest.raises(ValueError, match=r"density over its 3 columns; its draws lie on a plane, as those of a Dirichlet"):
        as_prior(weights)


def test_neither_correlation_nor_outliers_make_a_plane():
    close = scipy.stats.multivariate_normal([0, 0], [[1, 0.99999], [0.99999, 1]])
    assert as_prior(close).support == ["real", "real"]
    assert as_prior(scipy.stats.multivariate_t([0, 0], df=0.5)).support == ["heavy", "heavy"]


def test_what_is_no_prior():
    with pytest.raises(TypeError, match=r"Expected a prior; got numbers"):
        as_prior(3)
    with pytest.raises(ValueError, match=r"sample\(2\) of shape \(2, d\)"):
        as_prior((lambda n: np.zeros((n, 2, 2)), lambda x: x))


def test_evidence_takes_priors_of_scipy():
    """Posterior of one datum 0 of unit variance under N(0, 1): N(0, 1/2), ln Z = -ln(4 pi) / 2; four standard errors."""
    draws = np.random.default_rng(0).normal(scale=0.5**0.5, size=(3000, 1))
    likelihood, prior = scipy.stats.norm(0, 1), scipy.stats.norm(0, 1)
    found = evidence(draws, lambda x: likelihood.logpdf(x[:, 0]) + prior.logpdf(x[:, 0]), prior=[prior], random_state=0)
    assert found.reliability.ok and abs(found.log_z + 0.5 * math.log(4 * math.pi)) < 4 * found.log_z_err + 1e-9
