"""Boltzmann generators against exact partition functions, and what they say where they cannot know."""

import numpy as np
import pytest
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.physics.molecules import double_well

SMALL = {"layers": 2, "n_steps": 120, "n_particles": 400, "random_state": 0}


@pytest.fixture(scope="module")
def wells():
    return BoltzmannGenerator(double_well(), **SMALL).fit()


def test_free_energy_of_the_double_well_without_data(wells):
    # Four standard errors: false alarms 6e-5.
    found, exact = wells.free_energy(random_state=1), -double_well().log_z
    assert found.error < 0.02
    assert abs(found.value - exact) < 4 * found.error
    assert found.reliability.ok, found.reliability
    assert set(found.by_method.index) == {"importance", "bridge"}


def test_free_energy_difference_of_the_wells(wells):
    found = wells.free_energy_difference(lambda x: x[:, 0] < 0, lambda x: x[:, 0] > 0, random_state=2)
    assert found.error < 0.02
    assert abs(found.value - double_well().free_energy_difference) < 4 * found.error


def test_draws_carry_their_verdict(wells):
    drawn = wells.sample(2000, random_state=3)
    assert drawn.samples.shape == (2000, 2)
    assert drawn.reliability.ok
    assert drawn.ess > 1000
    assert wells.report_.forward_ess > 0.5
    np.testing.assert_allclose(
        drawn.log_weights, -double_well()(torch.from_numpy(drawn.samples)).numpy() - wells.log_prob(drawn.samples), atol=1e-4
    )


def test_configurations_given_are_enough(wells):
    data = double_well().sample(2000, torch.Generator().manual_seed(1)).numpy()
    generator = BoltzmannGenerator(double_well(), layers=2, n_steps=120, random_state=0).fit(data)
    found = generator.free_energy(random_state=1)
    assert abs(found.value + double_well().log_z) < 4 * found.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy": lambda x: x.sum(1)}, "pass features="),
        ({"energy": double_well(), "features": 3}, "Expected features to be those of the energy, 2; got 3"),
        ({"energy": double_well(), "temperature": 0.0}, "Expected temperature to be a number above 0"),
        ({"energy": double_well(), "method": "magic"}, "Expected method to be one of"),
        ({"energy": lambda x: x, "features": 2}, r"Expected energy\(x\) of shape"),
        ({"energy": lambda x: torch.full_like(x[:, 0], torch.nan) + 0 * x[:, 0], "features": 2}, "Expected a finite energy somewhere"),
        ({"energy": lambda x: 0 * x.sum(1), "features": 2}, "Expected an energy that confines every coordinate"),
        ({"energy": lambda x: x.detach().square().sum(1), "features": 2}, "energy has no gradient"),
    ],
)
def test_bad_input_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoltzmannGenerator(**arguments, layers=1, n_steps=10, n_particles=50, random_state=0).fit()


def test_an_energy_that_is_no_function_is_told():
    with pytest.raises(TypeError, match="Expected energy to be a function of a tensor"):
        BoltzmannGenerator(3.0, 2).fit()


def test_not_fitted():
    with pytest.raises(ValueError, match="has not been fitted"):
        BoltzmannGenerator(double_well()).sample(10)


def test_a_region_without_draws_is_told(wells):
    with pytest.raises(ValueError, match="Expected some draws in region b"):
        wells.free_energy_difference(lambda x: x[:, 0] < 0, lambda x: x[:, 0] > 100, n_samples=100, random_state=0)
