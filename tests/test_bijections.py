"""Every bijection through the shared checks, and the spline's numerics against a plain reference."""

import math

import pytest
import torch
from properties import (
    check_batch_independence,
    check_every_parameter_gets_a_gradient,
    check_gradients,
    check_inverse,
    check_log_det,
    check_vmap_equals_loop,
    randomise,
)
from scipy.stats import kstest

from sbi_flows.bijections import _spline_kernel
from sbi_flows.bijections._spline_shape import MIN_SLOPE
from sbi_flows.bijections.affine import Affine
from sbi_flows.bijections.autoregressive import Autoregressive
from sbi_flows.bijections.base import Chain
from sbi_flows.bijections.coupling import Coupling
from sbi_flows.bijections.elementwise import Elementwise
from sbi_flows.bijections.linear import LULinear, Permutation, Whiten, moments
from sbi_flows.bijections.smooth import SmoothCircle
from sbi_flows.bijections.spline import CircularSpline, Spline, wrap
from sbi_flows.bijections.support import parse_support
from sbi_flows.bijections.unconstrain import Unconstrain


def mixed(d):
    line, circle = Spline(bins=8), CircularSpline(bins=4)
    return [circle if i % 2 else line for i in range(d)]


BIJECTIONS = {
    "affine-coupling": lambda d, c: Coupling(Affine(), d, c),
    "affine-autoregressive": lambda d, c: Autoregressive(Affine(), d, c),
    "spline-coupling": lambda d, c: Coupling(Spline(bins=8), d, c),
    "spline-coupling-first-half": lambda d, c: Coupling(Spline(bins=2), d, c, active=range((d + 1) // 2)),
    "spline-autoregressive": lambda d, c: Autoregressive(Spline(bins=8), d, c),
    "spline-autoregressive-reversed": lambda d, c: Autoregressive(Spline(bins=5), d, c, order=range(d - 1, -1, -1)),
    "spline-autoregressive-shuffled": lambda d, c: Autoregressive(Spline(), d, c, order=[(2 * i + 1) % d for i in range(d)]),
    "spline-autoregressive-narrow": lambda d, c: Autoregressive(Spline(bins=3), d, c, hidden=(2, 3, 3)),
    "circular-coupling": lambda d, c: Coupling(CircularSpline(bins=8), d, c),
    "circular-autoregressive": lambda d, c: Autoregressive(CircularSpline(bins=8), d, c),
    "smooth-circular-coupling": lambda d, c: Coupling(SmoothCircle(4), d, c),
    "smooth-circular-autoregressive": lambda d, c: Autoregressive(SmoothCircle(3), d, c),
    "mixed-coupling": lambda d, c: Coupling(mixed(d), d, c),
    "mixed-autoregressive": lambda d, c: Autoregressive(mixed(d), d, c, order=range(d - 1, -1, -1)),
    "elementwise": lambda d, c: Elementwise(Spline(bins=6), d),
    "elementwise-mixed": lambda d, c: Elementwise(mixed(d), d),
    "lu": lambda d, c: LULinear(d),
    "lu-some": lambda d, c: LULinear(d, range(0, d, 2)),
    "permutation": lambda d, c: Permutation(range(d - 1, -1, -1)),
    "chain": lambda d, c: Chain(
        [LULinear(d), Autoregressive(Spline(), d, c), Permutation(range(d - 1, -1, -1)), Coupling(Affine(), d, c)]
    ),
}
SIZES = [(1, 0), (1, 2), (3, 0), (5, 2)]
every = pytest.mark.parametrize("name", BIJECTIONS)
sizes = pytest.mark.parametrize(("d", "c"), SIZES)


def build(name, d, c, seed=1):
    """A float64 bijection with random parameters, random rows (in and beyond the splines' interval), random context."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bijection = randomise(BIJECTIONS[name](d, c), scale=0.05, seed=seed).double()
    spread = 1.5 if "circular" in name or "mixed" in name else 2.5
    x = spread * torch.randn(12, d, generator=generator, dtype=torch.float64)
    if spread == 1.5:
        x = wrap(x)
    return bijection, x, torch.randn(12, c, generator=generator, dtype=torch.float64) if c else None


@every
@sizes
def test_inverse(name, d, c):
    check_inverse(*build(name, d, c), atol=1e-9)


@every
@sizes
def test_inverse_without_gradients_takes_the_same_values(name, d, c):
    bijection, x, context = build(name, d, c)
    with torch.no_grad():
        plain = bijection.inverse_and_log_det(x, context)
    for a, b in zip(bijection.inverse_and_log_det(x, context), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@every
@sizes
def test_log_det_is_the_jacobian(name, d, c):
    check_log_det(*build(name, d, c))


@every
@sizes
@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
def test_gradients(name, d, c, method):
    check_gradients(*build(name, d, c), method)


@every
@sizes
def test_batch_independence(name, d, c):
    bijection, x, context = build(name, d, c)
    check_batch_independence(lambda *a: bijection.forward_and_log_det(*a)[0], x, context, atol=1e-12)
    check_batch_independence(lambda *a: bijection.inverse_and_log_det(*a)[1], x, context, atol=1e-9)


@every
@pytest.mark.parametrize(("d", "c"), [(1, 0), (5, 2)])
def test_vmap_over_members_equals_a_loop(name, d, c):
    members = [build(name, d, c, seed)[0] for seed in (1, 2, 3)]
    if not list(members[0].parameters()):
        pytest.skip("no parameters to stack")
    _, x, context = build(name, d, c)
    check_vmap_equals_loop(members, "forward_and_log_det", x, context)
    check_vmap_equals_loop(members, "inverse_and_log_det", x, context)


@pytest.mark.parametrize("name", [name for name in BIJECTIONS if name != "permutation"])
def test_every_parameter_gets_a_gradient(name):
    bijection, x, context = build(name, 5, 2)

    def loss():
        z, log_det = bijection.forward_and_log_det(x, context)
        return z.square().sum() - log_det.sum()

    check_every_parameter_gets_a_gradient(bijection, loss)


@every
def test_one_context_broadcasts(name):
    bijection, x, context = build(name, 5, 2)
    one = bijection.forward_and_log_det(x, context[:1])
    many = bijection.forward_and_log_det(x, context[:1].expand(len(x), -1))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    back = bijection.inverse_and_log_det(one[0], context[:1])[0]
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in BIJECTIONS if "lu" not in n and "permutation" not in n and "chain" not in n])
def test_starts_as_the_identity(name):
    x = wrap(torch.randn(20, 3, dtype=torch.float64))
    z, log_det = BIJECTIONS[name](3, 0).double().forward_and_log_det(x)
    atol = 5e-6 if "smooth" in name else 1e-12  # the smooth ones start from numbers that float32 has rounded
    torch.testing.assert_close(z, x, rtol=0, atol=atol)
    torch.testing.assert_close(log_det, torch.zeros_like(x[:, 0]), rtol=0, atol=atol)


@sizes
def test_autoregressive_inverse_agrees_with_iterating_the_whole_net(d, c):
    """The usual inverse: the full forward net once a column, each time fixing one more column."""
    bijection, z, context = build("mixed-autoregressive", d, c)
    z = wrap(z)
    x = torch.zeros_like(z)
    for column in bijection.order:
        params = bijection.net(bijection._inputs(x.mT), None if context is None else context.mT)
        blocks, _ = bijection._columnwise.apply("inverse", z.mT, params)
        for rows, values in blocks:
            if column in rows.columns:
                x = x.clone()
                x[:, column] = values[rows.columns.index(column)].detach()
    torch.testing.assert_close(bijection.inverse_and_log_det(z, context)[0], x, rtol=0, atol=1e-11)


# --- The spline -------------------------------------------------------------------------------------------------------------


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


# --- Supports ---------------------------------------------------------------------------------------------------------------

SUPPORTS = {
    "interval": (2, 5),
    "lower": (1, None),
    "upper": (None, -1),
    "heavy": "heavy",
    "circular": ("circular", 0, 24),
    "real": "real",
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_support_map(name):
    t = Unconstrain(parse_support(SUPPORTS[name], 2)).double()
    t.location.fill_(0.3)
    t.scale.fill_(2.0)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-3, 3)
    x, log_det = t.inverse_and_log_det(z)
    back, log_det_back = t.forward_and_log_det(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-9)
    check_log_det(t, x, None, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(0, 1), (1000, 1001), (-3e5, 7), (0.1, None), (None, -0.3)])
def test_draws_never_leave_the_support(ends, dtype):
    """Latents of any size, the infinite included, land strictly inside."""
    (column,) = parse_support([ends], 1)
    t = Unconstrain([column]).to(dtype)
    z = torch.tensor([-math.inf, -1e30, -40, -9, -5, 0, 5, 9, 40, 1e30, math.inf], dtype=dtype)[:, None]
    x, _ = t.inverse_and_log_det(z)
    assert (x.double() > column.low).all() and (x.double() < column.high).all()
    assert torch.isfinite(t.forward_and_log_det(x)[0]).all()


def test_edges_are_inside_and_have_finite_gradients():
    t = Unconstrain(parse_support([(0, 1), (0, None)], 2))
    x = torch.tensor([[0.0, 0.0], [1.0, 1e30]], requires_grad=True)
    z, log_det = t.forward_and_log_det(x)
    assert torch.isfinite(z).all() and torch.isfinite(log_det).all()
    assert torch.isfinite(torch.autograd.grad((z.sum() + log_det.sum()), x)[0]).all()


# --- Whitening --------------------------------------------------------------------------------------------------------------


def test_whitening_gives_unit_covariance_under_the_weights():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator).double() @ torch.randn(3, 3, generator=generator).double() + 5
    weights = torch.rand(500, generator=generator).double()
    t = Whiten(3).double()
    t.fit(x, weights)
    z, _ = t.forward_and_log_det(x)
    w = weights / weights.sum()
    torch.testing.assert_close(w @ z, torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close((z * w[:, None]).T @ z, torch.eye(3).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_and_duplicated_columns_do_not_explode(dtype):
    generator = torch.Generator().manual_seed(0)
    a = 1e3 + torch.randn(200, 1, generator=generator, dtype=dtype)
    x = torch.cat([a, a, torch.full_like(a, 7.3), 2 * a - 5, torch.randn(200, 1, generator=generator, dtype=dtype)], 1)
    t = Whiten(5).to(dtype)
    t.fit(x)
    z, log_det = t.forward_and_log_det(x)
    assert torch.isfinite(z).all() and torch.isfinite(log_det).all() and z.abs().max() < 1e3
    assert t.matrix.abs().max() < 1e7


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_fewer_rows_than_columns_are_scaled_one_by_one(rows):
    _, root = moments(torch.randn(rows, 5, dtype=torch.float64), None, correlated=True)
    assert torch.equal(root, torch.diag(root.diagonal())) and (root.diagonal() > 0).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Spline(bins=1), "2 bins"),
        (lambda: Spline(bound=0), "bound > 0"),
        (lambda: Spline(min_size=0.2), "min_size"),
        (lambda: Affine(0), "max_log_scale > 0"),
        (lambda: Coupling(Affine(), 3, active=[3]), "some of the columns"),
        (lambda: Coupling([Affine()], 3), "one for each of 3"),
        (lambda: Autoregressive(Affine(), 3, order=[0, 0, 1]), "each of the columns"),
        (lambda: Autoregressive(Affine(), 3, hidden=()), "hidden layer"),
        (lambda: Permutation([0, 2]), "permutation of"),
        (lambda: LULinear(3, []), "at least one column"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_elementwise_splines_from_quantiles_make_marginals_normal():
    """Two separated wells and a skewed column: Kolmogorov-Smirnov on other draws than those fitted, false alarms 1e-4 a column."""
    generator = torch.Generator().manual_seed(0)

    def draws(n):
        wells = torch.where(torch.rand(n, generator=generator) < 0.8, 1.0, -1.0) + 0.15 * torch.randn(n, generator=generator)
        return torch.stack([wells, torch.randn(n, generator=generator).exp() / 2], 1).double()

    fitted = Elementwise(Spline(bins=16), 2).double().fit_quantiles(draws(20_000))
    z, _ = fitted.forward_and_log_det(draws(1000))
    assert min(kstest(z[:, j].detach().numpy(), "norm").pvalue for j in range(2)) > 1e-4
