"""Every bijection through the shared checks."""

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

from sbi_flows.bijections.affine import Affine
from sbi_flows.bijections.autoregressive import Autoregressive
from sbi_flows.bijections.base import Chain
from sbi_flows.bijections.coupling import Coupling
from sbi_flows.bijections.elementwise import Elementwise
from sbi_flows.bijections.linear import LULinear, Permutation
from sbi_flows.bijections.smooth import SmoothCircle
from sbi_flows.bijections.spline import CircularSpline, Spline, wrap


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
