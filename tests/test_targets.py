"""Targets: densities keep their mass through every map, gradients are right, and wrong functions are told what is wrong."""

import math

import numpy as np
import pytest
import torch

from sbi_flows import targets
from sbi_flows.distributions import BoxUniform, MultivariateNormal, from_pair
from sbi_flows.flows import nsf
from sbi_flows.samplers import RandomWalk, run_chains
from tests.properties import midpoints, randomise

INF = math.inf


def gaussian(x):
    return -0.5 * x.square().sum(-1)


def box_posterior(log_likelihood=gaussian):
    return targets.posterior(log_likelihood, BoxUniform([-2.0, -2.0], [2.0, 2.0], names=["a", "b"]))


def test_posterior_is_likelihood_times_prior():
    x = torch.tensor([[0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)
    target = box_posterior()
    torch.testing.assert_close(target.log_prob(x), torch.tensor([-0.625 - 2 * math.log(4), -INF], dtype=torch.float64))
    assert target.names == ("a", "b") and target.support == [(-2.0, 2.0), (-2.0, 2.0)]
    torch.testing.assert_close(target.log_likelihood(x[:1]), gaussian(x[:1]))


def test_likelihood_is_never_asked_outside_the_prior():
    def picky(x):
        assert bool((x.abs() <= 2).all())
        return gaussian(x)

    outside = torch.full((3, 2), 5.0)
    target = box_posterior(picky)
    assert bool((target.log_prob(outside) == -INF).all())
    value, gradient = target.log_prob_and_grad(outside)
    assert bool((value == -INF).all()) and bool((gradient == 0).all())


def test_gradient_is_that_of_the_density_and_zero_outside():
    prior = MultivariateNormal([0.0, 1.0], [[2.0, 0.3], [0.3, 1.0]])
    target = targets.posterior(lambda x: torch.sin(x).prod(-1), prior)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, gradient = target.log_prob_and_grad(x)
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = 1e-6
        expected = (target.log_prob(x + step) - target.log_prob(x - step)) / 2e-6
        torch.testing.assert_close(gradient[:, j], expected, rtol=0, atol=1e-8)
    mixed = torch.tensor([[0.5, 0.5], [9.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(box_posterior().log_prob_and_grad(mixed)[1], torch.tensor([[-0.5, -0.5], [0.0, 0.0]]).double())


@pytest.mark.parametrize("vectorized", [True, False])
def test_numpy_functions_with_their_gradient(vectorized):
    if vectorized:
        function = targets.from_numpy(lambda x: -0.5 * (x**2).sum(-1), lambda x: -x)
    else:
        function = targets.from_numpy(lambda x: -0.5 * x @ x, lambda x: -x, vectorized=False)
    x = torch.tensor([[0.5, -1.0], [1.0, 0.0]], dtype=torch.float64)
    value, gradient = targets.from_log_prob(function, 2).log_prob_and_grad(x)
    torch.testing.assert_close(value, gaussian(x))
    torch.testing.assert_close(gradient, -x)


def test_tempering_acts_on_the_likelihood_alone():
    x = torch.tensor([[0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)
    hot = targets.tempered(box_posterior(), 0.25)
    torch.testing.assert_close(hot.log_prob(x), torch.tensor([-0.625 / 4 - 2 * math.log(4), -INF], dtype=torch.float64))
    assert bool(torch.isfinite(targets.tempered(box_posterior(), 0.0).log_prob(x[:1])).all())


SUPPORTS = {
    "interval": ((2.0, 5.0), lambda x: torch.log(x - 2) + 2 * torch.log(5 - x), 27 * 3 / 12),
    "lower": ((1.0, INF), lambda x: 2 * torch.log(x - 1) - (x - 1), 2.0),
    "upper": ((-INF, 1.0), lambda x: -(1 - x), 1.0),
    "heavy": ("heavy", lambda x: -2 * torch.log1p(x.square()), math.pi / 2),
    "circular": (("circular", 0.0, 4.0), lambda x: torch.log(2 + torch.sin(math.pi * x / 2)), 8.0),
}


@pytest.mark.parametrize("kind", SUPPORTS)
def test_mass_is_kept_on_the_real_line(kind):
    support, density, mass = SUPPORTS[kind]
    space = targets.unconstrained(targets.from_log_prob(lambda x: density(x[:, 0]), 1, support=support))
    end = math.pi if kind == "circular" else 9.2
    z = midpoints(-end, end, 20001)[:, None]
    width = 2 * end / 20001
    # The midpoint rule is exact to many digits for smooth functions that end flat, or that repeat.
    assert float(space.log_prob(z).exp().sum() * width) == pytest.approx(mass, rel=1e-6)
    # Further out an end other than zero leaves float64 no digits for the distance from it.
    inner = z[z[:, 0].abs() < 6][::997]
    theta, log_det = space.to_user(inner)
    torch.testing.assert_close(space.from_user(theta), inner, rtol=0, atol=1e-6)
    torch.testing.assert_close(space.log_prob(inner) - log_det, space.user.log_prob(theta))


def test_ends_are_reached_without_infinities():
    space = targets.unconstrained(targets.from_log_prob(lambda x: -x.sum(-1), 2, support=[(0, INF), (-INF, 0)]))
    z = torch.tensor([[9.2, -9.2], [-9.2, 9.2]], dtype=torch.float64)
    theta, _ = space.to_user(z)
    torch.testing.assert_close(space.from_user(theta), z, rtol=0, atol=1e-9)
    assert bool(torch.isfinite(space.log_prob(z)).all())


def test_nothing_lies_beyond_the_end_of_a_map():
    space = targets.unconstrained(targets.from_log_prob(lambda x: torch.zeros(len(x)), 2, support=[(0, 1), "real"]))
    assert float(space.log_prob(torch.tensor([[9.5, 0.0]]))) == -INF
    assert math.isfinite(float(space.log_prob(torch.tensor([[9.0, 1e6]]))))


def test_targets_that_are_real_already_stay_as_they_are():
    real = targets.from_log_prob(gaussian, 2, support=["real", "circular"])
    assert targets.unconstrained(real) is real


def test_pulled_back_through_its_own_density_is_the_base():
    flow = randomise(nsf(2, layers=2, hidden=(8,), support=[(0, 1), "real"])).double()
    target = targets.pulled_back(targets.from_log_prob(flow.log_prob, 2, support=[(0, 1), "real"]), flow)
    z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.log_prob(z), gaussian(z) - math.log(2 * math.pi), rtol=0, atol=1e-7)
    theta, log_det = target.to_user(z)
    torch.testing.assert_close(target.from_user(theta), z, rtol=0, atol=1e-7)
    torch.testing.assert_close(target.user.log_prob(theta) + log_det, target.log_prob(z))
    assert target.user.names == ("x0", "x1") and target.names == ("z0", "z1")


def test_maps_nest():
    flow = randomise(nsf(1, layers=1, hidden=(8,), support=(0, INF))).double()
    bounded = targets.from_log_prob(lambda x: -x[:, 0], 1, support=(0, INF))
    z = midpoints(-12, 12, 40001)[:, None]
    mass = targets.unconstrained(targets.pulled_back(bounded, flow)).log_prob(z).exp().sum() * 24 / 40001
    assert float(mass) == pytest.approx(1, rel=1e-4)


def test_prior_places_half_lines():
    tiny = BoxUniform([0.0], [1e-6])
    half_line = from_pair(tiny.sample, tiny.log_prob, 1, support=(0, INF))
    space = targets.unconstrained(targets.posterior(gaussian, half_line))
    assert abs(float(space.from_user(torch.tensor([[5e-7]], dtype=torch.float64)))) < 0.1


BAD = {
    "point": (lambda: box_posterior().log_prob(torch.zeros(2)), r"pass x\[None\]"),
    "columns": (lambda: box_posterior().log_prob(torch.zeros(1, 3)), r"Expected x of shape \(n, 2\); got \(1, 3\)"),
    "scalar": (lambda: box_posterior(lambda x: x.sum()).log_prob(torch.zeros(3, 2)), "many points at once"),
    "column": (lambda: box_posterior(lambda x: x[:, :1]).log_prob(torch.zeros(3, 2)), r"got \(3, 1\)"),
    "power": (lambda: targets.tempered(box_posterior(), -1.0), "inverse_temperature of at least 0"),
    "names": (lambda: targets.from_log_prob(gaussian, 2, names=["a"]), "Expected 2 names"),
    "no gradient": (
        lambda: box_posterior(targets.from_numpy(lambda x: x[:, 0])).log_prob_and_grad(torch.zeros(3, 2)),
        r"from_numpy\(function, grad=",
    ),
    "detached": (lambda: box_posterior(lambda x: x.detach()[:, 0]).log_prob_and_grad(torch.zeros(3, 2)), "has no gradient"),
    "context": (lambda: targets.pulled_back(box_posterior(), nsf(2, context=1)), "without context"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_say_what_to_do(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_kinds_are_told():
    with pytest.raises(TypeError, match="from_numpy"):
        box_posterior(lambda x: x.numpy()[:, 0]).log_prob(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="from_scipy"):
        targets.posterior(gaussian, object())
    with pytest.raises(TypeError, match="no likelihood"):
        targets.from_log_prob(gaussian, 2).log_likelihood(torch.zeros(1, 2))
    with pytest.raises(TypeError, match="function of a tensor"):
        targets.from_log_prob(np.zeros(2), 2)


# --- Angles of a posterior --------------------------------------------------------------------------------------------------------


def phase_prior():
    return BoxUniform([0.0, -1.0], [2 * math.pi, 1.0], names=["phase", "r"])


@pytest.mark.parametrize("support", [["circular", (-1, 1)], {"phase": "circular"}, [("circular", -math.pi, math.pi), (-1, 1)]])
def test_a_posterior_may_have_angles(support):
    """The ends of the prior are one point: the mode at the seam is whole, and its circular mean is that of exp(3 cos)."""
    target = targets.posterior(lambda x: 3 * torch.cos(x[:, 0]), phase_prior(), support=support)
    assert target.support == [("circular", 0.0, 2 * math.pi), (-1.0, 1.0)]
    start = target.prior.sample(40, torch.Generator().manual_seed(0))
    x = run_chains(RandomWalk(), target, start, n_steps=300, n_warmup=100, random_state=0).samples[..., 0]
    assert x.min() >= 0 and x.max() < 2 * math.pi
    # I_1(3) / I_0(3); 500 independent draws of spread .25 at least, 4.5 errors.
    assert abs(np.cos(x).mean() - 0.8100) < 4.5 * 0.25 / math.sqrt(500)
    assert (np.diff(x, axis=1) > math.pi).any()  # chains cross the seam


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (["circular", (0, 1)], "support of r to be the prior's, \\(-1.0, 1.0\\)"),
        ([("circular", 0.0, 1.0), (-1, 1)], "support of phase"),
        (["real", (-1, 1)], "support of phase"),
        ({"spin": "circular"}, "by name \\(phase, r\\); got spin"),
    ],
)
def test_a_support_that_is_not_the_priors(support, message):
    with pytest.raises(ValueError, match=message):
        targets.posterior(gaussian, phase_prior(), support=support)
