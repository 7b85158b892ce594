"""Kernels leave their targets as they are. False-alarm rate of the invariance checks: 1e-4 each, seeds fixed."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.samplers import HMC, MALA, NUTS, IndependentMetropolis, Mixed, RandomWalk, Stretch, metropolis, run_chains
from sbi_flows.targets import from_log_prob, pulled_back
from tests.samplers.invariance import invariance_p_value

ALPHA = 1e-4
N = 2000


def gamma_vonmises_beta_normal():
    """Half-line, angle, interval, real line: independent columns with known distribution functions."""
    parts = [stats.gamma(3, loc=1), stats.vonmises(2, loc=1), stats.beta(0.7, 2, loc=-1, scale=3), stats.norm(0, 5)]

    def log_prob(x):
        a, b, c, d = x.unbind(-1)
        u = (c + 1) / 3
        return 2 * torch.log(a - 1) - (a - 1) + 2 * torch.cos(b - 1) - 0.3 * torch.log(u) + torch.log1p(-u) - d.square() / 50

    target = from_log_prob(log_prob, 4, support=[(1, math.inf), "circular", (-1, 2), "real"])
    rng = np.random.default_rng(5)
    draws = np.stack([part.rvs(N, random_state=rng) for part in parts], axis=1)
    draws[:, 1] = np.angle(np.exp(1j * draws[:, 1]))
    offset = parts[1].cdf(-math.pi)
    cdfs = [parts[0].cdf, lambda v: parts[1].cdf(v) - offset, parts[2].cdf, parts[3].cdf]
    return target, draws, cdfs


def wide_proposal():
    halves = MultivariateNormal([0.0], [[49.0]])
    box = BoxUniform([-math.pi, -1.0], [math.pi, 2.0])

    class Exponential:
        def sample(self, n, generator):
            return 1 - 5 * torch.log1p(-torch.rand(n, 1, generator=generator, dtype=torch.float64))

        def log_prob(self, x):
            return -(x[:, 0] - 1) / 5 - math.log(5)

    class Joined:
        def sample(self, n, *, generator):
            return torch.cat([Exponential().sample(n, generator), box.sample(n, generator), halves.sample(n, generator)], dim=1)

        def log_prob(self, x):
            return Exponential().log_prob(x[:, :1]) + box.log_prob(x[:, 1:3]) + halves.log_prob(x[:, 3:])

    return Joined()


KERNELS = {
    "random-walk": lambda: RandomWalk(jumps=0.0),
    "random-walk-with-jumps": lambda: RandomWalk(jumps=0.5),
    "hmc": HMC,
    "hmc-of-few-steps-and-diagonal-metric": lambda: HMC(n_steps=3, metric="diagonal"),
    "nuts": NUTS,
    "mala": MALA,
    "stretch": Stretch,
    "cycle": lambda: Mixed([RandomWalk(), IndependentMetropolis(wide_proposal())]),
    "mixture": lambda: Mixed([HMC(n_steps=2), IndependentMetropolis(wide_proposal())], weights=[3, 1]),
    "independent": lambda: IndependentMetropolis(wide_proposal()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_leaves_its_target_invariant(name):
    target, draws, cdfs = gamma_vonmises_beta_normal()
    assert invariance_p_value(KERNELS[name](), target, draws, cdfs) > ALPHA


class AcceptsTooMuch(RandomWalk):
    def step(self, state, target, generator):
        flat = from_log_prob(lambda x: 0.7 * target.log_prob(x), target.features)
        state, info = super().step(state._replace(log_prob=0.7 * state.log_prob), flat, generator)
        return state._replace(log_prob=target.log_prob(state.position)), info


def test_the_invariance_check_finds_a_broken_kernel():
    target, draws, cdfs = gamma_vonmises_beta_normal()
    assert invariance_p_value(AcceptsTooMuch(jumps=0.0), target, draws, cdfs) < ALPHA


def test_angles_cross_the_seam():
    target = from_log_prob(lambda x: 3 * torch.cos(x[:, 0] - math.pi), 1, support="circular")
    draws = stats.vonmises(3).rvs(N, random_state=0) + math.pi
    draws = np.angle(np.exp(1j * draws))[:, None]
    exact = stats.vonmises(3)
    p = invariance_p_value(RandomWalk(), target, draws, [lambda v: exact.cdf(np.mod(v, 2 * math.pi) - math.pi) - _turned(v, exact)])
    assert p > ALPHA


def _turned(v, exact):
    # The distribution function on [-pi, pi) of an angle centred at pi: the mass between -pi and v.
    return np.where(np.asarray(v) < 0, exact.cdf(0.0), exact.cdf(0.0) - 1)


def test_jumps_carry_mass_between_modes():
    """Two modes 20 standard deviations apart, of mass 0.2 and 0.8, started half and half: jumps set the balance right.

    Masses of 2000 independent chains: 4.5 binomial standard errors, false alarms 7e-6.
    """
    modes = torch.tensor([-10.0, 10.0], dtype=torch.float64)
    log_mass = torch.log(torch.tensor([0.2, 0.8], dtype=torch.float64))
    target = from_log_prob(lambda x: torch.logsumexp(log_mass - 0.5 * (x[:, :1] - modes).square(), dim=1) - 0.5 * x[:, 1].square(), 2)
    start = np.random.default_rng(0).normal(size=(N, 2))
    start[:, 0] += np.where(np.arange(N) % 2, 10, -10)
    run = {"n_steps": 200, "n_warmup": 100, "thin": 200, "random_state": 1}
    with_jumps = run_chains(RandomWalk(jumps=0.3), target, start, **run).samples[:, -1, 0]
    assert abs(np.mean(with_jumps > 0) - 0.8) < 4.5 * math.sqrt(0.16 / N)
    # Of 1600 chains a spread is good to .018: five of that.
    assert np.std(with_jumps[with_jumps > 0]) == pytest.approx(1, abs=0.09)


def test_warm_up_learns_shape_and_acceptance():
    cov = torch.tensor([[1.0, 0.999], [0.999, 1.0]], dtype=torch.float64)
    truth = MultivariateNormal([1e3, -5.0], (1e4 * cov).tolist())
    target = from_log_prob(truth.log_prob, 2)
    chains = run_chains(RandomWalk(jumps=0.0), target, np.zeros((50, 2)), n_steps=500, n_warmup=1000, thin=10, random_state=0)
    assert chains.stats["acceptance"].mean() == pytest.approx(0.35, abs=0.05)
    assert chains.samples.reshape(-1, 2).mean(0) == pytest.approx([1e3, -5.0], abs=15)  # 100 / sqrt(ESS > 500) is 4.5


def test_one_chain_alone_learns_too():
    target = from_log_prob(lambda x: -0.5 * ((x - 3) / torch.tensor([0.05, 5.0])).square().sum(-1), 2)
    chains = run_chains(RandomWalk(), target, [[3.0, 3.0]], n_steps=4000, n_warmup=2000, random_state=0)
    assert chains.samples[0].std(0) == pytest.approx([0.05, 5.0], rel=0.25)  # ESS above 300: 4 %, six of them


def test_pulled_back_chains_come_out_in_the_users_parameters():
    from sbi_flows.flows import nsf
    from tests.properties import randomise

    flow = randomise(nsf(2, layers=1, hidden=(8,), support=[(0, 1), "real"]))
    target = from_log_prob(lambda x: torch.log(x[:, 0]) - 0.5 * x[:, 1].square(), 2, names=["p", "q"], support=[(0, 1), "real"])
    rng = np.random.default_rng(0)
    draws = np.stack([np.sqrt(rng.random(N)), rng.normal(size=N)], axis=1)
    cdfs = [lambda v: v**2, stats.norm.cdf]
    assert invariance_p_value(RandomWalk(), pulled_back(target, flow), draws, cdfs) > ALPHA
    chains = run_chains(RandomWalk(), pulled_back(target, flow), draws[:3], n_steps=2, n_warmup=0, random_state=0)
    assert chains.names == ("p", "q")
    rows = torch.from_numpy(chains.samples.reshape(-1, 2))
    np.testing.assert_allclose(chains.log_posterior.ravel(), target.log_prob(rows).numpy(), atol=1e-7)


def test_independent_metropolis_from_the_wrong_place():
    target = from_log_prob(lambda x: -x.square().sum(-1), 1)
    with pytest.raises(ValueError, match="where the proposal has density"):
        run_chains(IndependentMetropolis(BoxUniform(0.0, 1.0)), target, [[2.0]], n_steps=4, n_warmup=0)


def test_undefined_ratios_are_rejected():
    info = metropolis(torch.tensor([math.nan, math.inf, 0.0, -math.inf], dtype=torch.float64), torch.Generator().manual_seed(0))
    assert info.accepted.tolist() == [False, False, True, False]
    assert info.invalid.tolist() == [True, True, False, False]


@pytest.mark.parametrize("arguments", [{"jumps": 1.0}, {"jumps": -0.1}, {"target_acceptance": 2.0}])
def test_random_walk_settings(arguments):
    with pytest.raises(ValueError, match="Expected"):
        RandomWalk(**arguments)


def test_the_stretch_move_knows_no_seam():
    # -cos(x) has its mode at the seam: E cos = -I1(1) / I0(1). Stretches carried round the circle gave -.375.
    target = from_log_prob(lambda x: -torch.cos(x[:, 0]), 1, support="circular")
    start = (torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1) * math.pi
    chains = run_chains(Stretch(), target, start, n_steps=1000, n_warmup=100, random_state=0)
    means = np.cos(chains.samples[..., 0])
    blocks = means.mean(axis=0).reshape(10, -1).mean(axis=1)  # walkers go with each other, blocks of a hundred steps hardly
    error = blocks.std(ddof=1) / np.sqrt(10)
    assert error < 0.015 and abs(means.mean() + 0.446390) < 4 * error
