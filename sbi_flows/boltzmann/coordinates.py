"""What a flow sees of a configuration: all of it, or its shape without place, or without place and direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sbi_flows._validation import as_rows
from sbi_flows.bijections.internal import PLACEMENT, InternalCoordinates
from sbi_flows.bijections.mean_free import from_mean_free, to_mean_free
from sbi_flows.bijections.spline import wrap
from sbi_flows.bijections.z_matrix import ZMatrix, z_matrix
from sbi_flows.distributions.rigid import TYPICAL_LENGTH, log_length_density

_UNIT = 1e-3  # how far from one the length of a quaternion may be
_FEW = 100  # configurations: fewer do not tell how far a torsion turns


class Coordinates(ABC):
    """Coordinates ``y (n, features)`` of configurations ``x (n, whole)``.

    Attributes
    ----------
    features, whole : int
    names : tuple of str
        Of the coordinates.
    support : list
        Of the coordinates, one entry each.
    """

    features: int
    whole: int
    names: tuple[str, ...]
    support: list[Any]

    @abstractmethod
    def to_configurations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Configurations ``(n, whole)``, and ``ln |volume|`` ``(n,)`` that a unit volume of coordinates takes in the space of shapes."""

    @abstractmethod
    def from_configurations(self, x: Tensor) -> Tensor:
        """Coordinates ``(n, features)``; what they leave out is dropped."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain data from which :func:`coordinates_from` makes the same again."""

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """``ValueError`` where configurations ``x (n, whole)`` cannot all be draws of one density."""


class MeanFreeCoordinates(Coordinates):
    """Orthonormal coordinates of configurations whose centre is the origin; volumes are kept.

    Parameters
    ----------
    particles, dimensions : int

    Examples
    --------
    >>> MeanFreeCoordinates(4, 2).features
    6
    """

    def __init__(self, particles: int, dimensions: int):
        self.particles, self.dimensions = int(particles), int(dimensions)
        self.features, self.whole = (self.particles - 1) * self.dimensions, self.particles * self.dimensions
        self.names = tuple(f"y{i}" for i in range(self.features))
        self.support = ["real"] * self.features

    def to_configurations(self, y):
        return from_mean_free(y, self.particles), y.new_zeros(len(y))

    def from_configurations(self, x):
        return to_mean_free(x, self.particles)

    def check(self, x):
        """Every configuration has a shape."""

    def description(self):
        return {"kind": "mean-free", "particles": self.particles, "dimensions": self.dimensions}


