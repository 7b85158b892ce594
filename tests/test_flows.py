"""Whole flows: inverses, densities that integrate to one, scaling, supports, stacked members, messages."""

import json
import math

import pytest
import torch
from properties import check_every_parameter_gets_a_gradient, check_vmap_equals_loop, midpoints, randomise

from sbi_flows.flows import build, cnf, maf, nsf, realnvp

FLOWS = {
    "realnvp": realnvp,
    "maf": maf,
    "nsf-autoregressive": nsf,
    "nsf-coupling": lambda *args, **options: nsf(*args, autoregressive=False, **options),
    # As exact as the others: a fixed grid, fine enough for rounding to be what is left.
    "cnf": lambda *args, **options: cnf(*args, **{"steps": 16, "tolerance": None, "embedding": 8, **options}),
}
DISCRETE = [name for name in FLOWS if name != "cnf"]


def based(name, base):
    """The option ``base=``, for flows that have a choice of bases."""
    return {} if name == "cnf" else {"base": base}


SUPPORTS = {
    "real": None,
    "circular": "circular",
    "interval": (-1, 2),
    "lower": (1, math.inf),
    "upper": (-math.inf, 1),
    "heavy": "heavy",
}


def small(name, d, c=0, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return randomise(FLOWS[name](d, c, layers=3, hidden=(16, 16), generator=generator, **options).double(), scale=0.05)


def rows(flow, n=40):
    c = flow.context_features
    generator = torch.Generator().manual_seed(5)
    context = torch.randn(n, c, generator=generator, dtype=torch.float64) if c else None
    return flow.sample(n, context, generator=generator), context


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(("d", "c"), [(1, 0), (1, 2), (3, 0), (5, 2)])
def test_inverse_and_log_det(name, support, d, c):
    flow = small(name, d, c, support=SUPPORTS[support])
    x, context = rows(flow)
    z, log_det = flow.to_base(x, context)
    back, log_det_back = flow.from_base(z, context)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    # Far out in a tail the log-determinant changes by up to 1e2 a unit of z.
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)
    draws, log_prob = flow.sample_and_log_prob(len(x), context, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(draws, context), log_prob, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "base"), [("cnf", "normal"), *((name, base) for name in DISCRETE for base in ("normal", "student-t", "mixture"))]
)
def test_stacked_members_are_the_members(name, base):
    members = [small(name, 3, 2, seed=s, support=["real", "circular", (0, 1)], **based(name, base)) for s in range(3)]
    x, context = rows(members[0])
    check_vmap_equals_loop(members, "log_prob", x, context, atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_gets_a_gradient(name):
    flow = small(name, 5, 2, support=["real", "circular", (0, 1), "real", "circular"], **based(name, "mixture"))
    x, context = rows(flow)
    check_every_parameter_gets_a_gradient(flow, lambda: -flow.log_prob(x, context).mean())


def axis(support: str, n: int):
    """Evenly spaced midpoints, the x they stand for over (nearly) all of a support, and the log of dx over their spacing."""
    if support in ("real", "circular"):
        low, high = {"real": (-20.0, 20.0), "circular": (-math.pi, math.pi)}[support]
        grid = midpoints(low, high, n)
        return grid, grid, torch.zeros(n)
    if support == "interval":
        # A density may diverge (integrably) at its ends, which an even grid would resolve only slowly.
        grid = midpoints(-9.0, 9.0, n)
        return grid, -1 + 3 * torch.special.ndtr(grid), math.log(3 / math.sqrt(2 * math.pi)) - 0.5 * grid.square()
    grid = midpoints(-25.0, 25.0, n)
    if support == "heavy":
        return grid, torch.sinh(grid), torch.log(torch.cosh(grid))
    sign = 1 if support == "lower" else -1
    return grid, 1 + sign * torch.exp(grid), grid


@pytest.mark.parametrize("name", ["realnvp", "nsf-autoregressive", "nsf-coupling"])
@pytest.mark.parametrize("support", SUPPORTS)
def test_integral_is_one_in_one_dimension(name, support):
    """Midpoint sums converge as the square of the spacing: within 1e-4 here, edges and tails included."""
    flow = small(name, 1, 1, support=SUPPORTS[support])
    grid, x, log_jacobian = axis(support, 40_000)
    with torch.no_grad():
        log_prob = flow.log_prob(x[:, None], torch.full((1, 1), 0.7).double()) + log_jacobian
    assert abs(log_prob.exp().sum().item() * (grid[1] - grid[0]).item() - 1) < 1e-4


@pytest.mark.parametrize("pair", [("real", "circular"), ("interval", "interval"), ("circular", "interval"), ("real", "real")])
def test_integral_is_one_in_two_dimensions(pair):
    flow = small("nsf-autoregressive", 2, support=[SUPPORTS[s] or "real" for s in pair])
    (first, x, log_dx), (second, y, log_dy) = (axis(s, 700) for s in pair)
    with torch.no_grad():
        log_prob = flow.log_prob(torch.cartesian_prod(x, y)) + (log_dx[:, None] + log_dy).flatten()
    assert abs(log_prob.exp().sum() * (first[1] - first[0]) * (second[1] - second[0]) - 1).item() < 1e-3


@pytest.mark.parametrize("name", DISCRETE)
def test_draws_follow_the_density(name):
    """The mean of log p and of each column over draws is what the density gives on a grid, within 5 sigma (false alarm 6e-7)."""
    flow = small(name, 2, support=["circular", (-1, 2)])
    axes = [midpoints(-math.pi, math.pi, 600), midpoints(-1.0, 2.0, 600)]
    points = torch.cartesian_prod(*axes)
    with torch.no_grad():
        log_p = flow.log_prob(points)
        p = log_p.exp() * (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
        x, drawn_log_p = flow.sample_and_log_prob(40_000, generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([drawn_log_p[:, None], x], 1)
    expected = (p[:, None] * torch.cat([log_p[:, None], points], 1)).sum(0)
    sigma = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - expected).abs() < 5 * sigma + 1e-3).all()


@pytest.mark.parametrize("name", FLOWS)
def test_seeds_and_dtypes(name):
    flow, again = (FLOWS[name](3, 1, layers=2, hidden=(8, 8), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    context = torch.zeros(1, 1)
    draws = [f.sample(7, context, generator=torch.Generator().manual_seed(0)) for f in (flow, again, again)]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[1], draws[2]) and draws[0].dtype == torch.float32
    x = torch.randn(7, 3)
    randomise(flow, 0.05)
    single = flow.log_prob(x, context)
    double = flow.double().log_prob(x.double(), context.double())
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_large_batches_are_cut_without_a_trace(name):
    flow = small(name, 3, 2).float()
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(9000, 3, generator=generator), torch.randn(9000, 2, generator=generator)
    with torch.no_grad():
        whole, cut = flow._log_prob(x, context), flow.log_prob(x, context)
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-3)
    assert flow.sample(9000, context).shape == (9000, 3)
    assert flow.sample(9000, context[:1]).shape == (9000, 3)
    assert flow.sample(0, context[:1]).shape == (0, 3)


def test_densities_are_differentiable_in_x_and_context():
    flow = small("nsf-autoregressive", 3, 2, support=["real", (0, 1), "circular"])
    x, context = rows(flow, 5)
    x.requires_grad_()
    context.requires_grad_()
    assert torch.autograd.gradcheck(flow.log_prob, (x, context), atol=1e-4)


@pytest.mark.parametrize("name", ["maf", "nsf-autoregressive"])
def test_pushing_the_base_forward_is_differentiable(name):
    """Reverse Kullback-Leibler losses differentiate draws with respect to the parameters."""
    flow = small(name, 3, 0)
    z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    check_every_parameter_gets_a_gradient(flow, lambda: flow.from_base(z)[0].square().sum() + flow.from_base(z)[1].sum())


@pytest.mark.parametrize("name", FLOWS)
def test_spec_is_json_and_rebuilds(name):
    flow = small(name, 3, 1, support=[(0, math.inf), "circular", "heavy"], **based(name, {"name": "student-t", "df": 3}))
    again = build(json.loads(json.dumps(flow.spec, allow_nan=False))).double()
    again.load_state_dict(flow.state_dict())
    x, context = rows(flow)
    assert torch.equal(again.log_prob(x, context), flow.log_prob(x, context))


def test_an_untrained_flow_is_the_gaussian_fit():
    x = torch.randn(2000, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 7
    flow = nsf(3).double().fit_scaling(x)
    mean, cov = x.mean(0), torch.cov(x.T, correction=0)
    expected = torch.distributions.MultivariateNormal(mean, cov).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), expected)


