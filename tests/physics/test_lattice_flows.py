"""The gauge flow and the samplers that use one: exactness on small lattices."""

import math

import pytest
import torch

from sbi_flows.flows import nsf
from sbi_flows.physics.lattice import (
    U1,
    FieldHMC,
    FlowAction,
    FlowProposal,
    InTurn,
    Phi4,
    WindingProposal,
    exact_log_z,
    exact_plaquette,
    exact_susceptibility,
    gauge_flow,
    gauge_transform,
    instanton,
    leapfrog,
    resized,
    run_fields,
    susceptibility,
    trivialise,
)
from sbi_flows.samplers import IndependentMetropolis


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_flow(size=4, block=4, kernel=1, scale=0.7):
    """A flow far from the identity, in float64."""
    flow = gauge_flow(size, block=block, bins=3, hidden=(8,), kernel=kernel, generator=generator()).double().requires_grad_(False)
    for i, weights in enumerate(flow.parameters()):
        weights += scale * torch.randn(weights.shape, generator=generator(i), dtype=torch.float64)
    return flow


def angle_between(a, b):
    return torch.remainder(a - b + math.pi, 2 * math.pi) - math.pi


@pytest.fixture(scope="module")
def trained():
    """A flow of beta = 1 on 4 x 4 sites, trained for a few seconds, and what its training said."""
    theory, flow = U1(4, beta=1.0), gauge_flow(4, block=4, bins=3, hidden=(8,), generator=generator())
    return theory, flow, trivialise(flow, theory, n_steps=120, batch_size=64, learning_rate=1e-2, random_state=0)


# --- The flow -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3])
def test_log_det_is_the_jacobian_and_the_inverse_inverts(kernel):
    flow = random_flow(kernel=kernel)
    z = flow.base.sample(3, generator())
    x, log_det = flow.from_base(z)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.bijection.inverse_and_log_det(row[None])[0][0]))(z)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det, rtol=0, atol=1e-9)
    assert log_det.abs().min() > 0.1 and angle_between(x, z).abs().max() > 0.5
    back, inverse_log_det = flow.to_base(x)
    assert angle_between(back, z).abs().max() < 1e-10
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_flow_commutes_with_gauge_transformations_and_translations(kernel):
    flow, size = random_flow(8, block=4, kernel=kernel), 8
    z = flow.base.sample(3, generator())
    x, log_det = flow.from_base(z)
    fields = z.view(3, 2, size, size)
    gauge = math.pi * torch.randn(3, size, size, generator=generator(1), dtype=torch.float64)
    turned, same = flow.from_base(gauge_transform(fields, gauge).flatten(1))
    assert angle_between(turned, gauge_transform(x.view_as(fields), gauge).flatten(1)).abs().max() < 1e-9
    torch.testing.assert_close(same, log_det, rtol=0, atol=1e-9)
    for shifts in ((4, 0), (0, 4), (4, 4)):
        moved, same = flow.from_base(fields.roll(shifts, (2, 3)).flatten(1))
        assert angle_between(moved, x.view_as(fields).roll(shifts, (2, 3)).flatten(1)).abs().max() < 1e-9
        torch.testing.assert_close(same, log_det, rtol=0, atol=1e-9)
    moved, _ = flow.from_base(fields.roll(1, 2).flatten(1))
    assert angle_between(moved, x.view_as(fields).roll(1, 2).flatten(1)).abs().max() > 0.1  # by less than its stride it does not


def test_every_layer_turns_each_link_at_most_once_and_all_plaquettes_are_reached():
    """``V - 1`` fluxes of a block are free: so many links are turned."""
    flow = random_flow(8, block=8)
    z = flow.base.sample(1, generator())
    x, _ = flow.from_base(z)
    assert int((angle_between(x, z).abs() > 1e-12).sum()) == 63


