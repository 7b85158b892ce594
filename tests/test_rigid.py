"""Rotations and rigid bodies: the divergence, the double cover, the integral over SO(3), and what is learned of a tetrahedron."""

import math

import numpy as np
import pytest
import torch
from properties import randomise

from sbi_flows.bijections.quaternions import conjugate, from_rate, multiply, to_matrix, to_rate
from sbi_flows.distributions.rigid import FreeRigidNormal, RigidNormal, log_length_density
from sbi_flows.flows import build, free_rigid_flow, rigid_flow
from sbi_flows.losses import Batch, rigid_flow_matching
from sbi_flows.physics.molecules import Ice, Tetrahedron
from sbi_flows.training import ArraySource, train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def strong(bodies=1, *, positions=True, tolerance=None, steps=4):
    flow = rigid_flow(bodies, positions=positions, hidden=(12, 10), tolerance=tolerance, steps=steps, length=2.0, generator=generator())
    return randomise(flow.double(), 0.2)


def moved(x, bodies, body, move, step):
    """Rows with one body shifted along an axis, or turned about one of its own."""
    rows = x.clone().unflatten(1, (bodies, 7))
    if move < 3:
        rows[:, body, move] += step
    else:
        rate = torch.zeros(3, len(x), dtype=x.dtype)
        rate[move - 3] = step
        rows[:, body, 3:] = multiply(rows[:, body, 3:].T, from_rate(rate)).T
    return rows.flatten(1)


def test_quaternions_are_rotations():
    p, q = torch.randn(2, 4, 20, generator=generator(), dtype=torch.float64).unbind(0)
    product = torch.einsum("ijn,jkn->ikn", to_matrix(p), to_matrix(q))
    torch.testing.assert_close(to_matrix(multiply(p, q)), product)
    torch.testing.assert_close(to_matrix(-q), to_matrix(q))
    torch.testing.assert_close(torch.linalg.det(to_matrix(q).movedim(-1, 0)), torch.ones(20, dtype=torch.float64))
    unit = q / q.norm(dim=0)
    torch.testing.assert_close(to_matrix(from_rate(to_rate(unit))), to_matrix(unit))
    torch.testing.assert_close(multiply(unit, conjugate(unit))[0], torch.ones(20, dtype=torch.float64))
    assert to_rate(unit).norm(dim=0).max() <= math.pi


