"""Actions, forces, charges and exact values of the lattice theories, and the Gamma method."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad

from sbi_flows import run_chains
from sbi_flows.physics.lattice import (
    U1,
    FieldHMC,
    Phi4,
    exact_log_z,
    exact_plaquette,
    exact_susceptibility,
    gamma_method,
    gauge_transform,
    instanton,
    leapfrog,
    plaquettes,
    run_fields,
    susceptibility,
    topological_charge,
)
from sbi_flows.physics.lattice.observables import jackknife
from sbi_flows.physics.lattice.phi4 import free_field_phi2
from sbi_flows.physics.lattice.run import _verdict, exp_minus
from sbi_flows.samplers import RandomWalk

THEORIES = {"u1": U1(4, beta=2.5), "phi4": Phi4(4, mass2=-4.0, coupling=6.975)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Theories -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEORIES)
def test_the_force_is_minus_the_gradient_of_the_action(name):
    theory = THEORIES[name]
    field = theory.hot_start(3, generator()).requires_grad_()
    (gradient,) = torch.autograd.grad(theory.action(field).sum(), field)
    torch.testing.assert_close(theory.force(field.detach()), -gradient, rtol=0, atol=1e-12)


def test_the_action_of_phi4_is_the_sum_of_the_formula():
    theory = Phi4(3, mass2=-1.5, coupling=0.7)
    field = theory.hot_start(1, generator())
    phi, total = field[0], 0.0
    for i in range(3):
        for j in range(3):
            neighbours = phi[(i + 1) % 3, j] + phi[i - 1, j] + phi[i, (j + 1) % 3] + phi[i, j - 1]
            total += phi[i, j] * (4 * phi[i, j] - neighbours) - 1.5 * phi[i, j] ** 2 + 0.7 * phi[i, j] ** 4
    assert theory.action(field).item() == pytest.approx(float(total), abs=1e-12)


def test_gauge_transformations_change_nothing_that_is_measured():
    theory = U1(6, beta=3.0)
    links = theory.hot_start(5, generator())
    turned = gauge_transform(links, math.pi * torch.randn(5, 6, 6, generator=generator(1), dtype=torch.float64))
    torch.testing.assert_close(theory.action(turned), theory.action(links), rtol=0, atol=1e-11)
    for name, values in theory.observables(links).items():
        torch.testing.assert_close(theory.observables(turned)[name], values, rtol=0, atol=1e-12)


def test_the_charge_is_an_integer_before_it_is_rounded():
    links = U1(16, beta=1.0).hot_start(50, generator())
    angles = plaquettes(links)
    wrapped = torch.remainder(angles + math.pi, 2 * math.pi) - math.pi
    charge = wrapped.sum((1, 2)) / (2 * math.pi)
    torch.testing.assert_close(charge, topological_charge(links), rtol=0, atol=1e-10)
    assert len(charge.round().unique()) > 3


@pytest.mark.parametrize("charge", [-2, 0, 1, 5])
def test_an_instanton_has_its_charge_evenly_spread(charge):
    links = instanton(6, charge)[None]
    assert topological_charge(links).item() == charge
    torch.testing.assert_close(plaquettes(links).cos(), torch.full((1, 6, 6), math.cos(2 * math.pi * charge / 36)).double())


def test_messages():
    with pytest.raises(ValueError, match="field\\[None\\]"):
        U1(4, 1.0).action(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="at least 2 sites"):
        U1(1, 1.0)
    with pytest.raises(ValueError, match="beta"):
        U1(4, -1.0)
    with pytest.raises(ValueError, match="no minimum"):
        Phi4(4, -1.0, 0.0)
    with pytest.raises(ValueError, match="n_leapfrog"):
        FieldHMC(0.1, 0)
    with pytest.raises(ValueError, match="jitter"):
        FieldHMC(0.1, 5, jitter=1.0)
    theory = U1(4, 1.0)
    with pytest.raises(ValueError, match="finite action"):
        run_fields(FieldHMC(0.1, 2), theory, torch.full((2, 2, 4, 4), math.nan).double(), n_steps=5)
    with pytest.raises(ValueError, match="measure nothing"):
        run_fields(FieldHMC(0.1, 2), theory, theory.cold_start(2), n_steps=5, every=6)
    with pytest.raises(ValueError, match="at least 4 draws"):
        gamma_method([1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        gamma_method([1.0, 2.0, math.nan, 1.0, 1.0])


# --- Exact values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "beta", "plaquette", "chi"),
    [(8, 1, 0.44639, 0.040636), (8, 4, 0.863530, 0.007532), (8, 7, 0.925700, 0.003392), (16, 4, None, 0.007554), (16, 7, None, 0.003931)],
)
def test_exact_values_are_the_reference_values(size, beta, plaquette, chi):
    """FACTS, section 7; its digits round to within one of the last."""
    assert exact_susceptibility(size, beta) == pytest.approx(chi, abs=1e-6)
    if plaquette is not None:
        assert exact_plaquette(size, beta) == pytest.approx(plaquette, abs=1e-6)


def test_exact_values_of_two_by_two_sites_by_quadrature():
    """Four plaquettes of zero sum: two integrals by hand after one convolution, ``I_0`` of the sum of two."""
    beta = 1.3

    def pair(s):
        # int dp exp(beta (cos p + cos(s - p))) = 2 pi I_0(2 beta cos(s / 2))
        return np.i0(2 * beta * np.cos(s / 2))

    z, _ = dblquad(lambda p, s: np.exp(beta * (np.cos(p) + np.cos(s - p))) * pair(s), -np.pi, np.pi, -np.pi, np.pi)
    mean, _ = dblquad(lambda p, s: np.cos(p) * np.exp(beta * (np.cos(p) + np.cos(s - p))) * pair(s), -np.pi, np.pi, -np.pi, np.pi)
    assert exact_plaquette(2, beta) == pytest.approx(mean / z, abs=1e-8)
    # Two plaquettes given the sum s of all, and the others: (2 pi) pair(s) times the integrals above; links add the four gauge-like
    # angles that plaquettes do not see and the constraint takes one away: (2 pi)^(8 - 3) in all.
    assert exact_log_z(2, beta) == pytest.approx(math.log(z) + math.log(2 * math.pi) + 5 * math.log(2 * math.pi), abs=1e-8)


def test_the_plaquette_is_the_derivative_of_log_z():
    step = 1e-4
    slope = (exact_log_z(6, 2.0 + step) - exact_log_z(6, 2.0 - step)) / (2 * step) / 36
    assert exact_plaquette(6, 2.0) == pytest.approx(slope, abs=1e-8)


# --- The Gamma method ---------------------------------------------------------------------------------------------------------


def test_gamma_method_knows_autoregressive_series():
    """AR(1) of coefficient a: tau = (1 + a) / (2 (1 - a)) and the mean's variance 2 tau / N. Errors cover: 4.5 sigma, one in 1e5."""
    rng = np.random.default_rng(0)
    for a in (0.0, 0.5, 0.9):
        chains, n = 8, 20_000
        series = np.empty((chains, n))
        series[:, 0] = rng.normal(size=chains) / np.sqrt(1 - a**2)
        noise = rng.normal(size=(chains, n))
        for t in range(1, n):
            series[:, t] = a * series[:, t - 1] + noise[:, t]
        estimate = gamma_method(series + 3.0)
        tau = (1 + a) / (2 * (1 - a))
        assert abs(estimate.tau - tau) < 4.5 * max(estimate.tau_err, 0.005)
        assert abs(estimate.value - 3.0) < 4.5 * estimate.error
        assert estimate.error == pytest.approx(np.sqrt(2 * tau / (1 - a**2) / series.size), rel=0.15)
        assert estimate.tau_err < 0.15 * tau and estimate.reliability.ok


