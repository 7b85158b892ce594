"""Every kernel leaves a correlated normal, a funnel and a mixture as they are: false alarms 1e-4 a case, seeds fixed."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sbi_flows.distributions import MultivariateNormal
from sbi_flows.flows import realnvp
from sbi_flows.samplers import HMC, MALA, NUTS, IndependentMetropolis, Mixed, RandomWalk, Stretch, run_chains
from sbi_flows.targets import from_log_prob
from tests.properties import randomise

ALPHA = 1e-4
N = 1500
NORMAL = stats.norm.cdf


def normal():
    factor = torch.tensor([[1.0, 0.0, 0.0], [1.8, 0.6, 0.0], [-3.0, 2.0, 5.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(factor)

    def whiten(x):
        return x @ inverse.T

    target = from_log_prob(lambda x: -0.5 * whiten(x).square().sum(-1), 3)
    return target, lambda z: z @ factor.T, whiten, [NORMAL] * 3


def funnel():
    """v ~ N(0, 1), x_i ~ N(0, e^v): normal in v and x_i e^{-v/2}."""

    def whiten(x):
        return torch.cat([x[:, :1], x[:, 1:] * torch.exp(-0.5 * x[:, :1])], dim=1)

    def colour(z):
        return torch.cat([z[:, :1], z[:, 1:] * torch.exp(0.5 * z[:, :1])], dim=1)

    target = from_log_prob(lambda x: -0.5 * whiten(x).square().sum(-1) - x[:, 0], 3)
    return target, colour, whiten, [NORMAL] * 3


MEANS = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, -2.0, 0.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def mixture():
    def log_prob(x):
        return torch.logsumexp(WEIGHTS.log() - 0.5 * (x[:, None] - MEANS).square().sum(-1), dim=1)

    def colour(z):
        label = torch.multinomial(WEIGHTS, len(z), replacement=True, generator=torch.Generator().manual_seed(4))
        return z + MEANS[label]

    def marginal(j):
        return lambda v: sum(float(w) * NORMAL(v - float(m)) for w, m in zip(WEIGHTS, MEANS[:, j], strict=True))

    return from_log_prob(log_prob, 3), colour, lambda x: x, [marginal(j) for j in range(3)]


TARGETS = {"normal": normal, "funnel": funnel, "mixture": mixture}


def frozen_flow():
    """Wide, and wrong in detail: what a proposal may be."""

    class Wide:
        flow = randomise(realnvp(3, layers=2, hidden=(8,)))
        wide = MultivariateNormal([0.0, 0.0, 0.0], (30 * torch.eye(3)).tolist())

        def sample(self, n, *, generator):
            from_flow = torch.rand(n, generator=generator) < 0.5
            drawn = self.flow.sample(n, generator=generator).double()
            return torch.where(from_flow[:, None], drawn, self.wide.sample(n, generator).double())

        def log_prob(self, x):
            return torch.logaddexp(self.flow.log_prob(x).double(), self.wide.log_prob(x)) - math.log(2)

    return IndependentMetropolis(Wide())


KERNELS = {
    "random-walk": RandomWalk,
    "hmc": lambda: HMC(n_steps=4),
    "nuts": lambda: NUTS(max_depth=5),
    "mala": MALA,
    "stretch": Stretch,
    "flow": frozen_flow,
    "cycle": lambda: Mixed([NUTS(max_depth=3), frozen_flow()]),
    "mixture": lambda: Mixed([RandomWalk(), MALA(), frozen_flow()], weights=[1, 1, 1]),
}


def p_value(kernel, make, *, n_steps=6, n_warmup=8) -> float:
    """Smallest Kolmogorov-Smirnov p-value, Bonferroni corrected, over columns and (of normals) the radius, which sees them jointly."""
    target, colour, whiten, cdfs = make()
    draws = colour(torch.randn(N, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    chains = run_chains(kernel, target, draws, n_steps=n_steps, n_warmup=n_warmup, thin=n_steps, random_state=0)
    z = whiten(torch.from_numpy(chains.samples[:, -1])).numpy()
    assert float(np.mean((chains.samples[:, -1] != draws.numpy()).any(axis=1))) > 0.2, "the chains hardly moved: nothing was tested"
    tests = [(z[:, j], cdf) for j, cdf in enumerate(cdfs)]
    if all(cdf is NORMAL for cdf in cdfs):
        tests.append(((z**2).sum(axis=1), stats.chi2(3).cdf))
    return min(1.0, len(tests) * min(stats.kstest(values, cdf).pvalue for values, cdf in tests))


@pytest.mark.parametrize("make", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_invariance(name, make):
    assert p_value(KERNELS[name](), TARGETS[make]) > ALPHA


class AlwaysAccepts(HMC):
    def step(self, state, target, generator):
        ahead, info = super().step(state, from_log_prob(lambda x: 0.8 * target.log_prob(x), target.features), generator)
        return ahead._replace(log_prob=target.log_prob(ahead.position)), info


def test_the_check_finds_a_wrong_kernel():
    assert p_value(AlwaysAccepts(n_steps=3), normal) < ALPHA


def test_nuts_is_exact_within_its_trees():
    """Long steps in two dimensions from 20000 exact draws, where a wrong choice within the tree shows most: false alarms 1e-4."""
    target = from_log_prob(lambda x: -0.5 * x.square().sum(-1) - 0.25 * x.pow(4).sum(-1), 2)
    grid = np.linspace(-6, 6, 20_001)
    mass = np.cumsum(np.exp(-0.5 * grid**2 - 0.25 * grid**4))
    draws = np.interp(np.random.default_rng(0).random((20_000, 2)), mass / mass[-1], grid)
    chains = run_chains(NUTS(step_size=0.8), target, draws, n_steps=4, n_warmup=0, thin=4, random_state=0)
    p = [stats.kstest(chains.samples[:, -1, j], lambda v: np.interp(v, grid, mass / mass[-1])).pvalue for j in range(2)]
    assert 2 * min(p) > ALPHA


def test_detailed_balance_of_the_mixture_with_a_frozen_flow():
    """As many moves from each mode to each other as back: Bowker's test of symmetry, false alarms 1e-4."""
    target, colour, _, _ = mixture()
    draws = colour(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64))
    kernel = Mixed([HMC(n_steps=3, step_size=0.7), frozen_flow()], weights=[1, 1])
    moves = np.zeros((4, 4))
    for seed in range(4):
        chains = run_chains(kernel, target, draws, n_steps=1, n_warmup=0, random_state=seed)
        before, after = (torch.cdist(x, MEANS).argmin(1).numpy() for x in (draws, torch.from_numpy(chains.samples[:, 0])))
        np.add.at(moves, (before, after), 1)
        draws = torch.from_numpy(chains.samples[:, 0])
    pairs = np.triu_indices(4, 1)
    there, back = moves[pairs], moves.T[pairs]
    assert (there + back).min() > 100
    assert stats.chi2(len(there)).sf(((there - back) ** 2 / (there + back)).sum()) > ALPHA
