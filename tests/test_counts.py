"""Densities of whole numbers: probabilities that sum to one, draws, an exact joint with a continuous column, files, errors."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from sbi_flows import ConditionalFlow
from sbi_flows.flows import CountColumn, CountDensity, build, counted

FAST = {"layers": 1, "hidden": (32,), "max_epochs": 20, "random_state": 0}
COUNT, BINARY, SIGNED = CountColumn("root", lowest=0), CountColumn("unit", 0, 1), CountColumn()


def bent(flow, seed=0):
    """The flow in float64 with random weights beside its start, and a scaling that is not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in flow.parameters():
        parameter.data = parameter.data.double() + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    flow = flow.double()
    if flow.continuous is None:
        k = torch.randint(0, 2, (40, flow.features), generator=generator).double()
        context = torch.randn(40, flow.context_features, generator=generator).double() if flow.context_features else None
        flow.fit_scaling(k, context)
    return flow


@pytest.mark.parametrize("column", [COUNT, CountColumn("log", lowest=0), CountColumn("root", 0, 9), BINARY, SIGNED, CountColumn("unit", 3)])
def test_probabilities_sum_to_one(column):
    flow = counted(1, counts={0: column}, hidden=(8,), generator=torch.Generator().manual_seed(0))
    if column in (COUNT, BINARY, SIGNED):
        flow = bent(flow)
    numbers = torch.arange(-20_000.0, 20_000).double()[:, None]
    below = flow.log_prob(numbers[:-1]).exp().sum().item()
    # The rest is the cell of 19999 where it is the last and reaches to infinity: the same flow with an end there.
    closed = counted(1, counts={0: replace(column, highest=column.highest or 19_999)}, hidden=(8,)).double()
    closed.load_state_dict(flow.state_dict())
    beyond = closed.log_prob(numbers[-1:]).exp().item()
    assert below + beyond == pytest.approx(1.0, abs=1e-12)
    assert torch.isneginf(flow.log_prob(numbers[:3] + 0.5)).all()


@torch.no_grad()
def test_columns_together_sum_and_integrate_to_one():
    generator = torch.Generator().manual_seed(0)
    few = CountColumn("root", 0, 3)
    flow = counted(3, 2, counts={0: few, 2: BINARY}, support=["real", (0, 1), "real"], hidden=(8,), layers=1, generator=generator)
    for i, parameter in enumerate(flow.parameters()):
        parameter.data = parameter.data.double() + 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)).double()
    flow = flow.double()
    logit = torch.linspace(-20, 20, 16_001, dtype=torch.float64)
    y, jacobian = torch.sigmoid(logit), torch.sigmoid(logit) * torch.sigmoid(-logit) * (logit[1] - logit[0])
    context = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    total = 0.0
    for k, m in itertools.product(range(4), range(2)):
        x = torch.stack([torch.full_like(y, k), y, torch.full_like(y, m)], dim=1)
        total += (flow.log_prob(x, context.expand(len(x), -1)).exp() * jacobian).sum().item()
    # The numbers have ends, so no probability is left out. The density in y has kinks at the knots of its spline, each of which costs
    # the trapezium rule at most a twelfth of the step squared, 5e-7, times the change of slope; steps of .01, .005 and .0025 leave 2e-6,
    # 5e-7 and 7e-8.
    assert total == pytest.approx(1.0, abs=1e-6)


def test_draws_have_the_stated_frequencies():
    """Cells of two columns against their probabilities: chi squared, false alarm 1e-4."""
    flow = bent(counted(2, 1, counts={0: COUNT, 1: BINARY}, hidden=(8,), generator=torch.Generator().manual_seed(0)))
    context = torch.full((1, 1), 0.4, dtype=torch.float64)
    cells = torch.tensor(list(itertools.product(range(1, 6), range(2))), dtype=torch.float64)
    expected = flow.log_prob(cells, context.expand(len(cells), -1)).exp().detach().numpy()
    x, log_prob = flow.sample_and_log_prob(20_000, context, generator=torch.Generator().manual_seed(1))
    counts = np.array([(x.numpy() == cell).all(1).sum() for cell in cells.numpy()])
    rest = 1 - expected.sum(), 20_000 - counts.sum()
    assert rest[0] > 0.001
    assert scipy.stats.chisquare([*counts, rest[1]], 20_000 * np.array([*expected, rest[0]])).pvalue > 1e-4
    torch.testing.assert_close(flow.log_prob(x, context.expand(len(x), -1)), log_prob)


def data(n, seed=0):
    """k is Poisson with rate exp(x); y is N(k / 2 - x, 1/4)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1))
    k = rng.poisson(np.exp(x[:, 0]))
    y = k / 2 - x[:, 0] + 0.5 * rng.normal(size=n)
    exact = scipy.stats.poisson.logpmf(k, np.exp(x[:, 0])) + scipy.stats.norm.logpdf(y, k / 2 - x[:, 0], 0.5)
    return x, np.stack([y, k], axis=1), exact


@pytest.mark.parametrize("members", [1, 2])
def test_an_estimator_learns_the_exact_joint(tmp_path, members):
    """Within .06 nats of the truth on 4000 fresh rows; either column without the other would lose more than .3."""
    X, y, _ = data(3000)
    model = ConditionalFlow(flow=CountDensity({1: COUNT}), **FAST, n_members=members).fit(X, y)
    fresh, z, exact = data(4000, seed=1)
    assert -0.02 < (exact - model.log_prob(fresh, z)).mean() < 0.06
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(ConditionalFlow.load(tmp_path / "model").log_prob(fresh, z), model.log_prob(fresh, z))
    draws = model.sample(fresh[:2], 50, random_state=0)
    assert (draws[..., 1] == np.round(draws[..., 1])).all() and (draws[..., 1] >= 0).all()


def test_spec_builds_it_again():
    flow = counted(3, 1, counts={1: BINARY, 2: SIGNED}, flow="maf", layers=2, hidden=(5,))
    again = build(flow.spec)
    assert again.spec == flow.spec
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in flow.state_dict().items()}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "at least one column of whole numbers"),
        ({3: COUNT}, "whole numbers from 0 to 1; got 3"),
        ({0: CountColumn("root")}, "lowest=0 on the scale 'root'"),
        ({0: CountColumn("unit", 2, 2)}, "lowest below highest"),
        ({0: CountColumn("cube", 0)}, "scale to be one of"),
    ],
)
def test_bad_columns_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        counted(2, counts=counts)


def test_other_values_are_refused_in_a_fit():
    with pytest.raises(ValueError, match=r"column 0 to hold whole numbers from 0 to 1; got 2 in row 1"):
        counted(1, counts={0: BINARY}).fit_scaling(torch.tensor([[1.0], [2.0]]))
