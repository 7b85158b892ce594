"""Energies of OpenMM: forces, hands, what overlaps do, and the message where it is missing."""

import importlib.util
import sys

import pytest
import torch

from sbi_flows.boltzmann import BoltzmannTarget
from sbi_flows.boltzmann.coordinates import coordinates_of
from sbi_flows.physics.molecules import AlanineDipeptide, check_force, check_symmetries

needs_openmm = pytest.mark.skipif(importlib.util.find_spec("openmm") is None, reason="needs OpenMM: pip install 'sbi_flows[molecules]'")


def test_without_openmm_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(ImportError, match=r"pip install 'sbi_flows\[molecules\]'"):
        AlanineDipeptide()


@pytest.fixture(scope="module")
def peptide():
    return AlanineDipeptide("obc")


@needs_openmm
def test_forces_are_slopes(peptide):
    x = peptide.start(4, torch.Generator().manual_seed(0))
    check_force(peptide, peptide.force, x, step=1e-6)
    energy, force = peptide.energy_and_force(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((2 * peptide(x)).sum(), x)
    torch.testing.assert_close(gradient, -2 * force)
    torch.testing.assert_close(peptide(x).detach(), energy)


@needs_openmm
def test_the_minimum_is_one_and_the_energy_has_no_place(peptide):
    at_rest = peptide.minimum[None]
    assert float(peptide.force(at_rest).abs().max()) < 10  # kT / nm, where a bond of 1 pm off pulls with 200
    check_symmetries(peptide, peptide.start(3, torch.Generator().manual_seed(0)), (22, 3), ("translations", "rotations"))
    with pytest.raises(ValueError, match="same under permutations"):
        check_symmetries(peptide, at_rest, (22, 3), ("permutations",))


@needs_openmm
def test_atoms_on_top_of_each_other_are_impossible_configurations(peptide):
    x = peptide.start(3, torch.Generator().manual_seed(0))
    x[1, 3:6] = x[1, :3]
    x[2, 0] = torch.nan
    target = BoltzmannTarget(peptide)
    value, gradient = target.log_prob_and_grad(x)
    assert torch.isfinite(value[0])
    assert not bool((value[1:] > -1e3).any())
    assert bool(torch.isfinite(gradient[0]).all())


@needs_openmm
def test_left_handed_shapes(peptide):
    coordinates = coordinates_of(peptide)
    assert (coordinates.features, coordinates.support.count("circular")) == (60, 7)
    x = peptide.start(5, torch.Generator().manual_seed(0))
    y = coordinates.from_configurations(x)
    torch.testing.assert_close(peptide(coordinates.to_configurations(y)[0]), peptide(x), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="another hand"):
        coordinates.check(-x)


@needs_openmm
def test_dynamics_obey_the_virial_theorem(peptide):
    made = peptide.dynamics(200, chains=2, n_steps=20, n_warmup=2000, random_state=0)
    assert made.samples.shape == (200, 66)
    # Four standard errors: false alarms 6e-5.
    assert abs(made.virial - 1) < 4 * made.virial_err
    assert any("run longer" in reason for reason in made.reliability.reasons)
