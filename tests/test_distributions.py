"""Priors and bases: against scipy, supports, seeds, messages."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import (
    BoxUniform,
    Columns,
    MultivariateNormal,
    NormalMixture,
    Product,
    StandardNormal,
    StudentT,
    Torus,
    from_pair,
    from_scipy,
    from_torch,
)

D = torch.distributions
COV = [[2.0, 0.5], [0.5, 1.0]]

DISTRIBUTIONS = {
    "box": lambda: BoxUniform([0, -1], [2, 3], names=["a", "b"]),
    "normal": lambda: MultivariateNormal([0.5, -1], COV),
    "product": lambda: Product([BoxUniform(0, 2), MultivariateNormal([0.0], [[4.0]])]),
    "scipy": lambda: from_scipy([scipy.stats.gamma(2), scipy.stats.norm(0, 3)]),
    "scipy-multivariate": lambda: from_scipy(scipy.stats.multivariate_normal([0, 1], COV)),
    "torch": lambda: from_torch(D.Gamma(torch.tensor([2.0, 3.0]).double(), torch.tensor([1.0, 2.0]).double())),
    "pair": lambda: from_pair(
        lambda n, g: torch.rand(n, 2, generator=g, dtype=torch.float64), lambda x: 0.0 * x.sum(-1), 2, support=(0, 1)
    ),
    "standard-normal": lambda: StandardNormal(2),
    "student-t": lambda: StudentT(2, df=5.0),
    "mixture": lambda: NormalMixture(2, components=3, generator=torch.Generator().manual_seed(0)),
    "torus": lambda: Torus(2),
    "columns": lambda: Columns([StandardNormal(1), Torus(1)], [[1], [0]]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_are_seeded_and_inside(name):
    p = DISTRIBUTIONS[name]()
    a, b = (p.sample(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert a.shape == (50, 2) and torch.equal(a, b)
    assert torch.isfinite(p.log_prob(a)).all() and p.log_prob(a).shape == (50,)
    assert len(p.support) == 2


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_density_integrates_to_one_and_agrees_with_draws(name):
    """Importance sampling by a wide t: the mean weight is one within six standard errors (false alarm 2e-9 each)."""
    p = DISTRIBUTIONS[name]().double()
    rng = np.random.default_rng(0)
    q = scipy.stats.t(3, loc=0.5, scale=2)
    x = q.rvs((200_000, 2), random_state=rng)
    if name in ("torus", "columns"):
        x = np.where(np.array([True, name == "torus"]), rng.uniform(-math.pi, math.pi, x.shape), x)
    log_q = np.where(
        np.array([name in ("torus", "columns"), name == "torus"]), -math.log(2 * math.pi), q.logpdf(x)
    ).sum(-1)
    weights = np.exp(p.log_prob(torch.tensor(x)).detach().numpy() - log_q)
    assert abs(weights.mean() - 1) < 6 * weights.std() / math.sqrt(len(x)) + 1e-12
    draws = p.sample(100_000, torch.Generator().manual_seed(0)).detach().numpy()
    first = np.average(np.tanh(x), axis=0, weights=weights)
    np.testing.assert_allclose(np.tanh(draws).mean(0), first, atol=6 * (1 / math.sqrt(1e5) + weights.std() / math.sqrt(2e5)))


def test_priors_match_scipy():
    x = np.random.default_rng(0).normal(size=(20, 2))
    ours = MultivariateNormal([0.5, -1], COV).log_prob(torch.tensor(x))
    np.testing.assert_allclose(ours, scipy.stats.multivariate_normal([0.5, -1], COV).logpdf(x), rtol=1e-12)
    np.testing.assert_allclose(StudentT(2, 5.0).log_prob(torch.tensor(x)), scipy.stats.t(5).logpdf(x).sum(-1), rtol=1e-12)
    assert BoxUniform(0, 4).log_prob(torch.tensor([[1.0], [-1.0], [5.0]])).tolist() == [-math.log(4), -math.inf, -math.inf]


def test_float32_in_float64_out():
    assert BoxUniform([0], [1]).log_prob(torch.rand(3, 1)).dtype == torch.float64


def test_nan_stays_nan():
    assert torch.isnan(BoxUniform([0, 0], [1, 1]).log_prob(torch.tensor([[math.nan, 0.5]]))).all()


@pytest.mark.parametrize("name", ["box", "normal", "product", "scipy", "torch"])
def test_gradients(name):
    p = DISTRIBUTIONS[name]()
    x = p.sample(20, torch.Generator().manual_seed(1)).requires_grad_()
    (grad,) = torch.autograd.grad(p.log_prob(x).sum(), x)
    step = 1e-6 * torch.ones_like(x) * torch.tensor([1.0, 0.0])
    difference = (p.log_prob(x + step) - p.log_prob(x - step)) / 2e-6
    torch.testing.assert_close(grad[:, 0], difference.detach(), rtol=1e-5, atol=1e-6)


def test_outside_is_minus_infinity_with_finite_gradient():
    p = from_torch(D.Gamma(torch.tensor([2.0]).double(), torch.tensor([1.0]).double()))
    x = torch.tensor([[-1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    value = p.log_prob(x)
    assert value[0] == -math.inf and torch.isfinite(value[1])
    assert torch.isfinite(torch.autograd.grad(value[1], x)[0]).all()


def test_supports():
    assert DISTRIBUTIONS["scipy"]().support == [(0.0, math.inf), "real"]
    assert DISTRIBUTIONS["torch"]().support == [(0.0, math.inf)] * 2
    assert Torus(1).support == [("circular", -math.pi, math.pi)]
    assert DISTRIBUTIONS["product"]().support == [(0.0, 2.0), "real"]
    parsed = parse_support({"b": (0, math.inf)}, 2, ["a", "b"])
    assert [c.kind for c in parsed] == ["real", "lower"]
    assert parse_support([c.entry for c in parsed], 2) == parsed
    assert [c.kind for c in parse_support(("circular", 0, 1), 3)] == ["circular"] * 3
    for array in (np.array([[0, 1], [0, 1.0]]), [np.array([0, 1]), np.array([0, 1])], np.array([0, 1]), (np.int64(0), np.float32(1))):
        assert parse_support(array, 2) == parse_support((0.0, 1.0), 2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: BoxUniform([0, 1], [1, 0]), "low < high"),
        (lambda: BoxUniform([0], [1]).log_prob(torch.zeros(3)), r"shape \(n, 1\)"),
        (lambda: BoxUniform([0], [1], names=["a", "b"]), "1 names"),
        (lambda: MultivariateNormal([0, 0], [[1, 2], [2, 1]]), "positive definite"),
        (lambda: MultivariateNormal([0, 0], [[1, 2], [0, 1]]), "symmetric"),
        (lambda: MultivariateNormal([0, 0], np.eye(3)), r"shape \(2, 2\)"),
        (lambda: StudentT(1, df=0), "df > 0"),
        (lambda: parse_support("reel", 1), "Expected a support"),
        (lambda: parse_support([(1, 0)], 1), "low < high"),
        (lambda: parse_support(["real"], 2), "each of the 2"),
        (lambda: parse_support({"z": "real"}, 1, ["a"]), "not there: z"),
        (lambda: parse_support(("circular", 0, math.inf), 1), "finite ends"),
        (lambda: from_pair(lambda n, g: np.zeros(n), lambda x: x, 1).sample(3), r"\(3, 1\)"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()