def test_gamma_method_says_when_it_cannot_know():
    frozen = gamma_method(np.ones((3, 100)))
    assert not frozen.reliability.ok and "never changed" in frozen.reliability.reasons[0] and frozen.tau == math.inf
    blip = np.zeros((4, 1000))
    blip[1, 500:503] = 1.0
    assert "changed only 2 times" in gamma_method(blip).reliability.reasons[0]
    drift = gamma_method(np.linspace(0, 1, 200))
    assert not drift.reliability.ok and "shorter than" in drift.reliability.reasons[0]


def test_jackknife_of_independent_values_is_the_standard_error():
    values = np.random.default_rng(0).normal(size=(5, 4000))
    mean, error = jackknife(values)
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert error == pytest.approx(1 / np.sqrt(values.size), rel=0.35)  # a hundred blocks know it to 7 %: five sigma


# --- HMC ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEORIES)
def test_leapfrog_is_reversible_and_of_second_order(name):
    theory = THEORIES[name]
    field = 0.3 * theory.hot_start(4, generator())
    momentum = torch.randn(field.shape, generator=generator(1), dtype=torch.float64)

    def energy(action, momentum):
        return action + 0.5 * momentum.square().flatten(1).sum(1)

    action, force = theory.action_and_force(field)
    there = leapfrog(theory, field, momentum, force, 0.02, 20)
    back = leapfrog(theory, there.field, -there.momentum, there.force, 0.02, 20)
    torch.testing.assert_close(back.field, field, rtol=0, atol=1e-11)
    torch.testing.assert_close(back.momentum, -momentum, rtol=0, atol=1e-11)
    errors = []
    for n in (20, 40):
        end = leapfrog(theory, field, momentum, force, 0.4 / n, n)
        errors.append((energy(end.action, end.momentum) - energy(action, momentum)).abs().mean())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_hmc_gives_the_exact_plaquette_and_susceptibility(beta):
    """4.5 standard errors each, three numbers: one false alarm in 50 000."""
    theory = U1(8, beta)
    chains = run_fields(FieldHMC(0.2, 7), theory, theory.hot_start(64, generator()), n_steps=500, n_warmup=100, random_state=1)
    assert chains.reliability.ok, chains.reliability
    plaquette, chi = chains.estimate("plaquette"), susceptibility(chains.observables["charge"], theory.volume)
    assert abs(plaquette.value - exact_plaquette(8, beta)) < 4.5 * plaquette.error and plaquette.error < 0.002
    assert abs(chi.value - exact_susceptibility(8, beta)) < 4.5 * chi.error and chi.error < 0.03 * chi.value
    mean, error = chains.exp_minus_dh
    assert abs(mean - 1) < 4.5 * error and error < 0.01