@pytest.mark.parametrize("scaling", ["whiten", "standard", "none"])
def test_fit_scaling_leaves_angles_alone_and_minds_weights(scaling):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 1.0, 2.0]) + 3
    weights = (torch.arange(400) < 200).double()
    context = 10 + 4 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    flow = nsf(3, 2, support=["real", "circular", "real"], scaling=scaling).double()
    flow.fit_scaling(x, context, weights)
    half = nsf(3, 2, support=["real", "circular", "real"], scaling=scaling).double().fit_scaling(x[:200], context[:200])
    torch.testing.assert_close(flow.log_prob(x, context), half.log_prob(x, context))
    y, _ = flow.scaling.forward_and_log_det(x[:200])
    assert torch.equal(y[:, 1], x[:200, 1])
    spread = y[:, [0, 2]].std(0, correction=0)
    torch.testing.assert_close(spread, torch.ones(2).double() if scaling != "none" else x[:200, [0, 2]].std(0, correction=0))


def test_fit_scaling_leaves_rows_outside_the_support_out():
    x = torch.tensor([[0.2], [0.4], [0.9], [-3.0], [math.nan], [7.0]], dtype=torch.float64)
    a, b = (nsf(1, support=(0, 1)).double().fit_scaling(rows) for rows in (x, x[:3]))
    assert torch.equal(a.log_prob(x[:3]), b.log_prob(x[:3]))
    with pytest.raises(ValueError, match="at least one finite row inside"):
        nsf(1, support=(0, 1)).fit_scaling(x[3:])


