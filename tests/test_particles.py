"""Mean-free bases, the equivariant velocity and its divergence, alignment of noise, and the flow made of them."""

import math

import pytest
import torch
from properties import randomise

from sbi_flows.bijections.mean_free import from_mean_free, mean_free_basis, to_mean_free
from sbi_flows.bijections.particles import ParticleNet
from sbi_flows.flows import build, pair_flow, particle_flow
from sbi_flows.losses import Batch, flow_matching
from sbi_flows.losses.alignment import align, reordered, rotated
from sbi_flows.training import ArraySource, train


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SIZES = {particle_flow: {"products": 4, "hidden": (8, 7)}, pair_flow: {"width": 8, "layers": 2, "triangles": 3}}
both = pytest.mark.parametrize("build_flow", SIZES)


def strong(particles=4, dimensions=2, *, build_flow=particle_flow, tolerance=None, **options):
    """A flow with random weights, so that nothing vanishes."""
    settings = SIZES[build_flow] | {"radial": 6, "tolerance": tolerance, "generator": torch.Generator().manual_seed(0)}
    return randomise(build_flow(particles, dimensions, **settings, **options).double(), 0.1)


def turned_and_reordered(y, particles, seed=5):
    """The same configurations turned, reflected and in another order."""
    x = from_mean_free(y, particles).unflatten(1, (particles, -1))
    turn, _ = torch.linalg.qr(normal(x.shape[2], x.shape[2], seed=seed))
    order = torch.randperm(particles, generator=torch.Generator().manual_seed(seed))
    return to_mean_free((x[:, order] @ turn).flatten(1), particles)


@pytest.mark.parametrize("particles", [2, 5])
def test_mean_free_coordinates_keep_lengths_and_forget_the_centre(particles):
    basis = mean_free_basis(particles)
    torch.testing.assert_close(basis.T @ basis, torch.eye(particles - 1, dtype=torch.float64))
    x = normal(7, particles * 3)
    y = to_mean_free(x, particles)
    centred = (x.unflatten(1, (particles, 3)) - x.unflatten(1, (particles, 3)).mean(1, keepdim=True)).flatten(1)
    torch.testing.assert_close(from_mean_free(y, particles), centred)
    torch.testing.assert_close(y.norm(dim=1), centred.norm(dim=1))


@both
@pytest.mark.parametrize(("particles", "dimensions"), [(2, 1), (4, 2), (5, 3)])
def test_divergence_is_the_trace_of_the_jacobian(particles, dimensions, build_flow):
    continuous = strong(particles, dimensions, build_flow=build_flow).continuous
    t, y = torch.tensor(0.4, dtype=torch.float64), normal(3, (particles - 1) * dimensions)
    velocity, divergence = continuous.velocity_and_divergence(t, y)
    torch.testing.assert_close(velocity, continuous.velocity(t, y), rtol=0, atol=1e-12)
    for row, value in zip(y, divergence, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: continuous.velocity(t, z[None])[0], row)
        torch.testing.assert_close(jacobian.trace(), value, rtol=1e-10, atol=1e-10)
        assert abs(value) > 0.01


@both
@pytest.mark.parametrize(("particles", "dimensions"), [(4, 2), (5, 3)])
def test_density_knows_neither_direction_nor_order(particles, dimensions, build_flow):
    flow = strong(particles, dimensions, build_flow=build_flow)
    y = normal(6, flow.features)
    flow.fit_scaling(3 * y)
    torch.testing.assert_close(flow.log_prob(turned_and_reordered(y, particles)), flow.log_prob(y), rtol=0, atol=1e-9)
    assert flow.log_prob(y).std() > 0.1