def test_a_new_flow_is_the_identity_and_resizing_keeps_weights():
    flow = gauge_flow(8, block=4)
    z = flow.base.sample(2, generator())
    torch.testing.assert_close(flow.from_base(z)[0], z, rtol=0, atol=1e-5)
    small, large = random_flow(4, block=4), resized(random_flow(4, block=4), 8)
    tiled = small.base.sample(2, generator()).view(2, 2, 4, 4).repeat(1, 1, 2, 2)
    alone = small.from_base(tiled[:, :, :4, :4].flatten(1))
    together = large.from_base(tiled.flatten(1))
    torch.testing.assert_close(together[0].view_as(tiled)[:, :, :4, :4].flatten(1), alone[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(together[1], 4 * alone[1], rtol=0, atol=1e-9)


def test_messages_of_flows():
    with pytest.raises(ValueError, match="power of two"):
        gauge_flow(12, block=6)
    with pytest.raises(ValueError, match="divides size=12"):
        gauge_flow(12, block=8)
    with pytest.raises(ValueError, match="odd width"):
        gauge_flow(8, kernel=2)
    with pytest.raises(ValueError, match="resized"):
        trivialise(gauge_flow(8), U1(16, beta=1.0))
    with pytest.raises(ValueError, match="gauge_flow"):
        trivialise(nsf(32, layers=1, support="circular"), U1(4, beta=1.0))
    with pytest.raises(ValueError, match="128 numbers"):
        FlowAction(U1(8, beta=1.0), gauge_flow(4, block=4))
    with pytest.raises(TypeError, match="instantons"):
        WindingProposal().init(torch.zeros(1, 4, 4), Phi4(4, 1.0, 0.0))
    with pytest.raises(ValueError, match="at least one kernel"):
        InTurn([])


# --- Training -----------------------------------------------------------------------------------------------------------------


def test_training_finds_the_theory_and_its_partition_function(trained):
    """ln Z within 4.5 standard errors: one false alarm in 150 000."""
    theory, _, report = trained
    assert report.reliability.ok and report.ess > 0.6
    assert abs(report.log_z - exact_log_z(theory.size, theory.beta)) < 4.5 * report.log_z_err
    assert report.n_fields == 64 * sum(history.n_steps for history in report.histories)


def test_an_untrained_flow_is_found_out():
    flow = gauge_flow(8, bins=3, hidden=(4,))
    report = trivialise(flow, U1(8, beta=7.0), n_steps=1, batch_size=2, random_state=0)
    assert not report.reliability.ok and report.ess < 0.01


# --- Samplers -----------------------------------------------------------------------------------------------------------------


def test_the_force_through_a_flow_is_minus_the_gradient_by_differences():
    seen = FlowAction(U1(4, beta=2.0), random_flow())
    field = seen.hot_start(2, generator())
    force = seen.force(field)
    step = 1e-6 * torch.randn(field.shape, generator=generator(1), dtype=torch.float64)
    change = seen.action(field + step) - seen.action(field - step)
    torch.testing.assert_close(change, -2 * (force * step).flatten(1).sum(1), rtol=1e-4, atol=1e-9)


def test_leapfrog_is_reversible_through_the_map():
    seen = FlowAction(U1(4, beta=2.0), random_flow(scale=0.3))
    field = seen.hot_start(4, generator())
    momentum = torch.randn(field.shape, generator=generator(1), dtype=torch.float64)
    there = leapfrog(seen, field, momentum, seen.force(field), 0.05, 10)
    back = leapfrog(seen, there.field, -there.momentum, there.force, 0.05, 10)
    assert angle_between(back.field, field).abs().max() < 1e-8
    assert (there.field - field).abs().max() > 0.3


def test_latent_fields_are_those_that_physical_ones_come_from():
    seen = FlowAction(U1(4, beta=2.0), random_flow())
    field = seen.hot_start(4, generator())
    assert angle_between(seen.latent(seen.physical(field)), field).abs().max() < 1e-9


STEPS = {"flow proposal": 400, "flow proposal and hmc": 200, "winding and hmc": 400}


@pytest.mark.parametrize("which", STEPS)
def test_every_sampler_gives_the_exact_plaquette_and_susceptibility(trained, which):
    """4.5 standard errors each: three numbers of three samplers, one false alarm in 16 000."""
    theory, flow, _ = trained
    kernels = {
        "flow proposal": FlowProposal(flow),
        "flow proposal and hmc": InTurn([FlowProposal(flow), FieldHMC(0.2, 5)]),
        "winding and hmc": InTurn([WindingProposal(), FieldHMC(0.2, 5)]),
    }
    start = FlowProposal(flow).draw(theory, 64, generator())
    chains = run_fields(kernels[which], theory, start, n_steps=STEPS[which], n_warmup=40, random_state=1)
    check_against_exact_values(chains, theory)


LARGE = [pytest.param(8, beta, marks=pytest.mark.slow) for beta in (1.0, 2.0)]


@pytest.mark.parametrize(("size", "beta"), [(4, 2.0), *LARGE])
def test_hmc_through_a_flow_gives_the_exact_plaquette_and_susceptibility(size, beta):
    """Through the map of another theory, of beta = 1/2. 4.5 standard errors each: three numbers, one false alarm in 50 000."""
    flow = gauge_flow(size, block=size, bins=3, hidden=(8,), generator=generator())
    trivialise(flow, U1(size, beta=0.5), n_steps=60, learning_rate=1e-2, random_state=0)
    seen = FlowAction(U1(size, beta), flow)
    chains = run_fields(FieldHMC(0.2, 5), seen, seen.hot_start(64, generator()), n_steps=80, n_warmup=30, random_state=1)
    check_against_exact_values(chains, seen.theory)
    assert chains.acceptance.mean() > 0.4


def check_against_exact_values(chains, theory):
    plaquette, chi = chains.estimate("plaquette"), susceptibility(chains.observables["charge"], theory.volume)
    assert abs(plaquette.value - exact_plaquette(theory.size, theory.beta)) < 4.5 * plaquette.error and plaquette.error < 0.004
    assert abs(chi.value - exact_susceptibility(theory.size, theory.beta)) < 4.5 * chi.error and chi.error < 0.06 * chi.value
    mean, error = chains.exp_minus_dh
    assert abs(mean - 1) < 4.5 * error and error < 0.05
    assert chains.reliability.ok or "shorter than" in str(chains.reliability)


def test_winding_goes_both_ways_with_the_right_odds():
    """On one plaquette-sized change: the instanton and the anti-instanton undo each other."""
    theory = U1(4, beta=1.0)
    start = theory.hot_start(400, generator())
    kernel = WindingProposal()
    state, info = kernel.step(kernel.init(start, theory), theory, generator(1))
    assert bool(info.accepted.any()) and not bool(info.accepted.all())
    torch.testing.assert_close(state.field[~info.accepted], start[~info.accepted])
    undone = angle_between(state.field, start)
    plus = angle_between(instanton(4), torch.zeros(2, 4, 4))
    for i in info.accepted.nonzero()[:, 0].tolist():
        assert min(float(angle_between(undone[i], s * plus).abs().max()) for s in (1, -1)) < 1e-12


def test_work_is_counted_also_where_kernels_start_anew():
    flow = gauge_flow(4, block=4)
    assert dict(InTurn([FlowProposal(flow), FieldHMC(0.1, 5)]).work) == {"flow": 2, "action": 4, "force": 6}


def test_a_gauge_flow_is_a_flow_for_every_kernel(trained):
    """The package's own independent Metropolis takes it, and accepts as often as the importance weights say it should."""
    theory, flow, report = trained
    target, rows = theory.target(), flow.sample(300, generator=generator(), dtype=torch.float64)
    kernel = IndependentMetropolis(flow)
    _, info = kernel.step(kernel.init(rows, target), target, generator(1))
    assert report.ess * 0.7 < info.acceptance.mean() <= 1
    assert bool(torch.isfinite(flow.log_prob(rows)).all())
