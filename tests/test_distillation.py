"""Reflow and mean flows: exact where the answer is known, straighter and faster where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbi_flows import ConditionalFlow
from sbi_flows.distillation import distil, reflow
from sbi_flows.estimators.ensemble import EmbeddedFlow, FlowEnsemble
from sbi_flows.flows import cnf, maf
from sbi_flows.flows.mean import MeanFlow
from sbi_flows.losses import Batch
from sbi_flows.losses.distilling import mean_flow_matching, reflow_matching


def bent(context=1, strength=0.06, **settings):
    """A continuous flow with random weights: as good a parent as a trained one."""
    generator = torch.Generator().manual_seed(1)
    flow = cnf(2, context, hidden=(16, 16), generator=generator, **settings)
    with torch.no_grad():
        flow.continuous.net.out_weight.copy_(strength * torch.randn(flow.continuous.net.out_weight.shape, generator=generator))
    return flow


def euler_error(flow, n_steps=1, n=400):
    """Root mean squared distance of Euler's draws from those of a converged solve, in standard deviations."""
    generator = torch.Generator().manual_seed(2)
    z, context = torch.randn(n, 2, generator=generator), torch.randn(n, 1, generator=generator)
    with torch.no_grad():
        exact = flow.to_unconstrained(flow.from_base(z, context)[0], context)
        for i in range(n_steps):
            z = z + flow.velocity(torch.full((n,), i / n_steps), z, context) / n_steps
    return float((z - exact).square().sum(-1).mean().sqrt())


@pytest.mark.parametrize("path", ["straight", "variance-preserving"])
def test_mean_flow_of_normal_data_is_exact_from_the_start(path):
    """The field of normal data scales space; its average velocity is known, and u = v + (s - t) du/dt must hold to rounding."""
    parent = cnf(2, path=path).double()
    flow = MeanFlow(parent, n_steps=2)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Noise of unit variance becomes data of unit variance, itself; the straight path's variance is one half on the way.
    middle = z * (math.sqrt(0.5) if path == "straight" else 1.0)
    losses = mean_flow_matching(flow, Batch(torch.cat([z, middle, z], dim=1)), torch.Generator().manual_seed(1))
    assert float(losses.detach().max()) < 1e-10
    torch.testing.assert_close(flow.follow(z), z)


def test_mean_flow_loss_is_not_zero_for_a_wrong_average():
    parent = bent().double()
    flow = MeanFlow(parent)
    z, context = torch.randn(50, 2, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    losses = mean_flow_matching(flow, Batch(torch.cat([z, z], dim=1), context), torch.Generator().manual_seed(1))
    assert float(losses.detach().mean()) > 1e-2


def test_a_mean_flow_learns_the_whole_way_and_parts_of_it():
    parent = bent()
    fast = distil(parent, torch.randn(500, 1, generator=torch.Generator().manual_seed(0)), n_pairs=2000, max_epochs=8, random_state=0)
    assert fast.distance < 0.5 * euler_error(parent, 1)
    x = torch.randn(5, 2)
    context = torch.zeros(1, 1)
    assert torch.equal(fast.log_prob(x, context), parent.log_prob(x, context))
    assert fast.sample(7, context).shape == (7, 2)
    drawn, log_prob = fast.sample_and_log_prob(7, context, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(log_prob, parent.log_prob(drawn, context))
    assert all(not p.requires_grad for p in fast.parameters())
    assert all(p.requires_grad for p in parent.parameters())  # the parent is left as it was


def test_more_steps_are_learned_from_points_on_the_way():
    parent = bent()
    settings = {"n_pairs": 1500, "max_epochs": 4, "random_state": 0}
    conditions = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    fast = distil(parent, conditions, n_steps=3, **settings)
    assert fast.n_steps == 3
    assert fast.distance < euler_error(parent, 3)


def test_estimators_come_out_as_estimators_and_go_through_files(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1))
    y = X + 0.5 * rng.normal(size=(200, 2))
    model = ConditionalFlow(flow="cnf", hidden=(8, 8), layers=1, max_epochs=1, random_state=0).fit(X, y)
    for function in (reflow, distil):
        fast = function(model, X, n_pairs=200, max_epochs=1, random_state=0)
        assert fast.flow_ is not model.flow_
        fast.save(tmp_path / "fast")
        again = ConditionalFlow.load(tmp_path / "fast")
        drawn = fast.sample(X[:2], 3, random_state=1)
        assert drawn.shape == (2, 3, 2)
        np.testing.assert_array_equal(again.sample(X[:2], 3, random_state=1), drawn)
        np.testing.assert_array_equal(again.log_prob(X[:5], y[:5]), fast.log_prob(X[:5], y[:5]))
    assert again.flow_.distance == pytest.approx(fast.flow_.distance)
    np.testing.assert_array_equal(fast.log_prob(X[:5], y[:5]), model.log_prob(X[:5], y[:5]))


def test_reflow_straightens_and_keeps_the_density():
    parent = bent()
    conditions = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    straight = reflow(parent, conditions, n_pairs=3000, max_epochs=6, random_state=0)
    assert euler_error(straight) < 0.5 * euler_error(parent)
    x = parent.sample(2000, conditions[:1], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        difference = parent.log_prob(x, conditions[:1]) - straight.log_prob(x, conditions[:1])
    assert abs(float(difference.mean())) < 0.05  # the Kullback-Leibler divergence, in nats


def test_same_seed_same_bits():
    first, second = (reflow(bent(), torch.zeros(3, 1), n_pairs=300, max_epochs=1, random_state=4) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", [reflow, distil])
def test_ensembles_embeddings_and_bounded_supports(function):
    settings = {"n_pairs": 200, "max_epochs": 1, "random_state": 0}
    ensemble = function(FlowEnsemble([bent(), bent()]), torch.zeros(4, 1), **settings)
    assert ensemble.sample(5, torch.zeros(1, 1)).shape == (5, 2)
    embedded = EmbeddedFlow(bent(), torch.nn.Linear(3, 1), 3)
    out = function(embedded, torch.zeros(4, 3), **settings)
    assert out.flow is not embedded.flow
    assert out.sample(5, torch.zeros(1, 3)).shape == (5, 2)
    bounded = function(bent(context=0, support=[(0, 1), "circular"]), **settings).sample(500)
    assert bool((bounded[:, 0] > 0).all() & (bounded[:, 0] < 1).all() & (bounded[:, 1].abs() <= torch.pi).all())


def test_reflow_matching_is_zero_for_straight_pairs():
    """Draws at a fixed distance from their noise, for a field of that constant velocity."""
    flow = cnf(2, path="straight").double()
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0], dtype=torch.float64)

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.continuous = flow.continuous

        def velocity(self, t, y, context):
            return shift.expand_as(y)

    losses = reflow_matching(Constant(), Batch(torch.cat([z, z + shift], dim=1)), torch.Generator().manual_seed(0))
    assert float(losses.abs().max()) < 1e-20
    assert float(reflow_matching(Constant(), Batch(torch.cat([z, z], dim=1)), torch.Generator()).min()) > 1


def test_what_cannot_be_distilled_says_why():
    with pytest.raises(TypeError, match="Expected a continuous flow"):
        distil(maf(2))
    with pytest.raises(ValueError, match="path='straight' to straighten; got path='variance-preserving'"):
        reflow(cnf(2, path="variance-preserving"))
    with pytest.raises(ValueError, match="conditions to learn for"):
        reflow(cnf(2, 1))
    with pytest.raises(ValueError, match=r"Expected X of shape \(m, 1\); got \(3, 2\)"):
        reflow(cnf(2, 1), torch.zeros(3, 2))
