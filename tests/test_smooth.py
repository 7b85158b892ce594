"""Smooth transformers: slopes, inverses, their gradients of two orders, and no kinks where splines have them."""

import math

import pytest
import torch

from sbi_flows.bijections.coupling import Coupling
from sbi_flows.bijections.smooth import SmoothCircle, SmoothInterval
from sbi_flows.bijections.spline import CircularSpline

TRANSFORMERS = {"circle": SmoothCircle(5), "interval": SmoothInterval(-2.0, 3.0, 4)}
every = pytest.mark.parametrize("name", TRANSFORMERS)


def inputs(name, n=200, strength=2.0):
    t, generator = TRANSFORMERS[name], torch.Generator().manual_seed(0)
    low, high = (-math.pi, math.pi) if name == "circle" else (t.low, t.high)
    x = low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
    return t, x, strength * torch.randn(t.n_params, n, generator=generator, dtype=torch.float64)


@every
def test_inverse_and_slope(name):
    t, x, params = inputs(name, strength=5.0)
    x.requires_grad_()
    z, log_slope = t.forward(x, params)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)
    back, log_back = t.inverse(z.detach(), params)
    torch.testing.assert_close(back, x.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_back, -log_slope, rtol=0, atol=1e-8)
    # Float32 as well, to its rounding over the smallest slope.
    again = t.inverse(z.detach().float(), params.float())[0].double()
    off = (again - x.detach()).abs() * log_slope.exp().detach()
    assert torch.minimum(off, (2 * math.pi - off).abs()).max() < 1e-4


@every
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_gradients_of_first_and_second_order(name, method):
    t, x, params = inputs(name, n=3, strength=0.7)
    leaves = (x.requires_grad_(), params.requires_grad_())
    assert torch.autograd.gradcheck(getattr(t, method), leaves)
    assert torch.autograd.gradgradcheck(getattr(t, method), leaves)


@every
def test_zero_parameters_are_the_identity(name):
    t, x, params = inputs(name)
    z, log_slope = t.forward(x, torch.zeros_like(params))
    torch.testing.assert_close(z, x, rtol=0, atol=5e-6)
    assert log_slope.abs().max() < 5e-6


@every
def test_it_maps_onto(name):
    """The slope integrates to the length of the circle or the interval (trapezoidal rule of a periodic analytic function)."""
    t, _, params = inputs(name, n=1)
    low, high = (-math.pi, math.pi) if name == "circle" else (t.low, t.high)
    x = torch.linspace(low, high, 20_001, dtype=torch.float64)
    slope = t.forward(x, params.expand(-1, len(x)))[1].exp()
    assert torch.trapezoid(slope, x) == pytest.approx(high - low, rel=1e-6)


def jumps(transformer, n=4000):
    """Largest change between neighbouring points of the second derivative of ln slope (the slope of the force), over its largest value."""
    x = torch.linspace(-math.pi, math.pi, n, dtype=torch.float64)
    params = torch.randn(transformer.n_params, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(-1, n)
    log_slope = transformer.forward(x, params)[1]
    second = (log_slope[2:] - 2 * log_slope[1:-1] + log_slope[:-2]) / (x[1] - x[0]) ** 2
    return float((second[1:] - second[:-1]).abs().max() / second.abs().max())


def test_forces_are_smooth_to_second_order_where_those_of_splines_jump():
    """By finite differences: halving the spacing halves the change of a continuous function and leaves a jump as it is."""
    smooth, kinked = SmoothCircle(4), CircularSpline(4)
    assert jumps(smooth, 8000) < 0.6 * jumps(smooth, 4000) < 0.05
    assert jumps(kinked, 8000) > 0.3


def test_the_force_is_smooth_through_the_seam():
    t, _, params = inputs("circle", n=1)
    x = torch.tensor([-math.pi, math.pi], dtype=torch.float64, requires_grad=True)
    _, log_slope = t.forward(x, params.expand(-1, 2))
    for _ in range(3):
        torch.testing.assert_close(log_slope[0], log_slope[1], rtol=1e-9, atol=1e-9)
        (log_slope,) = torch.autograd.grad(log_slope.sum(), x, create_graph=True)


def test_components_do_not_learn_the_same():
    t = SmoothCircle(4)
    params = torch.zeros(t.n_params, 1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(t.forward(torch.tensor([0.7], dtype=torch.float64), params)[1].sum(), params)
    real = gradient[4:8, 0]
    assert (real - real.mean()).abs().min() > 1e-4


def test_a_torus_flow_in_a_coupling_has_second_derivatives():
    """What force matching needs: the gradient of the mean square of a force."""
    coupling = Coupling(SmoothCircle(3), 2, hidden=(8,)).double()
    x = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, log_det = coupling.forward_and_log_det(x)
    (force,) = torch.autograd.grad(log_det.sum(), x, create_graph=True)
    (force.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in coupling.parameters())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: SmoothCircle(1), "2 components"),
        (lambda: SmoothInterval(1.0, 0.0), "low < high"),
        (lambda: SmoothInterval(0.0, math.inf), "finite"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()
