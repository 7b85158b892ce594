"""Rigid bodies: an energy of quaternions in, without data; weighted positions and orientations out."""

import numpy as np
import pytest
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.boltzmann import BoltzmannTarget, RigidCoordinates, checks, fitting
from sbi_flows.boltzmann.coordinates import coordinates_from, coordinates_of
from sbi_flows.boltzmann.symmetries import suited_flow
from sbi_flows.physics.molecules import Ice, Tetrahedron

TETRAHEDRON = Tetrahedron(cubic=0.0)


@pytest.fixture(scope="module")
def fitted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "INTEGRATED_DRAWS", 1000)
        patch.setattr(checks, "INTEGRATED_CHAINS", 100)
        patch.setattr(fitting, "MATCHED_ROWS", 10_000)
        return BoltzmannGenerator(TETRAHEDRON, n_particles=300, n_steps=300, random_state=0).fit()


def test_a_tetrahedron_in_a_field_without_data(fitted):
    """ln Z is known: within five of its errors, false alarms 6e-7. With 3000 steps the effective share is .99; half is asked for."""
    assert fitted.report_.reverse_ess > 0.5
    assert fitted.report_.forward_ess > 0.5
    found = fitted.free_energy(2000, random_state=1)
    assert found.error < 0.05
    assert abs(found.value + TETRAHEDRON.log_z) < 5 * found.error


def test_draws_are_unit_quaternions_and_both_signs_are_one(fitted):
    x = fitted.sample(50, random_state=0).samples
    np.testing.assert_allclose(np.linalg.norm(x[:, 3:], axis=1), 1, atol=1e-6)
    other = x * np.array([1, 1, 1, -1, -1, -1, -1])
    np.testing.assert_allclose(fitted.log_prob(other), fitted.log_prob(x), atol=1e-4)


def test_files_keep_rigid_bodies(fitted, tmp_path):
    fitted.save(tmp_path / "body")
    again = BoltzmannGenerator.load(tmp_path / "body", TETRAHEDRON)
    x = TETRAHEDRON.sample(5, torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_array_equal(again.log_prob(x), fitted.log_prob(x))


def test_positions_are_measured_from_the_lattice():
    ice = Ice()
    coordinates = coordinates_of(ice)
    x = ice.start(4, torch.Generator().manual_seed(0))
    y = coordinates.from_configurations(x)
    assert float(y.unflatten(1, (8, 7))[..., :3].abs().max()) < 0.5
    torch.testing.assert_close(coordinates.to_configurations(y)[0], x)
    again = coordinates_from(coordinates.description())
    torch.testing.assert_close(again.to_configurations(y)[0], x)


def test_bad_input_is_told():
    coordinates = RigidCoordinates(1)
    x = TETRAHEDRON.sample(30, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="Expected unit quaternions; got lengths from 2"):
        BoltzmannGenerator(TETRAHEDRON).fit(x * torch.tensor([1.0, 1, 1, 2, 2, 2, 2]))
    with pytest.raises(ValueError, match="centres of shape"):
        RigidCoordinates(2, [[0.0, 0.0, 0.0]])
    target = BoltzmannTarget(TETRAHEDRON, coordinates=coordinates)
    with pytest.raises(ValueError, match="no other knows that q and -q are one rotation"):
        suited_flow(None, "heights", target, target.rows(x), torch.Generator())
    signed = BoltzmannTarget(lambda rows: rows[:, 3], 7, coordinates=coordinates)
    with pytest.raises(ValueError, match="same for q and -q"):
        suited_flow(None, "auto", signed, target.rows(x), torch.Generator())
