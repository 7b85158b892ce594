"""Energies against exact integrals, forces against differences, symmetries, and the pair convention against data."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad

from sbi_flows.physics.molecules import (
    DoubleWellParticles,
    GaussianMixture,
    HarmonicCrystal,
    KobAndersen,
    LennardJones,
    ManyWell,
    check_symmetries,
    double_well,
    dw4,
    gmm9,
    gmm40,
    lj13,
    lj55,
)

ENERGIES = {
    "double well": double_well,
    "ManyWell-32": lambda: ManyWell(32),
    "GMM-9": gmm9,
    "GMM-40": gmm40,
    "DW4": dw4,
    "LJ13": lj13,
    "LJ13 once": lambda: lj13("once"),
    "LJ55": lj55,
    "harmonic crystal": lambda: HarmonicCrystal((3, 4), spring=2.5, pin=0.7),
    "Kob-Andersen": lambda: KobAndersen(32),
}
every = pytest.mark.parametrize("name", ENERGIES)


def rows(energy, n=6, seed=0):
    return energy.start(n, torch.Generator().manual_seed(seed))


@every
def test_forces_are_the_slope_of_the_energy(name):
    energy = ENERGIES[name]()
    x = rows(energy)
    value, force = energy.energy_and_force(x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    slope = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
    torch.testing.assert_close(-(force * direction).sum(1), slope, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(value, energy(x))
    # And of the graph, where an energy has a force in closed form.
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(y).sum(), y)
    torch.testing.assert_close(-gradient, force, rtol=1e-9, atol=1e-9)


def test_double_well_is_exact():
    energy = double_well()
    assert energy(torch.tensor([[0.3, 0.2]], dtype=torch.float64)).item() == pytest.approx(0.3**4 - 6 * 0.3**2 - 0.5 * 0.3 + 0.5 * 0.04)
    volume, _ = dblquad(lambda y, x: math.exp(-(x**4 - 6 * x**2 - 0.5 * x + 0.5 * y**2) - 12), -4, 4, -8, 8, epsrel=1e-9)
    assert energy.log_z == pytest.approx(math.log(volume) + 12, abs=1e-7)
    right = 1 / (1 + math.exp(energy.free_energy_difference))
    assert right == pytest.approx(0.844307, abs=5e-7)  # FACTS 3
    assert ManyWell(32).log_z == pytest.approx(164.695675, abs=5e-7)


def test_every_mode_is_a_minimum():
    many = ManyWell(8)
    assert many.modes.shape == (16, 8)
    assert many.force(many.modes).abs().max() < 1e-9
    assert gmm40().modes.shape == (40, 2) and gmm40().modes.abs().max() < 40


def test_exact_draws_have_the_density():
    """The mean of exp(U) over a box, divided by its volume, is 1/Z; and shares of the wells. False alarm 1e-6 (5 sigma)."""
    energy, n = double_well(), 40_000
    x = energy.sample(n, torch.Generator().manual_seed(0))
    right = 1 / (1 + math.exp(energy.free_energy_difference))
    assert abs((x[:, 0] > 0).double().mean() - right) < 5 * math.sqrt(right * (1 - right) / n)
    virial = -(x * energy.force(x)).sum(1)
    assert abs(virial.mean() - 2) < 5 * virial.std() / math.sqrt(n)
    y = gmm9().sample(n, torch.Generator().manual_seed(0))
    which = torch.cdist(y, gmm9().modes).argmin(1).bincount(minlength=9).double() / n
    assert (which - 1 / 9).abs().max() < 5 * math.sqrt(8 / 81 / n)


@pytest.mark.parametrize("make", [dw4, lj13])
def test_clusters_do_not_depend_on_place_direction_and_order(make):
    energy = make()
    generator = torch.Generator().manual_seed(0)
    x = rows(energy)
    count, d = energy.particles
    rotation, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    moved = (x.unflatten(1, (count, d))[:, torch.randperm(count, generator=generator)] @ rotation + 3.0).flatten(1)
    torch.testing.assert_close(energy(moved), energy(x), rtol=1e-10, atol=1e-9)


def test_free_energy_of_the_crystal_is_the_determinant():
    for cells in ((3, 4), (3, 3, 3)):
        energy = HarmonicCrystal(cells, spring=2.5, pin=0.7)
        zero = torch.zeros(energy.features, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(lambda x, energy=energy: energy(x[None])[0], zero)
        log_z = 0.5 * energy.features * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(hessian)[1]
        assert energy.log_z == pytest.approx(log_z.item(), abs=1e-10)


def test_draws_of_the_crystal_have_its_covariance():
    """Mean energy of n draws is features / 2, its variance features / 2. 5 sigma: false alarm 1e-6."""
    energy = HarmonicCrystal((3, 4), spring=2.5, pin=0.7)
    value = energy(energy.sample(4000, torch.Generator().manual_seed(0)))
    assert abs(value.mean() - energy.features / 2) < 5 * math.sqrt(energy.features / 2 / 4000)
    assert value.var() == pytest.approx(energy.features / 2, rel=0.2)


def test_the_liquid_is_periodic_and_continuous_at_the_cutoff():
    energy = KobAndersen(32)
    x = rows(energy)
    shifted = x.clone()
    shifted[:, 5] += energy.side
    torch.testing.assert_close(energy(shifted), energy(x), rtol=1e-10, atol=1e-8)
    assert energy.wrapped(shifted).abs().max() <= energy.side / 2
    check_symmetries(energy, x, energy.particles, energy.symmetries, permuted=energy.permuted)
    with pytest.raises(ValueError, match="permutations"):
        check_symmetries(energy, x, energy.particles, ["permutations"])
    two = torch.full((201, 64), 0.0, dtype=torch.float64)
    two[:] = x[0]
    two[:, 0] += torch.linspace(0, 0.4, 201, dtype=torch.float64)
    force = energy.force(two)
    step = (force[1:] - force[:-1]).abs().amax()
    assert torch.isfinite(force).all() and step < 0.2 * force.abs().amax()


def test_the_two_pair_conventions_differ_by_the_pairs():
    x = rows(lj13())
    trap = 0.5 * (x.unflatten(1, (13, 3)) - x.unflatten(1, (13, 3)).mean(1, keepdim=True)).square().sum((1, 2))
    torch.testing.assert_close(lj13("twice")(x) - trap, 2 * (lj13("once")(x) - trap))


def test_the_published_sample_of_lj13_counts_pairs_twice(full_data):
    """The mean virial of a sample of exp(-U) is the number of degrees of freedom. 5 sigma: false alarm 1e-6."""
    x = torch.from_numpy(np.load(full_data / "molecules" / "test_split_LJ13-1000.npy")).double().reshape(-1, 39)
    off = {}
    for pairs in ("once", "twice"):
        virial = lj13(pairs).virial(x)
        off[pairs] = abs(virial.mean() - 36) / (virial.std() / math.sqrt(len(x)))
    assert off["twice"] < 5 < 20 < off["once"]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ManyWell(3), "even number"),
        (lambda: ManyWell(2, quartic=0.0), "no minimum"),
        (lambda: GaussianMixture([0.0, 1.0], 1.0), r"shape \(k, d\)"),
        (lambda: GaussianMixture([[0.0]], -1.0), "variance"),
        (lambda: LennardJones(13, pairs="both"), "pairs"),
        (lambda: DoubleWellParticles(0), "particles"),
        (lambda: HarmonicCrystal((2, 3)), "3 cells"),
        (lambda: HarmonicCrystal((3, 3), pin=0.0), "pin"),
        (lambda: KobAndersen(10), "30 particles"),
        (lambda: lj13()(torch.zeros(39)), r"x\[None\]"),
        (lambda: lj13()(torch.zeros(2, 40)), r"\(n, 39\)"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()