def test_divergence_is_the_sum_of_derivatives_along_moves():
    flow = strong(2)
    bijection, x, step = flow.bijection, flow.base.sample(5, generator()), 1e-5
    slope, divergence = bijection._slope(0.3, x.mT)
    expected = torch.zeros(5, dtype=torch.float64)
    for body in range(2):
        for move in range(6):
            ends = [bijection.rates(torch.tensor(0.3), moved(x, 2, body, move, h))[move // 3][body, move % 3] for h in (step, -step)]
            expected += (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(divergence, expected, rtol=1e-7, atol=1e-7)
    radial = (slope.unflatten(0, (2, 7))[:, 3:] * x.mT.unflatten(0, (2, 7))[:, 3:]).sum(1)
    assert radial.abs().max() < 1e-12  # quaternions stay on their sphere


def test_a_quaternion_and_its_negative_have_one_density():
    flow = strong(2)
    x = flow.sample(10, generator=generator())
    for first in (3, 10):
        negative = x.clone()
        negative[:, first : first + 4] *= -1
        torch.testing.assert_close(flow.log_prob(negative), flow.log_prob(x), rtol=0, atol=1e-10)
    flow = flow.float()
    torch.testing.assert_close(flow.log_prob(negative.float()), flow.log_prob(x.float()), rtol=0, atol=1e-6)


def sphere_grid(n=10):
    """Points of the unit sphere in four dimensions and their areas: Gauss-Legendre in one coordinate of Hopf, evenly in the two angles."""
    node, weight = np.polynomial.legendre.leggauss(n)
    share, angle = torch.from_numpy((node + 1) / 2), 2 * math.pi * torch.arange(2 * n, dtype=torch.float64) / (2 * n)
    s, a, b = torch.meshgrid(share, angle, angle, indexing="ij")
    grid = torch.stack([(1 - s).sqrt() * a.cos(), (1 - s).sqrt() * a.sin(), s.sqrt() * b.cos(), s.sqrt() * b.sin()], -1)
    area = torch.from_numpy(weight / 2)[:, None, None] * 0.5 * (math.pi / n) ** 2
    return grid.reshape(-1, 4), area.expand_as(s).reshape(-1)


def test_integral_over_rotations_is_one():
    flow = strong(positions=False, steps=8)
    grid, area = sphere_grid(20)  # with 10 nodes the quadrature is off by .0015, with 14 by .0002
    with torch.no_grad():
        density = flow.log_prob(grid).exp()
    assert float((area * density).sum()) == pytest.approx(1, abs=1e-4)
    assert density.max() > 1.2 * density.min()
    assert area.sum() == pytest.approx(2 * math.pi**2)


def test_draws_agree_with_their_density_and_are_unit_quaternions():
    flow = strong(2, tolerance=1e-3)
    x, log_prob = flow.sample_and_log_prob(10, generator=generator())
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-2)  # a solve each way, with errors of about the tolerance
    torch.testing.assert_close(x.unflatten(1, (2, 7))[..., 3:].norm(dim=-1), torch.ones(10, 2, dtype=torch.float64))
    again = build(flow.spec).double()
    again.load_state_dict(flow.state_dict())
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_base_is_normalised():
    base = RigidNormal(1, positions=False)
    grid, area = sphere_grid(4)
    assert (area * base.log_prob(grid).exp().double()).sum() == pytest.approx(1, abs=1e-6)


def test_tetrahedron_is_exact():
    """ln Z without the cubic field by quadrature over orientations; draws have the mean of the trap. 5 sigma: false alarm 1e-6."""
    energy = Tetrahedron(cubic=0.0, trap=2.0, field=2.0)
    grid, area = sphere_grid(14)
    rows = torch.cat([torch.zeros(len(grid), 3, dtype=torch.float64), grid], 1)
    turning = (area * torch.exp(-energy(rows))).sum().log()
    assert energy.log_z == pytest.approx(turning.item() + 1.5 * math.log(2 * math.pi / 2.0), abs=1e-9)
    flipped = torch.cat([rows[:, :3], -rows[:, 3:]], 1)
    torch.testing.assert_close(energy(flipped), energy(rows))
    x = energy.sample(4000, generator())
    along = energy.sites_of(x)[:, 0, :, 2] @ energy.charges
    pull = 2.0 * float(energy.dipole.norm())
    langevin = (1 / math.tanh(pull) - 1 / pull) * float(energy.dipole.norm())
    assert abs(along.mean() - langevin) < 5 * along.std() / math.sqrt(4000)


def test_a_flow_learns_the_dipole():
    """Orientations in a field: the share of the entropy a few hundred steps find, against the exact negative log-likelihood."""
    energy = Tetrahedron(cubic=0.0, field=2.0)
    x = energy.sample(2000, generator())
    flow = rigid_flow(hidden=(32, 32), tolerance=None, steps=2, generator=generator())
    train(flow, ArraySource(x, validation_rows=range(100)), loss=rigid_flow_matching, max_epochs=5, batch_size=50, random_state=0)
    exact = (energy(x[:400]) + energy.log_z).mean()
    start = -flow.base.log_prob(x[:400].float()).mean()
    reached = -flow.log_prob(x[:400]).mean()
    assert reached < start - 0.6 * (start - exact)


def test_ice_is_periodic_and_does_not_know_signs_of_quaternions():
    energy = Ice()
    x = energy.start(3, generator())
    rows = energy.rows(x).clone()
    rows[:, 2, 3:] *= -1
    torch.testing.assert_close(energy(rows.flatten(1)), energy(x))
    free = Ice(pin=1e-9)
    rows[:, 1, 0] += free.side
    torch.testing.assert_close(free(rows.flatten(1)), free(x), rtol=1e-6, atol=1e-6)
    assert energy.features == 56 and torch.isfinite(energy(x)).all()
    apart = energy.sites_of(x)[:, 0, 1] - energy.sites_of(x)[:, 0, 0]
    torch.testing.assert_close(apart.norm(dim=-1), torch.full((3,), 0.9572, dtype=torch.float64))


def test_two_waters_have_the_energy_of_tip4p():
    """Written out: Lennard-Jones of the oxygens and nine Coulomb terms, at a distance inside the switch."""
    energy = Ice(2, pin=1e-9)
    x = energy.start(1, generator())
    centres, sites = energy.rows(x)[..., :3], energy.sites_of(x)
    total = 0.0
    reach = energy.side / 2
    for i in range(energy.bodies):
        for j in range(i):
            shift = -energy.side * torch.round((centres[0, i] - centres[0, j]) / energy.side)
            r = float((centres[0, i] - centres[0, j] + shift).norm())
            t = min(max((r / reach - 0.9) / 0.1, 0.0), 1.0)
            near = (3.15365 / r) ** 6
            pair = 4 * 0.648520 * (near**2 - near)
            for a, ca in zip((1, 2, 3), (0.52, 0.52, -1.04), strict=True):
                for b, cb in zip((1, 2, 3), (0.52, 0.52, -1.04), strict=True):
                    pair += 1389.35458 * ca * cb / float((sites[0, i, a] + shift - sites[0, j, b]).norm())
            total += pair * (1 - t**3 * (10 - 15 * t + 6 * t * t))
    assert energy(x).item() == pytest.approx(total / (0.00831446262 * 100.0), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: rigid_flow(0), "bodies"),
        (lambda: rigid_flow(hidden=(3,)), "two hidden layers"),
        (lambda: rigid_flow().log_prob(torch.ones(2, 7)), "unit quaternions"),
        (lambda: Tetrahedron(charges=(1.0, 0.0, 0.0, 0.0)), "sum zero"),
        (lambda: Ice(0), "cells"),
        (lambda: rigid_flow_matching(rigid_flow(), Batch(torch.zeros(2, 7)), generator()), "unit quaternions"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_quaternions_of_any_length_have_the_density_of_their_direction():
    """Of two free rows of one rotation the densities differ by that of lengths; over all of space they integrate to one."""
    unit = strong(steps=24)
    free = free_rigid_flow(hidden=(12, 10), tolerance=None, steps=24, length=2.0, generator=generator())
    free = free.double()
    free.bijection.rigid.load_state_dict(unit.bijection.state_dict())
    x = free.sample(20, generator=generator(1))
    turn = x[:, 3:]
    on_sphere = torch.cat([x[:, :3], turn / turn.norm(dim=1, keepdim=True)], 1)
    expected = unit.log_prob(on_sphere) + log_length_density(turn)
    torch.testing.assert_close(free.log_prob(x), expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(free.log_prob(torch.cat([x[:, :3], -turn], 1)), free.log_prob(x), rtol=0, atol=1e-6)
    z, log_det = free.to_base(x)
    back, log_back = free.from_base(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_back, -log_det, rtol=0, atol=1e-4)


def test_lengths_have_a_density_that_integrates_to_one():
    length = torch.linspace(1e-6, 4, 4001, dtype=torch.float64)
    density = log_length_density(torch.stack([length, 0 * length, 0 * length, 0 * length], 1)).exp()
    assert abs(float(torch.trapezoid(density * length**3, length)) - 1) < 1e-8
    drawn = FreeRigidNormal(2).double().sample(20_000, generator()).unflatten(1, (2, 7))[..., 3:].square().sum(-1)
    # Gamma of shape 8 and mean one, variance 1/8: within four standard errors, false alarms 6e-5.
    assert abs(float(drawn.mean()) - 1) < 4 * (1 / 8 / drawn.numel()) ** 0.5


def test_free_flows_are_built_again():
    flow = free_rigid_flow(2, length=3.0, hidden=(8, 8))
    again = build(flow.spec)
    again.load_state_dict(flow.state_dict())
    x = flow.sample(3, generator=generator())
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x))
