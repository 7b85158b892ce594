"""Maximum likelihood through the solver: its gradient, its order, its costs, and that it trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sbi_flows import ConditionalFlow
from sbi_flows.bijections.training_solve import solve_for_training
from sbi_flows.flows import cnf
from sbi_flows.losses import Batch, known_density_through_solver, nll_through_solver
from sbi_flows.training import ArraySource, train


def bent(seed=0, strength=0.15, **settings):
    """A flow with random weights in float64, and rows for it."""
    generator = torch.Generator().manual_seed(seed)
    flow = cnf(2, 1, hidden=(16, 16), tolerance=None, generator=generator, **settings).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += strength * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    return flow, Batch(x, torch.randn(20, 1, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("support", [None, ["real", "circular"], [(-9, 9), "real"]])
def test_gradient_is_that_of_the_solve_without_checkpoints(support):
    flow, batch = bent(support=support)
    parameters = [p for p in flow.parameters() if p.requires_grad]
    kept = nll_through_solver(flow, batch, torch.Generator(), steps=3, kinetic=0.1, curvature=0.1)
    with_checkpoints = torch.autograd.grad(kept.sum(), parameters, allow_unused=True, materialize_grads=True)

    # The same numbers under a transform, where nothing is checkpointed.
    values = {name: p.detach() for name, p in flow.named_parameters()}

    def total(values):
        class Loss(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.flow = flow

            def forward(self):
                return nll_through_solver(self.flow, batch, torch.Generator(), steps=3, kinetic=0.1, curvature=0.1).sum()

        return torch.func.functional_call(Loss(), {f"flow.{name}": v for name, v in values.items()}, ())

    plain = torch.func.grad(total)(values)
    assert max(float(g.abs().max()) for g in plain.values()) > 0.1
    for gradient, (name, _) in zip(with_checkpoints, flow.named_parameters(), strict=True):
        torch.testing.assert_close(gradient, plain[name], rtol=1e-10, atol=1e-10)


def test_gradient_is_the_difference_quotient():
    flow, batch = bent()
    weight = flow.continuous.net.mid_weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss():
        return nll_through_solver(flow, batch, torch.Generator(), steps=3, kinetic=0.1, curvature=0.1).sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    step = 1e-5
    with torch.no_grad():
        weight += step * direction
        above = loss()
        weight -= 2 * step * direction
        below = loss()
    assert float((above - below) / (2 * step)) == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_value_converges_to_log_prob_at_fourth_order():
    flow, batch = bent(strength=0.05)
    flow.continuous.steps = 32
    errors = []
    with torch.no_grad():
        exact = flow.log_prob(batch.x, batch.context)
        # The net sees the logarithm of 1.02 - t, so the order shows once steps are shorter than that .02.
        for steps in (60, 120):
            value = -nll_through_solver(flow, batch, torch.Generator(), steps=steps, kinetic=0.0)
            errors.append(float((value - exact).abs().mean()))
    assert errors[1] < 1e-6
    assert 12 < errors[0] / errors[1] < 24  # 16 in the limit


def test_costs_of_known_paths():
    """Constant speed 2 has kinetic energy 4 and no curvature; dx/dt = x from 1 has speed e^t, whose square integrates to (e^2 - 1) / 2."""
    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    start = torch.ones(1, 3, dtype=torch.float64)
    still = solve_for_training(lambda t, x: (torch.full_like(x, 2.0), torch.zeros_like(x[0])), start, times)
    torch.testing.assert_close(still.kinetic, torch.full((3,), 4.0, dtype=torch.float64))
    assert float(still.curvature.abs().max()) < 1e-20
    growing = solve_for_training(lambda t, x: (x, torch.ones_like(x[0])), start, times)
    energy = (torch.tensor(2.0, dtype=torch.float64).exp() - 1) / 2
    torch.testing.assert_close(growing.x, torch.e * start, rtol=1e-6, atol=0)
    torch.testing.assert_close(growing.log_det, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(growing.kinetic, energy.expand(3), rtol=1e-5, atol=0)
    torch.testing.assert_close(growing.curvature, energy.expand(3), rtol=2e-3, atol=0)


def test_it_trains_and_charging_for_the_path_makes_it_shorter():
    generator = torch.Generator().manual_seed(0)
    sign = torch.sign(torch.randn(400, 1, generator=generator))
    x = sign + 0.3 * torch.randn(400, 1, generator=generator)
    energies, losses = [], []
    for kinetic in (0.0, 0.3):
        flow = cnf(1, hidden=(16, 16), layers=1, embedding=16, generator=torch.Generator().manual_seed(1))
        flow.fit_scaling(x)
        rows = Batch(x)

        def loss(flow, batch, generator, kinetic=kinetic):
            return nll_through_solver(flow, batch, generator, steps=3, kinetic=kinetic)

        before = _nll(flow, rows)
        train(flow, ArraySource(x), loss=loss, max_epochs=16, batch_size=400, learning_rate=0.03, random_state=0)
        losses.append(_nll(flow, rows) - before)
        with torch.no_grad():
            energies.append(float(flow.log_prob_with_costs(x)[1].mean()))
    assert losses[0] < -0.2  # two modes at +-1 of width .3 are .40 nats below one normal of their variance
    assert energies[1] < energies[0]


@torch.no_grad()
def _nll(flow, rows):
    return float(nll_through_solver(flow, rows, torch.Generator(), steps=16, kinetic=0.0).mean())


def test_members_train_together():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator)
    flows = [cnf(2, hidden=(8, 8), layers=1, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    history = train(flows, ArraySource(x), loss=nll_through_solver, max_epochs=1, batch_size=30, random_state=0)
    assert history.n_skipped == 0


def test_estimators_train_by_likelihood_where_the_flow_says_so():
    def small(features, context):
        return cnf(features, context, hidden=(4, 4), layers=1, objective="likelihood")

    y = np.random.default_rng(0).normal(size=(60, 1))
    model = ConditionalFlow(flow=small, embedding=torch.nn.Linear(1, 1), max_epochs=1, batch_size=60, random_state=0).fit(y, y**2)
    assert model.history_.loss == "nll_through_solver"
    with pytest.raises(ValueError, match="Expected objective 'matching' or 'likelihood'; got 'luck'"):
        cnf(1, objective="luck")


def test_a_flow_of_layers_has_no_path():
    from sbi_flows.flows import maf

    with pytest.raises(TypeError, match="Expected a continuous flow"):
        nll_through_solver(maf(2), Batch(torch.zeros(3, 2)), torch.Generator())


def test_heights_through_the_solver():
    """Where the target is the flow itself, what is left is the likelihood: the misfit vanishes, whatever constant is added."""
    flow = cnf(2, hidden=(16, 16), tolerance=None, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        weight = flow.continuous.net.out_weight
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain = nll_through_solver(flow, Batch(x), torch.Generator(), steps=3, kinetic=0.0)
    known = torch.stack([3.0 - plain.detach(), torch.ones(20, dtype=torch.float64)], 1)
    values = {"steps": 3, "kinetic": 0.0, "curvature": 0.0}
    torch.testing.assert_close(known_density_through_solver(flow, Batch(x, known), torch.Generator(), **values), plain)
    known[0, 0] += 1.0
    assert float((known_density_through_solver(flow, Batch(x, known), torch.Generator(), **values) - plain).detach().amax()) > 0.1
    with pytest.raises(ValueError, match="two columns"):
        known_density_through_solver(flow, Batch(x), torch.Generator())