class MoleculeCoordinates(Coordinates):
    """Bonds, angles and dihedrals of one molecule: its shape, without place and direction.

    Bonds are positive and angles in (0, pi). Torsions are angles on a circle. Dihedrals between neighbours of one atom, and torsions that
    in ``reference`` stay within a right angle of their mean, are measured from that mean, on (-pi, pi). At tetrahedral centres the sign of
    such a dihedral is the centre's hand: there the support is the half circle of the reference, and no draw ever has another hand. An
    energy cannot tell: it is the same for both.

    Volumes are those of Cartesian space over those of place and direction: an integral over all of space and all directions is larger by
    the volume of the box times ``8 pi^2``.

    Parameters
    ----------
    z_matrix : ZMatrix
    reference : array-like (m, 3 atoms)
        One configuration or more, all of the same hand; of a hundred or more, torsions that hardly turn are found.

    Raises
    ------
    ValueError
        If configurations of the reference have different hands, or the wrong width.

    Examples
    --------
    >>> from sbi_flows.bijections.z_matrix import z_matrix
    >>> zigzag = torch.tensor([[0.0, 0, 0, 1, 0, 0, 1, 1, 0, 2, 1, 0.1]])
    >>> coordinates = MoleculeCoordinates(z_matrix([(0, 1), (1, 2), (2, 3)]), zigzag)
    >>> coordinates.names[-1], coordinates.support[-1]
    ('dihedral 3-2-1-0', 'circular')
    """

    def __init__(self, z_matrix: ZMatrix, reference: Any):
        self.z_matrix, self._map = z_matrix, InternalCoordinates(z_matrix)
        n = len(z_matrix.atoms)
        self.whole, self.features = 3 * n, 3 * n - PLACEMENT
        self.names = self._map.names[PLACEMENT:]
        rows = as_rows(reference, "reference", self.whole).double()
        dihedrals = self._map.forward_and_log_det(rows)[0][:, PLACEMENT + 2 * n - 3 :]
        self.improper = torch.tensor(z_matrix.improper, dtype=torch.bool)
        self.handed = torch.tensor(z_matrix.handed, dtype=torch.bool)
        self.hands = dihedrals[0].sign()
        self._check_hands(dihedrals, "reference")
        mean = torch.atan2(dihedrals.sin().mean(0), dihedrals.cos().mean(0))
        near = (wrap(dihedrals - mean).abs() < 0.5 * math.pi).all(0) if len(rows) >= _FEW else torch.zeros_like(self.improper)
        self.centred = (self.improper | near) & ~self.handed
        self._settle(torch.where(self.centred, mean, 0.0))

    def _settle(self, centres: Tensor) -> None:
        """Supports, and where dihedrals are measured from."""
        self.centres, n = centres, len(self.z_matrix.atoms)
        half = {1.0: (0.0, math.pi), -1.0: (-math.pi, 0.0)}
        dihedrals: list[Any] = [
            half[sign] if handed else (-math.pi, math.pi) if centred else "circular"
            for handed, centred, sign in zip(self.handed.tolist(), self.centred.tolist(), self.hands.tolist(), strict=True)
        ]
        self.support = [(0.0, math.inf)] * (n - 1) + [(0.0, math.pi)] * (n - 2) + dihedrals

    def to_configurations(self, y):
        n = len(self.z_matrix.atoms)
        shape, dihedrals = y.split([2 * n - 3, n - 3], 1)
        still = y.new_tensor([0.0, 0.0, 0.0, 0.5 * math.pi, 0.0, 0.0]).expand(len(y), -1)
        return self._map.inverse_and_log_det(torch.cat([still, shape, dihedrals + self.centres.to(y)], 1))

    def from_configurations(self, x):
        n = len(self.z_matrix.atoms)
        shape, dihedrals = self._map.forward_and_log_det(x)[0][:, PLACEMENT:].split([2 * n - 3, n - 3], 1)
        return torch.cat([shape, torch.where(self.centred, wrap(dihedrals - self.centres.to(x)), dihedrals)], 1)

    def mirrored(self, x: Tensor) -> Tensor:
        """Which configurations ``x (n, whole)`` have a tetrahedral centre of another hand than the reference, ``(n,)`` bool."""
        n = len(self.z_matrix.atoms)
        dihedrals = self._map.forward_and_log_det(x)[0][:, PLACEMENT + 2 * n - 3 :]
        return ((dihedrals.sign() != self.hands.to(x)) & self.handed).any(1)

    def check(self, x):
        n = len(self.z_matrix.atoms)
        self._check_hands(self._map.forward_and_log_det(x)[0][:, PLACEMENT + 2 * n - 3 :], "X")

    def _check_hands(self, dihedrals: Tensor, name: str) -> None:
        other = (dihedrals.sign() != self.hands) & self.handed
        if not bool(other.any()):
            return
        worst = int(other.sum(0).argmax())
        atom, centre = self.z_matrix.atoms[worst + 3], self.z_matrix.references[worst][0]
        raise ValueError(
            f"Expected configurations of one hand; {int(other.any(1).sum())} of {len(other)} rows of {name} have another hand than the "
            f"reference, most at the tetrahedral atom {centre} (seen by its neighbour {atom}). Mirror images are different molecules, or "
            "atoms were swapped: sort them by hand, and give each its own generator."
        )

    def description(self):
        z = self.z_matrix
        return {
            "kind": "molecule", "atoms": list(z.atoms), "hinge": z.hinge, "references": [list(row) for row in z.references],
            "improper": list(z.improper), "handed": list(z.handed), "hands": self.hands.tolist(), "centred": self.centred.tolist(),
            "centres": self.centres.tolist(),
        }  # fmt: skip

    @classmethod
    def from_description(cls, told: Mapping[str, Any]) -> MoleculeCoordinates:
        """What :meth:`description` told."""
        references = tuple((int(a), int(b), int(c)) for a, b, c in told["references"])
        z = ZMatrix(tuple(told["atoms"]), told["hinge"], references, tuple(told["improper"]), tuple(told["handed"]))
        own = cls.__new__(cls)
        own.z_matrix, own._map = z, InternalCoordinates(z)
        own.whole, own.features = 3 * len(z.atoms), 3 * len(z.atoms) - PLACEMENT
        own.names = own._map.names[PLACEMENT:]
        own.improper, own.handed = torch.tensor(z.improper, dtype=torch.bool), torch.tensor(z.handed, dtype=torch.bool)
        own.hands = torch.tensor(told["hands"], dtype=torch.float64)
        own.centred = torch.tensor(told["centred"], dtype=torch.bool)
        own._settle(torch.tensor(told["centres"], dtype=torch.float64))
        return own