@pytest.mark.parametrize("support", ["lower", "heavy"])
def test_scales_follow_the_data(support):
    """Data in other units give the same fit, moved: half-lines and heavy tails take their scale from the data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.exp(2 * torch.randn(500, 1, generator=generator, dtype=torch.float64))
    x = x * torch.where(torch.rand(500, 1, generator=generator) < 0.5, -1, 1) if support == "heavy" else x
    grammar = {"lower": (0, math.inf), "heavy": "heavy"}[support]
    small_units, large_units = (nsf(1, support=grammar).double().fit_scaling(unit * x) for unit in (1e-9, 1e9))
    difference = small_units.log_prob(1e-9 * x) - large_units.log_prob(1e9 * x)
    torch.testing.assert_close(difference, torch.full_like(difference, 18 * math.log(10)))


def test_outside_the_support():
    flow = small("nsf-autoregressive", 2, support=[(0, 1), (0, math.inf)])
    x = torch.tensor([[0.5, 1.0], [2.0, 1.0], [0.5, -1.0], [0.5, math.inf], [math.nan, 1.0]]).double().requires_grad_()
    log_prob = flow.log_prob(x)
    assert torch.isfinite(log_prob[0]) and (log_prob[1:4] == -math.inf).all() and torch.isnan(log_prob[4])
    (grad,) = torch.autograd.grad(log_prob[0], x)
    assert torch.isfinite(grad[:4]).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: nsf(2).log_prob(torch.zeros(2)), r"x\[None\]"),
        (lambda: nsf(2).log_prob(torch.zeros(3, 3)), r"shape \(n, 2\)"),
        (lambda: nsf(2, 1).log_prob(torch.zeros(3, 2)), "conditional"),
        (lambda: nsf(2).log_prob(torch.zeros(3, 2), torch.zeros(3, 1)), "no context"),
        (lambda: nsf(2, 1).log_prob(torch.zeros(3, 2), torch.zeros(2, 1)), r"\(3, 1\) or \(1, 1\)"),
        (lambda: nsf(2, bins=1), "2 bins"),
        (lambda: nsf(2, base="cauchy"), "Expected base"),
        (lambda: nsf(2, scaling="zca"), "Expected scaling"),
        (lambda: nsf(0), "at least one column"),
        (lambda: nsf(2, hidden=()), "hidden layer"),
        (lambda: build({"architecture": "glow"}), "architecture"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", DISCRETE)
def test_on_a_gpu_the_numbers_agree_and_nothing_waits(name):
    flow = small(name, 4, 2, support=["real", "circular", (0, 1), (0, math.inf)]).float()
    x, context = (values.float() for values in rows(flow.double(), 500))
    flow = flow.float()
    expected = flow.log_prob(x, context)
    flow, x, context = flow.cuda(), x.cuda(), context.cuda()
    flow.log_prob(x, context).sum().backward()  # constants are made on the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        log_prob = flow.log_prob(x, context)
        log_prob.mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(log_prob.cpu(), expected, rtol=1e-3, atol=1e-3)
    draws = flow.sample(100, context[:1], generator=torch.Generator("cuda").manual_seed(0))
    assert draws.is_cuda and torch.isfinite(flow.log_prob(draws, context[:1])).all()