def test_hmc_of_a_free_field_gives_its_propagator():
    """``<phi^2>`` within 4.5 standard errors: one false alarm in 150 000. Without jitter one of its modes would never change."""
    theory = Phi4(6, mass2=0.5, coupling=0.0)
    chains = run_fields(FieldHMC(0.2, 7, jitter=0.4), theory, theory.hot_start(64, generator()), n_steps=300, n_warmup=100, random_state=1)
    estimate = chains.estimate("phi2")
    assert abs(estimate.value - free_field_phi2(6, 0.5)) < 4.5 * estimate.error and estimate.error < 0.005 * estimate.value


def test_frozen_topology_is_said():
    theory = U1(8, beta=7.0)
    chains = run_fields(FieldHMC(0.15, 7), theory, theory.cold_start(8), n_steps=60, n_warmup=20, random_state=0)
    assert not chains.reliability.ok and "charge: it never changed" in str(chains.reliability)


def test_chains_out_of_equilibrium_are_said():
    theory = U1(8, beta=4.0)
    chains = run_fields(FieldHMC(0.15, 7), theory, theory.cold_start(200), n_steps=4, random_state=0)
    assert "exp(-dH)" in str(chains.reliability)
    mean, error = exp_minus(chains.energy_error)
    assert abs(mean - 1) > 4.5 * error


def test_a_proposal_without_an_action_does_not_hide_a_wrong_kernel():
    energy_error = np.random.default_rng(0).normal(1, 0.3, (64, 200))
    energy_error[0, 0] = np.nan
    said = _verdict({}, np.full((64, 200), 0.5), energy_error, 1)
    assert not said.ok and "exp(-dH)" in str(said)


def test_the_same_seed_gives_the_same_bits():
    theory = U1(4, beta=1.0)
    runs = [run_fields(FieldHMC(0.2, 3), theory, theory.cold_start(3), n_steps=6, every=2, random_state=5) for _ in range(2)]
    assert runs[0].observables["plaquette"].shape == (3, 3) and runs[0].work == {"force": 18, "action": 6}
    np.testing.assert_array_equal(runs[0].observables["plaquette"], runs[1].observables["plaquette"])


@pytest.mark.parametrize("name", THEORIES)
def test_a_theory_is_a_target(name):
    theory = THEORIES[name]
    target, rows = theory.target(), theory.hot_start(3, generator()).flatten(1)
    value, gradient = target.log_prob_and_grad(rows)
    by_autograd = super(type(target), target).log_prob_and_grad(rows)
    torch.testing.assert_close((value, gradient), by_autograd, rtol=0, atol=1e-12)
    chains = run_chains(RandomWalk(), target, rows, n_steps=3, n_warmup=1, random_state=0)
    assert chains.samples.shape == (3, 3, theory.features)


def test_a_charge_that_is_frozen_in_some_chains_is_told():
    """Forty changes in all, but in 12 of 16 chains none: what these show is where they started."""
    charge = np.zeros((16, 200))
    for k in range(4):
        charge[k, 5::20] = 1
    assert np.count_nonzero(np.diff(charge, axis=1)) >= 40
    verdict = susceptibility(charge, 64).reliability
    assert any("in 12 of 16 chains it never changed" in reason for reason in verdict.reasons)
    free = np.random.default_rng(0).integers(-1, 2, size=(16, 200))
    assert susceptibility(free, 64).reliability.ok