class RigidCoordinates(Coordinates):
    """Real coordinates of rigid bodies: positions from their centres, and quaternions of any length, whose direction is the rotation.

    On all of space there is no constraint to keep, so particles can be annealed and chains run as anywhere else. Lengths have a density of
    their own, which integrates to one: integrals are those per volume, and per area of the sphere of unit quaternions.

    Parameters
    ----------
    bodies : int
    centres : array-like (bodies, 3), optional
        From which positions are measured, sites of a lattice say; the origin by default.

    Examples
    --------
    >>> RigidCoordinates(2).features
    14
    """

    def __init__(self, bodies: int, centres: Any = None):
        self.bodies = int(bodies)
        origin = torch.zeros(self.bodies, 3, dtype=torch.float64)
        self.centres = origin if centres is None else torch.as_tensor(centres, dtype=torch.float64)
        if self.centres.shape != (self.bodies, 3):
            raise ValueError(f"Expected centres of shape ({bodies}, 3), a row a body; got {tuple(self.centres.shape)}.")
        self.features = self.whole = 7 * self.bodies
        self.names = tuple(f"{name}{i}" for i in range(self.bodies) for name in ("x", "y", "z", "qw", "qx", "qy", "qz"))
        self.support = ["real"] * self.features

    def to_configurations(self, y):
        place, turn = y.unflatten(1, (self.bodies, 7)).split([3, 4], -1)
        x = torch.cat([place + self.centres.to(y), turn / turn.norm(dim=-1, keepdim=True)], -1).flatten(1)
        return x, log_length_density(turn).sum(1)

    def from_configurations(self, x):
        place, turn = x.unflatten(1, (self.bodies, 7)).split([3, 4], -1)
        return torch.cat([place - self.centres.to(x), TYPICAL_LENGTH * turn / turn.norm(dim=-1, keepdim=True)], -1).flatten(1)

    def check(self, x):
        length = x.unflatten(1, (self.bodies, 7))[..., 3:].norm(dim=-1)
        if not bool(((length - 1).abs() < _UNIT).all()):
            raise ValueError(
                f"Expected unit quaternions; got lengths from {float(length.min()):.4g} to {float(length.max()):.4g}. Rows are x, y, z, "
                "qw, qx, qy, qz a body: divide each quaternion by its length."
            )

    def description(self):
        return {"kind": "rigid", "bodies": self.bodies, "centres": self.centres.tolist()}


def coordinates_from(told: Mapping[str, Any] | None) -> Coordinates | None:
    """The coordinates of a description; None for none."""
    if told is None:
        return None
    if told["kind"] == "mean-free":
        return MeanFreeCoordinates(told["particles"], told["dimensions"])
    if told["kind"] == "rigid":
        return RigidCoordinates(told["bodies"], told["centres"])
    return MoleculeCoordinates.from_description(told)


def coordinates_of(energy: Any, reference: Any = None) -> Coordinates | None:
    """What suits an energy by what it says of itself; None, for columns as they are, where it says nothing.

    A molecule (``energy.bonds``) gets bonds, angles and dihedrals, of the hand of ``reference (m, whole)`` or else of ``energy.start``;
    particles without place get mean-free coordinates, and ``energy.bodies`` rigid bodies about ``energy.lattice``, if there is one.
    """
    if hasattr(energy, "bodies"):
        return RigidCoordinates(energy.bodies, getattr(energy, "lattice", None))
    bonds, particles = getattr(energy, "bonds", None), getattr(energy, "particles", None)
    if bonds is not None:
        known = energy.start(1, torch.Generator().manual_seed(0)) if reference is None else reference
        return MoleculeCoordinates(z_matrix(bonds), known)
    if particles is None or "translations" not in getattr(energy, "symmetries", ()):
        return None
    return MeanFreeCoordinates(*particles)
