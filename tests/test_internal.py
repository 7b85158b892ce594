"""Internal coordinates: there and back, the Jacobian, what rotations and mirrors change, and bonds to z-matrices."""

import math

import numpy as np
import pytest
import torch

from sbi_flows.bijections.internal import PLACEMENT, InternalCoordinates
from sbi_flows.bijections.z_matrix import ZMatrix, z_matrix
from sbi_flows.boltzmann.coordinates import MeanFreeCoordinates, MoleculeCoordinates, coordinates_from

MOLECULES = {
    "water": [(0, 1), (0, 2)],
    "butane's carbons": [(0, 1), (1, 2), (2, 3)],
    "methane": [(0, 1), (0, 2), (0, 3), (0, 4)],
    "branched": [(0, 1), (1, 2), (2, 3), (1, 4), (1, 5), (2, 6), (3, 7), (3, 8), (3, 9)],
    "ring": [(i, (i + 1) % 6) for i in range(6)] + [(i, i + 6) for i in range(6)],
}


def molecule(name, n=4, seed=0):
    """Its bijection, and random places of its atoms."""
    bijection = InternalCoordinates(z_matrix(MOLECULES[name]))
    return bijection, torch.randn(n, 3 * bijection.n_atoms, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moved(x, seed=1):
    """Rotated and shifted."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    turn = turn * torch.linalg.det(turn)
    return (x.unflatten(1, (-1, 3)) @ turn + torch.randn(3, dtype=torch.float64, generator=generator)).flatten(1)


@pytest.mark.parametrize("name", MOLECULES)
def test_there_and_back(name):
    bijection, x = molecule(name)
    q, log_det = bijection.forward_and_log_det(x)
    y, back = bijection.inverse_and_log_det(q)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(back, -log_det, rtol=0, atol=1e-12)
    assert len(bijection.names) == q.shape[1] == x.shape[1]


@pytest.mark.parametrize("name", MOLECULES)
def test_log_det_is_that_of_the_full_jacobian(name):
    bijection, x = molecule(name)
    for row, log_det in zip(x, bijection.forward_and_log_det(x)[1], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: bijection.forward_and_log_det(r[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MOLECULES)
def test_rigid_motions_change_place_and_direction_only(name):
    bijection, x = molecule(name)
    q, other = bijection.forward_and_log_det(x)[0], bijection.forward_and_log_det(moved(x))[0]
    torch.testing.assert_close(other[:, PLACEMENT:], q[:, PLACEMENT:], rtol=0, atol=1e-11)
    assert bool(((other[:, :PLACEMENT] - q[:, :PLACEMENT]).abs() > 1e-3).all(1).all())


def test_a_mirror_turns_dihedrals_and_nothing_else():
    bijection, x = molecule("branched")
    shape, mirrored = (bijection.forward_and_log_det(rows)[0][:, PLACEMENT:] for rows in (x, -x))
    n = bijection.n_atoms
    torch.testing.assert_close(mirrored[:, : 2 * n - 3], shape[:, : 2 * n - 3], rtol=0, atol=1e-12)
    torch.testing.assert_close(mirrored[:, 2 * n - 3 :], -shape[:, 2 * n - 3 :], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("end", "expected"), [((1, 0, 1), 90), ((1, 0, -1), -90), ((1, 1, 0), 0), ((1, -1, 1e-9), 180)])
def test_dihedrals_are_those_of_chemistry(end, expected):
    """Zero where both ends are on one side; seen along the middle bond, positive where the far one is clockwise of the near one (IUPAC)."""
    bijection = InternalCoordinates(z_matrix(MOLECULES["butane's carbons"]))
    x = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, *end]], dtype=torch.float64)
    assert math.degrees(bijection.forward_and_log_det(x)[0][0, -1]) == pytest.approx(expected, abs=1e-6)


def test_torsions_follow_the_longest_branches():
    z = z_matrix(MOLECULES["branched"])
    about = [frozenset(row[:2]) for row, improper in zip(z.references, z.improper, strict=True) if not improper]
    assert len(about) == len(set(about)), "one torsion a bond"
    # Hydrogens of a methyl: one torsion, two dihedrals to their neighbour.
    assert sum(z.improper) == len(z.references) - len(about)


def test_hands():
    """One centre with four different neighbours: mirror images are told, and lie outside the support."""
    bonds = MOLECULES["methane"]
    x = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1, -1, 1, -1, -1, -1, 1]], dtype=torch.float64)
    x = x + 0.1 * torch.randn(200, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    coordinates = MoleculeCoordinates(z_matrix(bonds), x)
    assert not coordinates.mirrored(moved(x)).any()
    assert coordinates.mirrored(-x).all()
    with pytest.raises(ValueError, match=r"200 of 200 rows of X have another hand .* atom 0"):
        coordinates.check(-x)
    with pytest.raises(ValueError, match="1 of 201 rows of reference have another hand"):
        MoleculeCoordinates(z_matrix(bonds), torch.cat([x, -x[:1]]))
    ends = torch.tensor(coordinates.support[-2:], dtype=torch.float64)
    y, other = coordinates.from_configurations(x)[:, -2:], coordinates.from_configurations(-x)[:, -2:]
    assert bool(((y > ends[:, 0]) & (y < ends[:, 1])).all())
    assert bool(((other < ends[:, 0]) | (other > ends[:, 1])).all())


def test_shapes_and_configurations():
    bonds = MOLECULES["branched"]
    generator = torch.Generator().manual_seed(0)
    x = moved(torch.randn(1, 30, dtype=torch.float64, generator=generator) + 0.003 * torch.randn(
        300, 30, dtype=torch.float64, generator=generator))  # fmt: skip
    coordinates = MoleculeCoordinates(z_matrix(bonds), x)
    again = coordinates_from(coordinates.description())
    for own in (coordinates, again):
        y = own.from_configurations(x)
        back, log_volume = own.to_configurations(y)
        torch.testing.assert_close(own.from_configurations(back), y, rtol=0, atol=1e-11)
        torch.testing.assert_close(torch.pdist(back[0].unflatten(0, (-1, 3))), torch.pdist(x[0].unflatten(0, (-1, 3))))
        _, log_det = own._map.forward_and_log_det(back)
        torch.testing.assert_close(log_volume, -log_det)
    assert again.support == coordinates.support
    assert "circular" not in coordinates.support, "nothing turned in the reference"
    single = MoleculeCoordinates(z_matrix(bonds), x[:1])
    assert single.support.count("circular") == single.z_matrix.improper.count(False)
    assert coordinates_from(MeanFreeCoordinates(3, 2).description()).features == 4


def test_volume_of_a_diatomic_chain_is_the_cartesian_one():
    """Two bonds of Gaussian energy: the Cartesian integral, place aside, is (2 pi)^3; shapes hold that over 8 pi^2."""
    reference = torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    coordinates = MoleculeCoordinates(z_matrix([(0, 1), (1, 2)]), reference)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(30))
    r, a = 4 * (nodes + 1), 0.5 * math.pi * (nodes + 1)
    x, log_volume = coordinates.to_configurations(torch.cartesian_prod(r, r, a))
    square = x.unflatten(1, (3, 3)).diff(dim=1).square().sum((1, 2))
    share = torch.cartesian_prod(4 * weights, 4 * weights, 0.5 * math.pi * weights).prod(1)
    integral = (share * torch.exp(log_volume - 0.5 * square)).sum()
    assert float(integral) * 8 * math.pi**2 == pytest.approx((2 * math.pi) ** 3, rel=1e-6)


@pytest.mark.parametrize(
    ("bonds", "n", "match"),
    [
        ([(0, 1)], None, "three atoms or more"),
        ([(0, 1), (1, 1), (1, 2)], None, "two different atoms"),
        ([(0, 1), (2, 3), (3, 4), (4, 5)], None, "join all 6 atoms"),
        ([(0, 1), (1, 2)], 4, "atoms 3 are not joined"),
    ],
)
def test_bonds_that_make_no_molecule(bonds, n, match):
    with pytest.raises(ValueError, match=match):
        z_matrix(bonds, n)


def test_z_matrices_place_atoms_by_earlier_ones():
    with pytest.raises(ValueError, match="placed before"):
        ZMatrix((0, 1, 2, 3), 1, ((2, 1, 3),), (False,), (False,))
