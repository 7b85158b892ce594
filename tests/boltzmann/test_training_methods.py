"""Ways to train, other temperatures, files, differences between systems; and energies and fits that misbehave."""

import math

import numpy as np
import pytest
import torch

from sbi_flows import BoltzmannGenerator, free_energy_difference
from sbi_flows.flows import nsf
from sbi_flows.physics.molecules import double_well

TINY = {"layers": 2, "n_steps": 64, "n_particles": 300, "random_state": 0}


def crystal(stiffness: float, coupling: float, atoms: int = 6):
    """A ring of atoms tied to their sites and to their neighbours: its matrix, and its energy."""
    eye = torch.eye(atoms, dtype=torch.float64)
    matrix = stiffness * eye + coupling * (2 * eye - eye.roll(1, 0) - eye.roll(-1, 0))
    return matrix, lambda x: 0.5 * ((x @ matrix) * x).sum(1)


def exact(matrix) -> float:
    return float(0.5 * torch.logdet(matrix / (2 * math.pi)))


@pytest.fixture(scope="module")
def crystals():
    pairs = [crystal(1.0, 0.0), crystal(1.0, 3.0)]
    return [(exact(matrix), BoltzmannGenerator(energy, 6, **TINY).fit()) for matrix, energy in pairs]


def test_free_energy_difference_of_harmonic_crystals(crystals):
    """By every method, each within four of its errors: false alarms 3e-4."""
    (exact_a, a), (exact_b, b) = crystals
    found = free_energy_difference(a, b, random_state=1)
    assert found.error < 0.02
    assert found.reliability.ok, found.reliability
    assert set(found.by_method.index) == {"importance", "bridge", "mapped a to b", "mapped b to a", "BAR"}
    for name, row in found.by_method.iterrows():
        assert abs(row.value - (exact_b - exact_a)) < 4 * row.error + 1e-3, name


def test_another_temperature_needs_no_training(crystals):
    exact_b, b = crystals[1]
    hot = b.at(3.0, random_state=2)
    found = hot.free_energy(random_state=3)
    # Z of a harmonic energy goes with T^(d / 2).
    assert abs(found.value - (exact_b - 3 * math.log(3.0))) < 4 * found.error + 1e-3
    assert hot.report_.reverse_ess > 0.5


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("likelihood", ["likelihood"]),
        ("reverse_kl", ["reverse_kl"]),
        ("mixed", ["likelihood", "mixed"]),
        ("force_matching", ["force_matching"]),
    ],
)
def test_every_method_learns_the_double_well(method, stages):
    data = double_well().sample(1000, torch.Generator().manual_seed(1)).numpy()
    generator = BoltzmannGenerator(double_well(), method=method, **TINY).fit(data)
    found = generator.free_energy(n_samples=5000, random_state=1)
    assert list(generator.history_) == stages
    assert generator.report_.reverse_ess > 0.2
    assert abs(found.value + double_well().log_z) < 4 * found.error


def test_files(tmp_path, crystals):
    generator = crystals[0][1]
    generator.save(tmp_path / "crystal")
    again = BoltzmannGenerator.load(tmp_path / "crystal", generator.energy)
    x = np.random.default_rng(0).normal(size=(5, 6))
    np.testing.assert_array_equal(again.log_prob(x), generator.log_prob(x))
    assert again.free_energy(1000, random_state=0).value == generator.free_energy(1000, random_state=0).value
    assert repr(again.report_) == repr(generator.report_)
    with pytest.raises(ValueError, match="Expected features to be those of the energy, 2; got 6"):
        BoltzmannGenerator.load(tmp_path / "crystal", double_well())
    hot = generator.at(2.0, random_state=0)
    hot.save(tmp_path / "hot")
    np.testing.assert_array_equal(BoltzmannGenerator.load(tmp_path / "hot", generator.energy).log_prob(x), hot.log_prob(x))


def test_the_same_seed_gives_the_same_generator(crystals):
    again = BoltzmannGenerator(crystals[0][1].energy, 6, **TINY).fit()
    np.testing.assert_array_equal(again.log_prob(np.zeros((1, 6))), crystals[0][1].log_prob(np.zeros((1, 6))))


def test_data_of_one_well_are_told():
    """The flow of one well has a fine effective size of its own: only chains from elsewhere can know."""
    data = double_well().sample(3000, torch.Generator().manual_seed(1))
    generator = BoltzmannGenerator(double_well(), **TINY).fit(data[data[:, 0] > 0].numpy())
    assert generator.report_.missed_share > 0.1
    assert not generator.sample(100, random_state=0).reliability.ok
    assert any("misses a mode" in reason for reason in generator.report_.reliability.reasons)


def test_holes_in_an_energy_are_counted():
    def energy(x):
        return torch.where(x[:, 0] > 1, torch.nan, 0.5 * x.square().sum(1))

    generator = BoltzmannGenerator(energy, 2, **TINY).fit()
    assert any("the energy was NaN or -inf at" in note for note in generator.report_.reliability.notes)
    found = generator.free_energy(random_state=0)
    assert abs(found.value + math.log(2 * math.pi * 0.8413447460685429)) < 4 * found.error + 1e-3


def test_overlaps_do_no_harm():
    """Two particles on a line with a core: energies up to 1e30 and beyond on the way."""

    def energy(x):
        r = x[:, 0] - x[:, 1]
        return 4 * (r.square().clamp(min=1e-12).pow(-6) - r.square().clamp(min=1e-12).pow(-3)) + 0.5 * x.square().sum(1)

    generator = BoltzmannGenerator(energy, 2, **TINY).fit()
    found = generator.free_energy(random_state=0)
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    log_z = float(torch.logsumexp(-energy(x), 0)) + 2 * math.log(0.01)
    assert abs(found.value + log_z) < 4 * found.error + 1e-3


def test_training_that_diverges_is_undone_and_told():
    data = double_well().sample(500, torch.Generator().manual_seed(1)).numpy()
    wild = {**TINY, "method": "reverse_kl", "learning_rate": 1e6, "n_steps": 32}
    generator = BoltzmannGenerator(double_well(), **wild).fit(data)
    told = [*generator.report_.reliability.notes, *generator.report_.reliability.reasons]
    assert any("made the flow worse" in text and "are kept" in text for text in told), told
    assert generator.report_.reverse_ess > 0.05


def test_a_flow_of_another_width_is_told():
    with pytest.raises(ValueError, match="Expected a flow of 2 features without context; got one of 3"):
        BoltzmannGenerator(double_well(), flow=nsf(3), **TINY).fit()


def test_too_few_configurations_are_told():
    with pytest.raises(ValueError, match="Expected at least 20 configurations"):
        BoltzmannGenerator(double_well()).fit(np.zeros((5, 2)))


def test_configurations_with_holes_are_told():
    with pytest.raises(ValueError, match="Expected finite values in X"):
        BoltzmannGenerator(double_well()).fit(np.full((50, 2), np.nan))