def test_scaling_is_one_number():
    flow = particle_flow(4, 2)
    y = normal(100, 6) * torch.arange(1, 7) + 5
    flow.fit_scaling(y)
    scaled = flow.to_unconstrained(y)
    torch.testing.assert_close(scaled.square().mean(), torch.tensor(1.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled[:, 0] / scaled[:, 1], (y[:, 0] / y[:, 1]).float(), rtol=1e-4, atol=0)


def test_draws_agree_with_their_density():
    flow = strong(3, 2, steps=256)
    y, log_prob = flow.sample_and_log_prob(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(y), log_prob, rtol=0, atol=1e-4)


def test_alignment_undoes_a_turn_and_a_permutation():
    fixed = normal(20, 5, 3)
    fixed = fixed - fixed.mean(1, keepdim=True)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(reordered(fixed[:, order], fixed), fixed)
    turn, _ = torch.linalg.qr(normal(3, 3, seed=2))
    torch.testing.assert_close(rotated(fixed @ turn, fixed), fixed)
    moving = normal(20, 5, 3, seed=3)
    assert ((align(moving, fixed) - fixed).square().sum((1, 2)) <= (moving - fixed).square().sum((1, 2))).all()


def test_the_loss_of_aligned_noise_is_lower_and_symmetric():
    flow, y = strong(4, 2, coupling="aligned"), normal(64, 6)
    net = flow.continuous.net
    with torch.no_grad():
        net.out_weight.zero_()
        net.film_weight[-7:] = 0
        net.film_bias[-7:] = 0
    loss = {name: flow_matching(flow, Batch(y), torch.Generator().manual_seed(0), coupling=name) for name in (None, "independent")}
    assert loss[None].mean() < 0.9 * loss["independent"].mean()


@both
def test_times_of_rows_may_differ(build_flow):
    continuous, y = strong(4, 2, build_flow=build_flow).continuous, normal(2, 6)
    times = torch.tensor([0.2, 0.9], dtype=torch.float64)
    together = continuous.velocity(times, y)
    for row, t in enumerate(times):
        torch.testing.assert_close(together[row], continuous.velocity(t, y[row : row + 1])[0], rtol=0, atol=1e-12)


@both
def test_it_learns_a_ring(build_flow):
    """Three particles on a circle of known radius: the likelihood after a few hundred steps, against that of a normal."""
    n = 1500
    angle = 2 * math.pi * torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corners = angle + 2 * math.pi / 3 * torch.arange(3)
    x = 2 * torch.stack([corners.cos(), corners.sin()], -1).flatten(1) + 0.3 * normal(n, 6)
    y = to_mean_free(x, 3)
    sizes = {particle_flow: {"products": 4, "hidden": (16, 16)}, pair_flow: {"width": 16, "layers": 1, "triangles": 4}}[build_flow]
    flow = build_flow(3, 2, radial=10, **sizes, steps=2, tolerance=None, generator=torch.Generator().manual_seed(0))
    flow.fit_scaling(y)
    before = -flow.log_prob(y[:100]).mean()
    source = ArraySource(y, validation_rows=range(200))
    train(flow, source, loss=flow_matching, max_epochs=6, batch_size=64, weight_decay=0.0, random_state=0)
    assert -flow.log_prob(y[:100]).mean() < before - 1.0


@both
def test_it_is_rebuilt_from_its_spec(build_flow):
    flow = strong(4, 2, build_flow=build_flow)
    again = build(flow.spec).double()
    again.load_state_dict(flow.state_dict())
    y = normal(5, 6)
    torch.testing.assert_close(again.log_prob(y), flow.log_prob(y), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mean_free_basis(1), "two particles"),
        (lambda: ParticleNet(4, 2, hidden=(8,)), "two hidden layers"),
        (lambda: ParticleNet(4, 2, radial=0), "radial"),
        (lambda: pair_flow(4, 2, layers=0), "layers"),
        (lambda: pair_flow(4, 2, coupling="ot"), "'aligned', 'independent'"),
        (lambda: particle_flow(4, 2, coupling="ot"), "'aligned', 'independent'"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()
