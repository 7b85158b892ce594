"""Spheres, circles, rotations and boxes: shortest paths, divergences, integrals of one, and densities that are learned."""

import math

import numpy as np
import pytest
import torch
from properties import randomise
from test_rigid import sphere_grid

from sbi_flows.bijections.manifolds import factor
from sbi_flows.flows import build, manifold_flow
from sbi_flows.losses import Batch, manifold_flow_matching
from sbi_flows.training import ArraySource, train

ENTRIES = ["real", "circular", "rotation", ("sphere", 2), ("sphere", 3), ("sphere", 5), (-1.0, 3.0)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def strong(support, size=0.15, **settings):
    flow = manifold_flow(support, hidden=(12, 10), generator=generator(), **settings)
    return randomise(flow.double(), size)


def nodes(n, low, high):
    node, weight = np.polynomial.legendre.leggauss(n)
    half = 0.5 * (high - low)
    return torch.from_numpy(low + half * (node + 1)), torch.from_numpy(half * weight)


def grid_of(entry):
    """Points and weights of a quadrature that is exact for smooth densities."""
    if entry == "rotation":
        return sphere_grid(14)
    if entry == "circular":
        angle = 2 * math.pi * torch.arange(60, dtype=torch.float64) / 60 - math.pi
        return angle[:, None], torch.full((60,), 2 * math.pi / 60, dtype=torch.float64)
    if entry == ("sphere", 3):
        height, weight = nodes(40, -1, 1)
        angle, share = grid_of("circular")
        z, a = torch.meshgrid(height, angle[:, 0], indexing="ij")
        across = (1 - z.square()).sqrt()
        return torch.stack([across * a.cos(), across * a.sin(), z], -1).reshape(-1, 3), (weight[:, None] * share).reshape(-1)
    points, weights = nodes(60, *((-9, 9) if entry == "real" else entry))
    return points[:, None], weights


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_paths_go_from_start_to_end_at_constant_speed(entry):
    part, like = factor(entry), torch.zeros((), dtype=torch.float64)
    start, end = (part.sample(20, generator(seed), like) for seed in (0, 1))
    one = torch.ones(20, dtype=torch.float64)
    torch.testing.assert_close(part.path(start, end, 0 * one)[0], start, rtol=0, atol=1e-10)
    reached = part.path(start, end, one)[0]
    if entry == "rotation":  # q or -q
        reached = reached * (reached * end).sum(0).sign()
    torch.testing.assert_close(reached, end, rtol=0, atol=1e-10)
    step, speeds = 1e-5, []
    for t in (0.1, 0.5, 0.9):
        point, velocity = part.path(start, end, t * one)
        later, sooner = (part.path(start, end, (t + h) * one)[0] for h in (step, -step))
        change = torch.remainder(later - sooner + math.pi, 2 * math.pi) - math.pi if entry == "circular" else later - sooner
        torch.testing.assert_close(velocity, change / (2 * step), rtol=0, atol=1e-7)
        torch.testing.assert_close(part.settled(point), point, rtol=0, atol=1e-12)
        speeds.append(velocity.norm(dim=0))
    torch.testing.assert_close(speeds[0], speeds[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(speeds[0], speeds[2], rtol=0, atol=1e-9)


def test_the_shortest_path_on_a_sphere_is_the_angle_long():
    part = factor(("sphere", 3))
    start, end = (part.sample(50, generator(seed), torch.zeros((), dtype=torch.float64)) for seed in (0, 1))
    speed = part.path(start, end, torch.full((50,), 0.3, dtype=torch.float64))[1].norm(dim=0)
    torch.testing.assert_close(speed, torch.acos((start * end).sum(0)), rtol=0, atol=1e-9)
    near = part.settled(start + 1e-9 * end)
    point, velocity = part.path(start, near, torch.full((50,), 0.5, dtype=torch.float64))
    assert bool(torch.isfinite(point).all())
    torch.testing.assert_close(velocity, near - start, rtol=0, atol=1e-12)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_what_is_seen_changes_along_moves_as_said(entry):
    part = factor(entry)
    x = part.sample(4, generator(), torch.zeros((), dtype=torch.float64))
    for move in range(part.moves):
        u = torch.zeros(part.moves, 4, dtype=torch.float64)
        u[move] = 1
        jacobian = torch.autograd.functional.jacobian(lambda rows: part.seen_of(rows).sum(1), x)  # rows do not mix
        along = torch.einsum("scn,cn->sn", jacobian, part.velocity(x, u))
        torch.testing.assert_close(along, part.seen_along(x)[:, move], rtol=0, atol=1e-12)


INTEGRATED = [["real"], ["circular"], [("sphere", 3)], ["rotation"], [(-1.0, 3.0)], [(0.0, 1.0), "circular"]]


@pytest.mark.parametrize("support", INTEGRATED, ids=str)
def test_densities_integrate_to_one(support):
    flow = strong(support, tolerance=None)
    x, weight = grid_of(support[0])
    if len(support) == 2:
        other, share = grid_of(support[1])
        x = torch.cat([x.repeat_interleave(len(other), 0), other.repeat(len(x), 1)], 1)
        weight = (weight[:, None] * share).reshape(-1)
    with torch.no_grad():
        density = flow.log_prob(x).exp()
    assert float((weight * density).sum()) == pytest.approx(1, abs=1e-3)
    assert float(density.max()) > 1.1 * float(density.min())


def test_products_are_joint():
    """What happens on one factor depends on the others, and draws carry the density that log_prob gives them."""
    flow = strong([("sphere", 3), "circular", "rotation", (0.0, 1.0), "real"], tolerance=None)
    x, log_prob = flow.sample_and_log_prob(10, generator=generator())
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=5e-3)  # a solve each way of eight steps
    torch.testing.assert_close(x[:, :3].norm(dim=1), torch.ones(10, dtype=torch.float64))
    assert bool(((x[:, 8] > 0) & (x[:, 8] < 1)).all())
    negative = x.clone()
    negative[:, 4:8] *= -1
    torch.testing.assert_close(flow.log_prob(negative), flow.log_prob(x), rtol=0, atol=1e-10)
    shifted = x.clone()
    shifted[:, 3] += 2 * math.pi
    torch.testing.assert_close(flow.log_prob(shifted), flow.log_prob(x), rtol=0, atol=1e-9)
    again = build(flow.spec).double()
    again.load_state_dict(flow.state_dict())
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x))


