"""Internal coordinates of molecules: bonds, angles and dihedrals from Cartesian coordinates and back, with the exact Jacobian.

An atom at distance r, angle a and dihedral from three others sits in spherical coordinates about them, so the Jacobian is a product over
atoms of ``r^2 sin a``. The first three atoms are placed against points at rest, which gives the six coordinates of place and direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows.bijections.base import Bijection
from sbi_flows.bijections.z_matrix import ZMatrix

PLACEMENT = 6  # coordinates of place and direction
# Points at rest next to the first atom: by them the first bond has a polar angle from z and a turn about it from x.
_ABOVE = (0.0, 0.0, 1.0)
_ASIDE = (1.0, 0.0, 1.0)


class InternalCoordinates(Bijection):
    """Cartesian ``x (n, 3 atoms)`` to place and direction (6), bonds (atoms - 1), angles (atoms - 2) and dihedrals (atoms - 3).

    The six are the place of the first atom, the polar angle of the first bond from z, its turn about z, and the turn of the third atom
    about the first bond. Bonds are in the units of x, angles in (0, pi), dihedrals and turns in [-pi, pi), positive as those of
    chemistry (clockwise, seen along the middle bond).

    Parameters
    ----------
    z_matrix : ZMatrix
        See :func:`sbi_flows.bijections.z_matrix.z_matrix`.

    Attributes
    ----------
    names : tuple of str
        Of all columns.

    Examples
    --------
    >>> from sbi_flows.bijections.z_matrix import z_matrix
    >>> internal = InternalCoordinates(z_matrix([(0, 1), (1, 2)]))
    >>> q, log_det = internal.forward_and_log_det(torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 2.0, 0]]))
    >>> dict(zip(internal.names[6:], q[0, 6:].tolist()))
    {'bond 1-0': 1.0, 'bond 1-2': 2.0, 'angle 0-1-2': 1.5707963705062866}

    References
    ----------
    Parsons, Holmes, Rojas, Tsai & Strauss 2005, "Practical conversion from torsion space to Cartesian space", J. Comput. Chem. 26, 1063;
    Noe, Olsson, Koehler & Wu 2019, "Boltzmann generators", Science 365, eaaw1147.
    """

    def __init__(self, z_matrix: ZMatrix):
        super().__init__()
        self.z_matrix, self.n_atoms = z_matrix, len(z_matrix.atoms)
        n = self.n_atoms
        first, second = z_matrix.atoms[:2]
        above, aside = n, n + 1
        third = (z_matrix.hinge, first if z_matrix.hinge == second else second, above)
        rows = [(first, above, aside), third, *z_matrix.references]
        self._placed = list(zip(z_matrix.atoms[1:], rows, strict=True))
        self._order = torch.tensor(z_matrix.atoms[1:])
        self._rows = torch.tensor(rows)
        self._generations = _generations(self._placed, first)

    @property
    def names(self) -> tuple[str, ...]:
        bonds = [f"bond {row[0]}-{atom}" for atom, row in self._placed]
        angles = [f"angle {row[1]}-{row[0]}-{atom}" for atom, row in self._placed[1:]]
        dihedrals = [f"dihedral {row[2]}-{row[1]}-{row[0]}-{atom}" for atom, row in self._placed[2:]]
        return ("place x", "place y", "place z", "polar", "azimuth", "turn", *bonds, *angles, *dihedrals)

    def forward_and_log_det(self, x, context=None):
        points = self._with_rest(x.unflatten(1, (self.n_atoms, 3)))
        origin = points[:, self.z_matrix.atoms[0]]
        own, (near, middle, far) = points[:, self._order], points[:, self._rows].unbind(2)
        distance, angle, turn = _spherical(own, near, middle, far)
        log_det = -_log_volume(distance, angle)
        q = torch.cat([origin, angle[:, :1], turn[:, :2], distance, angle[:, 1:], turn[:, 2:]], 1)
        return q, log_det

    def inverse_and_log_det(self, z, context=None):
        n = self.n_atoms
        place, polar, turns, distance, angle, dihedral = z.split([3, 1, 2, n - 1, n - 2, n - 3], 1)
        angle, turn = torch.cat([polar, angle], 1), torch.cat([turns, dihedral], 1)
        points = self._with_rest(place[:, None].expand(-1, n, -1))
        for members in self._generations:
            near, middle, far = points[:, self._rows[members]].unbind(2)
            own = _placed(near, middle, far, distance[:, members], angle[:, members], turn[:, members])
            points = points.index_copy(1, self._order[members], own)
        return points[:, :n].flatten(1), _log_volume(distance, angle)

    def _with_rest(self, points: Tensor) -> Tensor:
        origin = points[:, self.z_matrix.atoms[0], None]
        return torch.cat([points, origin + torch.tensor([_ABOVE, _ASIDE], dtype=points.dtype, device=points.device)], 1)


def _log_volume(distance: Tensor, angle: Tensor) -> Tensor:
    """``ln |det dx/dq|`` ``(n,)``."""
    return 2 * distance.abs().log().sum(1) + angle.sin().abs().log().sum(1)


def _spherical(own: Tensor, near: Tensor, middle: Tensor, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to ``near``, angle at it from ``middle``, and dihedral own-near-middle-far, of points ``(..., 3)``."""
    bond, axis, beyond = own - near, middle - near, far - middle
    distance = bond.norm(dim=-1)
    # Of the three ways to an angle, the one without loss of digits at 0 and pi.
    normal = torch.linalg.cross(bond, axis)
    angle = torch.atan2(normal.norm(dim=-1), (bond * axis).sum(-1))
    other = torch.linalg.cross(beyond, axis)
    sine = (torch.linalg.cross(other, normal) * axis).sum(-1) / axis.norm(dim=-1)
    return distance, angle, torch.atan2(-sine, (normal * other).sum(-1))


def dihedral_of(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral a-b-c-d of points ``(..., 3)``: ``(...,)`` in [-pi, pi]."""
    return _spherical(a, b, c, d)[2]


def _placed(near: Tensor, middle: Tensor, far: Tensor, distance: Tensor, angle: Tensor, turn: Tensor) -> Tensor:
    """The inverse of :func:`_spherical`: ``(..., 3)``."""
    axis = middle - near
    axis = axis / axis.norm(dim=-1, keepdim=True)
    normal = torch.linalg.cross(far - middle, axis)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    across = torch.linalg.cross(axis, normal)
    radius = distance * angle.sin()
    parts = ((distance * angle.cos(), axis), (radius * turn.cos(), across), (radius * turn.sin(), normal))
    return near + sum(size[..., None] * direction for size, direction in parts)


def _generations(placed: list[tuple[int, tuple[int, int, int]]], first: int) -> list[list[int]]:
    """Which rows can be placed at once, after those before."""
    age = {first: 0}
    for atom, row in placed:
        age[atom] = 1 + max(age.get(reference, 0) for reference in row)
    groups: dict[int, list[int]] = {}
    for i, (atom, _) in enumerate(placed):
        groups.setdefault(age[atom], []).append(i)
    return [groups[key] for key in sorted(groups)]
