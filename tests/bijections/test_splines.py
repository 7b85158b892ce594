"""The spline's numerics against a plain reference, on both of its engines."""

import math

import pytest
import torch

from sbi_flows.bijections import _spline_kernel
from sbi_flows.bijections._spline_shape import MIN_SLOPE
from sbi_flows.bijections.spline import CircularSpline, Spline, wrap


@pytest.fixture(params=["loops", "tensors"])
def engine(request, monkeypatch):
    """Both ways of computing a spline: compiled loops, and tensor operations."""
    monkeypatch.setattr(_spline_kernel, "FEW", 10**9 if request.param == "loops" else -1)
    return request.param


def reference_spline(x, params, bins, bound, min_size, circular):
    """The formulas of Durkan et al. 2019, one scalar element at a time; ``x (n,)``, ``params (n_params, n)``."""
    values, logs = [], []
    n_slopes = bins if circular else bins - 1
    for i in range(len(x)):
        p = params[:, i]
        if not circular and not -bound <= x[i] <= bound:
            values.append(x[i])
            logs.append(x[i] * 0)
            continue
        sizes = p[n_slopes:].reshape(bins, 2)
        edges = []
        for channel in range(2):
            size = 2 * bound * (min_size + (1 - bins * min_size) * torch.softmax(sizes[:, channel], 0))
            edges.append(torch.cat([x.new_tensor([-bound]), -bound + torch.cumsum(size, 0)]))
        inner = torch.log2(1 + torch.exp2(p[:n_slopes])).clamp(min=MIN_SLOPE)
        slope = torch.cat([inner, inner[:1]]) if circular else torch.cat([x.new_ones(1), inner, x.new_ones(1)])
        k = min(max(int((edges[0] <= x[i]).sum()) - 1, 0), bins - 1)
        w, h = edges[0][k + 1] - edges[0][k], edges[1][k + 1] - edges[1][k]
        s, xi = h / w, (x[i] - edges[0][k]) / w
        below = s + (slope[k + 1] + slope[k] - 2 * s) * xi * (1 - xi)
        values.append(edges[1][k] + h * (s * xi**2 + slope[k] * xi * (1 - xi)) / below)
        top = s**2 * (slope[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + slope[k] * (1 - xi) ** 2)
        logs.append(torch.log(top / below**2))
    return torch.stack(values), torch.stack(logs)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("bins", [2, 3, 8])
def test_spline_and_its_gradients_match_the_reference(bins, circular, engine):
    generator = torch.Generator().manual_seed(bins)
    t = CircularSpline(bins) if circular else Spline(bins, bound=3.0)
    n_params = t.n_params - (1 if circular else 0)
    x = 2 * torch.randn(40, generator=generator, dtype=torch.float64)
    x = wrap(x) if circular else x
    params = (1.5 * torch.randn(n_params, 40, generator=generator, dtype=torch.float64)).requires_grad_()
    x.requires_grad_()
    full = torch.cat([params, torch.zeros(1, 40, dtype=torch.float64)]) if circular else params
    ours = t.forward(x, full)
    reference = reference_spline(x, params, bins, math.pi if circular else 3.0, 1e-3, circular)
    weights = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    ours_grad = torch.autograd.grad((weights[0] * ours[0] + weights[1] * ours[1]).sum(), (x, params))
    reference_grad = torch.autograd.grad((weights[0] * reference[0] + weights[1] * reference[1]).sum(), (x, params))
    for a, b in zip(ours_grad, reference_grad, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("circular", [False, True])
def test_spline_gradcheck(inverse, circular, engine):
    t = CircularSpline(4) if circular else Spline(4, bound=2.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    params = torch.randn(t.n_params, 2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(t.inverse if inverse else t.forward, (x, params))


def extreme_params(t, n, generator, dtype):
    """Slopes at the knots from 1e-3 to 1e3, bins of very different shape."""
    params = torch.randn(t.n_params, n, generator=generator, dtype=torch.float64)
    log_slope = (2 * torch.rand(t._shape.n_slopes, n, generator=generator, dtype=torch.float64) - 1) * math.log(1e3)
    log_slope[:, ::3] = log_slope[:, ::3].sign() * math.log(1e3)
    # log2(1 + 2^raw) = slope solved for raw, without overflow for large slopes.
    slope = torch.exp(log_slope)
    params[: t._shape.n_slopes] = slope + torch.log2(-torch.expm1(-slope * math.log(2)))
    return params.to(dtype)


def knots(t, params):
    """The x of every knot, ``(bins + 1, n)``."""
    shape = t._shape
    sizes = torch.softmax(params[shape.n_slopes :].unflatten(0, (shape.bins, 2))[:, 0], 0) * shape.scale + shape.floor
    return torch.cat([torch.full_like(sizes[:1], -shape.bound), -shape.bound + sizes.cumsum(0)])


def round_trip(t, layers, x):
    """Error of going through all layers and back, what one ulp an operation explains of it, z, and the log slope.

    Layer l commits a few ulp of the largest number it adds, at most max(|x_l|, bound) (its knots), on the way there and back;
    pulled back to the input, that is divided by the slope of the layers before. Their sum is the local condition number.
    """
    z, log_slope, amplification = x, torch.zeros_like(x), torch.zeros_like(x)
    for params in layers:
        amplification = amplification + z.abs().clamp(min=t._shape.bound) * torch.exp(-log_slope)
        z, log_det = t.forward(z, params)
        log_slope = log_slope + log_det
        amplification = amplification + z.abs().clamp(min=t._shape.bound) * torch.exp(-log_slope)
    back = z
    for params in reversed(layers):
        back, _ = t.inverse(back, params)
    assert all(torch.isfinite(v).all() for v in (z, back, log_slope))
    return (back - x).abs().detach(), torch.finfo(x.dtype).eps * amplification.detach(), z, log_slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_layers", [1, 10])
def test_spline_round_trip(n_layers, dtype, engine):
    """Slopes of 1e+-3, inputs on knots and at +-1e6: within 16 ulp times the local condition number; finite gradients.

    The condition number speaks of small errors: it is held against the error where it predicts less than a hundredth of the
    smallest bin. Everything must be finite everywhere.
    """
    generator = torch.Generator().manual_seed(0)
    t, n = Spline(bins=8, bound=5.0), 4000
    layers = [extreme_params(t, n, generator, dtype) for _ in range(n_layers)]
    x = (3 * torch.randn(n, generator=generator, dtype=torch.float64)).to(dtype)
    for k in range(t._shape.bins + 1):
        x[k * 200 : (k + 1) * 200] = knots(t, layers[0])[k, k * 200 : (k + 1) * 200]
    x[-20:] = 1e6 * torch.randn(20, generator=generator).to(dtype)
    x[-28:-20] = torch.tensor([1e6, -1e6, 5.0, -5.0, 0.0, 5.0000005, -4.9999995, 1e-30], dtype=dtype)
    x.requires_grad_()
    error, rounding, z, log_slope = round_trip(t, layers, x)
    tame = 16 * rounding < 1e-4 * x.abs().clamp(min=1)
    assert tame.double().mean() > {1: 0.5, 10: 0.1}[n_layers] * (1.5 if dtype == torch.float64 else 1)
    assert (error[tame] <= 16 * rounding[tame]).all(), (error / rounding)[tame].max()
    if dtype == torch.float64:
        precise = 16 * rounding < 1e-9 * x.abs().clamp(min=t._shape.bound)
        assert precise.double().mean() > {1: 0.8, 10: 0.2}[n_layers]
        assert (error[precise] <= 1e-9 * x.abs().clamp(min=t._shape.bound)[precise]).all()
    (gradient,) = torch.autograd.grad((z + log_slope).sum(), x)
    assert torch.isfinite(gradient).all()


def test_spline_sticks_to_its_interval_and_to_the_identity_beyond(engine):
    t = Spline(bins=8, bound=5.0)
    params = 3 * torch.randn(t.n_params, 6, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([-5.0, 5.0, -1e6, 1e6, 5.0000005, -7.25])
    z, log_slope = t.forward(x, params)
    assert torch.equal(z[2:], x[2:]) and torch.equal(t.inverse(x, params)[0][2:], x[2:])
    torch.testing.assert_close(z, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_slope, torch.zeros(6), rtol=0, atol=1e-6)


def test_circular_spline_is_smooth_through_the_seam():
    """Slope and value agree on both sides of the cut, for any rotation."""
    t = CircularSpline(bins=6)
    params = torch.randn(t.n_params, 1, generator=torch.Generator().manual_seed(0)).double().expand(-1, 2)
    sides = torch.tensor([-math.pi, math.pi - 1e-9], dtype=torch.float64)
    z, log_slope = t.forward(sides, params)
    torch.testing.assert_close(wrap(z[0] - z[1]), torch.tensor(0.0).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(log_slope[0], log_slope[1], rtol=0, atol=1e-6)


def test_what_is_not_a_number_stays_so(engine):
    t = Spline()
    x, params = torch.randn(3), torch.zeros(t.n_params, 3)
    x[0] = torch.nan
    params[:, 1] = torch.nan
    for method in (t.forward, t.inverse):
        z, log_slope = method(x, params)
        assert torch.isnan(z).tolist() == torch.isnan(log_slope).tolist() == [True, True, False]


def test_without_numba_splines_are_tensor_operations(monkeypatch):
    t = Spline()
    x, params = torch.linspace(-6, 6, 9), torch.randn(t.n_params, 9, generator=torch.Generator().manual_seed(0))
    expected = t.forward(x, params)
    monkeypatch.setattr(_spline_kernel, "_loops", lambda: None)
    for a, b in zip(t.forward(x, params), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_refused_with_a_reason():
    t = Spline()
    x = torch.zeros(3, requires_grad=True)
    z, _ = t.forward(x, torch.zeros(t.n_params, 3))
    with pytest.raises(NotImplementedError, match="create_graph"):
        torch.autograd.grad(z.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        slope = torch.func.grad(lambda params: t.forward(torch.zeros(3), params)[0].sum())
        torch.func.grad(lambda params: slope(params).sum())(torch.zeros(t.n_params, 3))