def test_walls_hold():
    flow = strong([(0.0, 1.0)], 0.3, tolerance=None)
    x = flow.sample(300, generator=generator())
    assert bool(((x >= 0) & (x <= 1)).all())
    value = flow.log_prob(torch.tensor([[-0.1], [0.0], [1.0], [1.1]], dtype=torch.float64))
    assert torch.isneginf(value).tolist() == [True, False, False, True]


def test_a_flow_learns_a_density_on_the_sphere():
    """exp(k z) on S2, whose negative log-likelihood is exact: a few hundred steps find most of the gain over uniform."""
    k, n = 4.0, 3000
    u = torch.rand(n, 2, generator=generator(), dtype=torch.float64)
    z = 1 + torch.log(u[:, 0] + (1 - u[:, 0]) * math.exp(-2 * k)) / k
    across, angle = (1 - z.square()).clamp(min=0).sqrt(), 2 * math.pi * u[:, 1]
    x = torch.stack([across * angle.cos(), across * angle.sin(), z], 1)
    flow = manifold_flow([("sphere", 3)], hidden=(32, 32), tolerance=None, generator=generator())
    train(flow, ArraySource(x, validation_rows=range(100)), loss=manifold_flow_matching, max_epochs=5, batch_size=50, random_state=0)
    exact = -(k * z[:500]).mean() + math.log(4 * math.pi * math.sinh(k) / k)
    with torch.no_grad():
        reached = -flow.log_prob(x[:500]).mean()
    assert reached < math.log(4 * math.pi) - 0.8 * (math.log(4 * math.pi) - exact)


def test_a_flow_learns_a_density_that_ends_at_a_wall():
    """2 x on [0, 1]: largest at one wall, zero at the other; entropy 1/2 - ln 2."""
    x = torch.rand(3000, 1, generator=generator(), dtype=torch.float64).sqrt()
    flow = manifold_flow([(0.0, 1.0)], hidden=(32, 32), tolerance=None, generator=generator())
    train(flow, ArraySource(x, validation_rows=range(100)), loss=manifold_flow_matching, max_epochs=5, batch_size=50, random_state=0)
    with torch.no_grad():
        gain = flow.log_prob(x[:500]).mean()
    assert gain > 0.7 * (2 * x[:500]).log().mean()


def test_loss_is_one_number_a_row():
    flow = manifold_flow(["real", ("sphere", 3)], hidden=(8, 8))
    assert manifold_flow_matching(flow, Batch(flow.sample(7)), generator()).shape == (7,)


@pytest.mark.parametrize(
    ("support", "match"),
    [("circular", "a list with one entry"), (["torus"], "Expected 'real', 'circular'"), ([("sphere", 1)], "two columns or more"),
     ([(0, math.inf)], "two finite ends"), ([], "a list with one entry")],
)  # fmt: skip
def test_bad_entries(support, match):
    with pytest.raises(ValueError, match=match):
        manifold_flow(support)


def test_points_off_the_sphere_are_told():
    flow = manifold_flow([("sphere", 3)], tolerance=None)
    with pytest.raises(ValueError, match=r"unit vectors of 3 columns; got lengths from 1.7"):
        flow.log_prob(torch.ones(2, 3))
