"""Integration: orders of convergence, rows that get the steps they need, errors that hold."""

import math

import pytest
import torch

from sbi_flows.ode import DOPRI5, EULER, ORDER8, RK4, integrate, solve_rows


def pendulum(t, state):
    """A driven pendulum: nonlinear, with time in it."""
    x, v = state
    return v, -torch.sin(x) - 0.1 * v + 0.5 * math.cos(3 * t)


def grid(n, start=0.0, end=2.0):
    return [start + (end - start) * i / n for i in range(n + 1)]


@pytest.fixture
def start():
    return torch.tensor([0.7, -1.2], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(("method", "n"), [(EULER, 200), (RK4, 20), (DOPRI5, 10), (ORDER8, 4)])
def test_errors_fall_with_the_order(method, n, start):
    exact = integrate(pendulum, start, grid(300))
    errors = []
    for k in (n, 2 * n):
        solution = integrate(pendulum, start, grid(k), method)
        errors.append(max((a - b).abs().max().item() for a, b in zip(solution, exact, strict=True)))
    assert math.log2(errors[0] / errors[1]) > method.order - 0.5


@pytest.mark.parametrize("method", [EULER, RK4, DOPRI5, ORDER8])
def test_methods_are_consistent(method):
    assert math.isclose(math.fsum(method.weights), 1)
    # A quadrature of order p is exact for powers below p.
    for power in range(method.order):
        assert math.isclose(math.fsum(w * c**power for w, c in zip(method.weights, method.nodes, strict=True)), 1 / (power + 1))


def test_backwards_is_the_way_back(start):
    there = integrate(pendulum, start, grid(40))
    back = integrate(pendulum, there, grid(40)[::-1])
    torch.testing.assert_close(back, start, rtol=0, atol=1e-12)


def stiffness(n=4096):
    """Rates from 1 to 100: ``dx/dt = -rate (x - cos t)``."""
    return torch.logspace(0, 2, n, dtype=torch.float64)


def solve(rates):
    def solver(rows, n_steps):
        own = rates if rows is None else rates[rows]
        return integrate(lambda t, s: (-own * (s[0] - math.cos(t)),), (torch.zeros_like(own),), grid(n_steps, 0, 1))

    return solver


def distance(a, b):
    return (a[0] - b[0]).abs()


def test_rows_get_the_steps_they_need_and_errors_hold():
    rates = stiffness()
    solution = solve_rows(solve(rates), distance, 4, 1e-6)
    # Exactly: a particular solution and a decaying one.
    amplitude = rates / (rates.square() + 1)
    exact = amplitude * (rates * math.cos(1) + math.sin(1)) - rates * amplitude * torch.exp(-rates)
    true = (solution.state[0] - exact).abs()
    assert (solution.error <= 1e-6).all() and (true <= 3e-6).all()
    # Two solutions of one number may agree by chance.
    assert (true <= solution.error + 1e-14).double().mean() > 0.99
    fixed = solve(rates)(None, 4)[0]
    assert not torch.isfinite(fixed).all() or (fixed - exact).abs().max() > 1


def test_a_row_does_not_depend_on_its_neighbours():
    rates = stiffness()
    among = solve_rows(solve(rates), distance, 4, 1e-6)
    for i in (0, 2000, 4095):
        alone = solve_rows(solve(rates[i : i + 1]), distance, 4, 1e-6)
        torch.testing.assert_close(alone.state[0], among.state[0][i : i + 1], rtol=0, atol=1e-13)
        torch.testing.assert_close(alone.error, among.error[i : i + 1], rtol=0, atol=1e-13)


def test_a_row_that_stays_bad_says_so():
    solution = solve_rows(solve(torch.tensor([1.0, 1e5], dtype=torch.float64)), distance, 4, 1e-8, max_doublings=2)
    assert solution.error[0] <= 1e-8 and not solution.error[1] <= 1
