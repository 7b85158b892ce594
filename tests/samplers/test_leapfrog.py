"""Trajectories: reversible, preserving volume, of second order, and exact on average."""

import math

import numpy as np
import pytest
import torch

from sbi_flows.samplers import HMC, MALA, run_chains
from sbi_flows.samplers.leapfrog import Dynamics, Phase
from sbi_flows.targets import circular_columns, from_log_prob, wrap_angles


def banana():
    return from_log_prob(lambda x: -0.5 * x[:, 0].square() - 2 * (x[:, 1] - x[:, 0].square()).square() + torch.cos(x[:, 2]), 3)


def on_a_circle():
    def log_prob(x):
        return torch.cos(x[:, 0] - x[:, 1]) - 0.5 * x[:, 1].square() - 0.1 * x[:, 2].pow(4)

    return from_log_prob(log_prob, 3, support=["circular", "real", "real"])


FACTORS = {
    "diagonal": torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64),
    "dense": torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.7, 0.0], [-0.2, 0.4, 1.5]], dtype=torch.float64),
}


def phase(target, n=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, momentum = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    x = wrap_angles(x, circular_columns(target))
    return Phase(x, momentum, *target.log_prob_and_grad(x))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("make", [banana, on_a_circle])
def test_there_and_back(make, factor):
    start = phase(make())
    dynamics, step = Dynamics(make(), FACTORS[factor]), torch.tensor(0.1)
    end = dynamics.advance(start, step, 20)
    back = dynamics.advance(end._replace(momentum=-end.momentum), step, 20)
    assert float((end.position - start.position).abs().max()) > 0.5
    torch.testing.assert_close(back.position, start.position, rtol=0, atol=1e-10)
    torch.testing.assert_close(-back.momentum, start.momentum, rtol=0, atol=1e-10)
    forth = dynamics.advance(end, -step, 20)
    torch.testing.assert_close(forth.position, start.position, rtol=0, atol=1e-10)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("make", [banana, on_a_circle])
def test_volume_is_preserved(make, factor):
    """Determinant of the Jacobian of five steps, by central differences whose error is of order 1e-8."""
    target = make()
    dynamics = Dynamics(target, FACTORS[factor])
    z = torch.cat(phase(target, n=1)[:2], dim=1)
    h = 1e-5

    def moved(z):
        x, momentum = z[:, :3], z[:, 3:]
        end = dynamics.advance(Phase(x, momentum, *target.log_prob_and_grad(x)), torch.tensor(0.2), 5)
        return torch.cat([end.position, end.momentum], dim=1)

    shifts = h * torch.eye(6, dtype=torch.float64)
    jacobian = (moved(z + shifts) - moved(z - shifts)) / (2 * h)
    assert float(torch.linalg.det(jacobian).abs()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("make", [banana, on_a_circle])
def test_energy_error_is_of_second_order(make):
    start = phase(make())
    dynamics = Dynamics(make(), FACTORS["dense"])
    errors = [
        float((dynamics.advance(start, torch.tensor(0.5 / n, dtype=torch.float64), n).energy - start.energy).square().mean().sqrt())
        for n in (25, 50, 100)
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders == pytest.approx([2, 2], abs=0.05)


@pytest.mark.parametrize("kernel", [HMC(n_steps=4, step_size=1.5), MALA(step_size=1.2)], ids=["hmc", "mala"])
def test_mean_of_exp_minus_energy_error_is_one(kernel):
    """From exact draws of a normal target, within 4.5 standard errors of 20000 chains: false alarms 7e-6."""
    n = 20_000
    draws = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 3)
    errors = run_chains(kernel, target, draws, n_steps=1, n_warmup=0, random_state=0).stats["energy_error"][:, 0]
    weights = np.exp(-errors)
    assert errors.std() > 0.3  # or there would be nothing to test
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / math.sqrt(n)


def test_a_trajectory_that_explodes_is_rejected_and_called_divergent():
    target = from_log_prob(lambda x: -x.pow(4).sum(-1), 2)
    chains = run_chains(HMC(n_steps=10, step_size=50.0), target, np.ones((4, 2)), n_steps=8, n_warmup=0, random_state=0)
    assert chains.stats["divergent"].all() and (chains.samples == 1).all()
    assert any("trajectories diverged" in reason for reason in chains.reliability.reasons)
