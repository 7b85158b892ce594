"""Our own chains against exact averages, and what is said of energies that are not what they are taken for."""

import pytest
import torch

from sbi_flows.physics.molecules import (
    MeanFreeEnergy,
    check_force,
    check_symmetries,
    double_well,
    dw4,
    lj13,
    load_reference,
    reference_samples,
    save_reference,
)


def test_chains_find_the_exact_averages(tmp_path):
    """Energy and virial of the double well within 5 standard errors: false alarm 1e-6 each."""
    energy = double_well(barrier=-2.0)
    made = reference_samples(energy, 4000, chains=200, n_warmup=60, thin=2, n_leapfrog=10, random_state=0)
    exact = energy(energy.sample(200_000, torch.Generator().manual_seed(1))).mean()
    assert abs(made.energy - exact) < 5 * made.energy_err and made.energy_err < 0.1
    assert abs(made.virial - 1) < 5 * made.virial_err and made.virial_err < 0.1
    assert made.reliability.ok and made.samples.shape == (4000, 2)
    save_reference(tmp_path / "made.safetensors", made)
    again = load_reference(tmp_path / "made.safetensors")
    assert torch.equal(again.samples, made.samples) and again.virial == made.virial and again.reliability == made.reliability


def test_chains_that_stay_in_their_wells_are_told():
    made = reference_samples(double_well(), 2000, chains=100, n_warmup=40, thin=2, n_leapfrog=10, random_state=0)
    assert not made.reliability.ok and "different modes" in str(made.reliability)


def test_dw4_has_the_energy_of_a_long_run():
    """-22.536 +- .005 from 3000 chains (FACTS 8)."""
    made = reference_samples(dw4(), 6000, chains=1000, n_warmup=100, thin=2, n_leapfrog=10, random_state=0)
    assert abs(made.energy + 22.536) < 5 * (made.energy_err**2 + 0.005**2) ** 0.5 and made.energy_err < 0.1
    assert made.samples.unflatten(1, (4, 2)).mean(1).abs().max() < 1e-9


def test_chains_that_have_not_arrived_are_told():
    """No warm-up, from close packing: the virial or the drift tells."""
    made = reference_samples(lj13(), 400, chains=100, n_warmup=0, thin=1, n_leapfrog=2, random_state=0)
    assert not made.reliability.ok and ("virial" in str(made.reliability) or "standard errors" in str(made.reliability))


def test_overlapping_atoms_are_refused():
    with pytest.raises(ValueError, match="overlap"):
        reference_samples(lj13(), 10, chains=2, start=torch.zeros(2, 39))


def test_mean_free_energy_is_the_energy():
    whole = lj13()
    energy = MeanFreeEnergy(whole)
    x = whole.start(5, torch.Generator().manual_seed(0)) + 3
    torch.testing.assert_close(energy(energy.from_particles(x)), whole(x))
    check_force(energy, energy.force, energy.from_particles(x))
    with pytest.raises(ValueError, match="does not depend on their place"):
        MeanFreeEnergy(double_well())


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda x: x[:, 0], "translations"),
        (lambda x: (x[:, ::2] - x[:, ::2].mean(1, keepdim=True)).square().sum(1), "rotations"),
        (lambda x: (x[:, 0] - x[:, 2]) * (x[:, 1] - x[:, 5]) - (x[:, 1] - x[:, 3]) * (x[:, 0] - x[:, 4]), "reflections"),
        (lambda x: (x[:, :2] - x[:, 2:4]).square().sum(1), "permutations"),
    ],
)
def test_a_broken_symmetry_is_named(broken, match):
    x = dw4().start(6, torch.Generator().manual_seed(0))
    check_symmetries(dw4(), x, (4, 2))
    with pytest.raises(ValueError, match=f"the same under {match}"):
        check_symmetries(broken, x, (4, 2))


def test_a_wrong_force_is_told():
    energy, x = dw4(), dw4().start(4, torch.Generator().manual_seed(0))
    check_force(energy, energy.force, x)
    with pytest.raises(ValueError, match="reshape"):
        check_force(energy, lambda x: energy.force(x).unflatten(1, (4, 2)), x)
    with pytest.raises(ValueError, match="other sign"):
        check_force(energy, lambda x: -energy.force(x), x)
    with pytest.raises(ValueError, match="one a configuration"):
        check_symmetries(lambda x: energy(x)[:, None], x, (4, 2))
