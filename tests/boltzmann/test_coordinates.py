"""Boltzmann generators of molecules and of particles without place: exact free energies, hands, temperatures and files."""

import numpy as np
import pytest
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.boltzmann import BoltzmannTarget, MeanFreeCoordinates, MoleculeCoordinates
from sbi_flows.boltzmann.coordinates import coordinates_of
from sbi_flows.physics.molecules import ButaneLike, double_well, dw4


@pytest.fixture(scope="module")
def butane():
    data = ButaneLike().sample(3000, torch.Generator().manual_seed(0))
    return BoltzmannGenerator(ButaneLike(), layers=2, hidden=(32, 32), n_steps=150, random_state=0).fit(data)


def test_free_energy_of_a_molecule(butane):
    # Four standard errors: false alarms 6e-5.
    found = butane.free_energy(random_state=1)
    assert abs(found.value + ButaneLike().log_z) < 4 * found.error
    assert butane.report_.reverse_ess > 0.5
    energy = ButaneLike()
    inside = lambda x: torch.cos(energy.torsion(torch.as_tensor(x))).numpy() > -0.5  # noqa: E731
    gauche = butane.free_energy_difference(lambda x: ~inside(x), inside, random_state=2)
    assert abs(gauche.value - energy.free_energy_difference) < 4 * gauche.error


def test_the_chain_starts_trans():
    t = ButaneLike().torsion(ButaneLike().start(10, torch.Generator().manual_seed(0)))
    assert bool((t.cos() < -0.95).all())


def test_configurations_come_out_as_the_energy_takes_them(butane):
    drawn = butane.sample(50, random_state=0)
    assert drawn.samples.shape == (50, 12)
    assert butane.draws_.shape[1] == 12
    x = torch.from_numpy(drawn.samples)
    np.testing.assert_allclose(drawn.log_weights, -ButaneLike()(x).numpy() - butane.log_prob(x), atol=1e-4)
    turned = x.unflatten(1, (4, 3)) @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    np.testing.assert_allclose(butane.log_prob((turned + 3).flatten(1)), butane.log_prob(x), atol=1e-4)


def test_files_keep_the_coordinates(butane, tmp_path):
    butane.save(tmp_path / "butane.safetensors")
    again = BoltzmannGenerator.load(tmp_path / "butane.safetensors", ButaneLike())
    np.testing.assert_array_equal(again.sample(5, random_state=0).samples, butane.sample(5, random_state=0).samples)
    assert again.free_energy(2000, random_state=0).value == butane.free_energy(2000, random_state=0).value


def test_volumes_know_no_temperature():
    """Hot molecules have the same volume of shapes: ln p is -U / T + ln volume."""
    energy, x = ButaneLike(), ButaneLike().sample(5, torch.Generator().manual_seed(0))
    target = BoltzmannTarget(energy, coordinates=coordinates_of(energy))
    y = target.rows(x)
    volume = target.log_prob(y) + energy(x)
    torch.testing.assert_close(target.at(3.0).log_prob(y), volume - energy(x) / 3)


def test_particles_without_place_are_mean_free():
    target = BoltzmannTarget(dw4(), coordinates=coordinates_of(dw4()))
    assert isinstance(target.coordinates, MeanFreeCoordinates)
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(target.log_prob(target.rows(x + 5)), -dw4()(x))
    assert coordinates_of(double_well()) is None


def test_coordinates_and_support_exclude_each_other():
    with pytest.raises(ValueError, match="either support or coordinates"):
        BoltzmannTarget(dw4(), support="real", coordinates=coordinates_of(dw4()))
    with pytest.raises(ValueError, match="configurations with 12 columns"):
        BoltzmannTarget(ButaneLike(), coordinates=coordinates_of(dw4()))
    assert isinstance(coordinates_of(ButaneLike()), MoleculeCoordinates)
