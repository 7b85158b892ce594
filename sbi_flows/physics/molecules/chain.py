"""A chain of four atoms with stiff bonds and angles and one torsion: the smallest molecule, with an exact partition function."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows._validation import positive
from sbi_flows.bijections.internal import PLACEMENT, InternalCoordinates
from sbi_flows.bijections.z_matrix import z_matrix
from sbi_flows.physics.molecules.energy import Energy

_GRID = 20_001


class ButaneLike(Energy):
    """``stretch / 2 sum (r - 1)^2 + bend / 2 sum (a - a0)^2 + twist (1 + cos 3 t) + lean (1 + cos t)`` of bonds r, angles a, torsion t.

    The torsion has three wells: trans at pi, and two gauche ones near +-pi/3, higher by about ``3 lean / 2``. Bonds, angles and torsion are
    independent, so the partition function is a product of one-dimensional integrals with the volumes ``r^2`` and ``sin a``.

    Parameters
    ----------
    stretch, bend, twist, lean : float
        In kT; lengths in those of a bond, angles in radians.
    angle : float
        a0.

    Attributes
    ----------
    bonds : tuple of (int, int)
    log_z : float
        Of the shape: place and direction are left out (over all directions it is larger by ``ln 8 pi^2``).
    free_energy_difference : float
        Of both gauche wells (``|t| < 2 pi / 3``) minus trans, in kT.

    Examples
    --------
    >>> round(ButaneLike().free_energy_difference, 3)
    0.834
    """

    features = 12
    name = "butane-like chain"
    particles = (4, 3)
    symmetries = ("translations", "rotations", "reflections")
    bonds = ((0, 1), (1, 2), (2, 3))

    def __init__(
        self, *, stretch: float = 200.0, bend: float = 60.0, twist: float = 1.5, lean: float = 1.0, angle: float = math.radians(112)
    ):
        for name, value in (("stretch", stretch), ("bend", bend), ("angle", angle)):
            positive(name, value)
        self.stretch, self.bend, self.twist, self.lean, self.angle = map(float, (stretch, bend, twist, lean, angle))
        self._map = InternalCoordinates(z_matrix(self.bonds))
        each = (self._bond, self._angle, self._torsion)
        ends = ((1e-9, 1 + 12 / math.sqrt(self.stretch)), (0.0, math.pi), (-math.pi, math.pi))
        self._tables = [_table(log_density, low, high) for log_density, (low, high) in zip(each, ends, strict=True)]
        logs = [log_integral for _, _, log_integral in self._tables]
        self.log_z = 3 * logs[0] + 2 * logs[1] + logs[2]
        gauche = _table(self._torsion, -2 * math.pi / 3, 2 * math.pi / 3)[2]
        trans = math.log(math.exp(logs[2] - gauche) - 1) + gauche
        self.free_energy_difference = trans - gauche

    def energy(self, x):
        shape = self._map.forward_and_log_det(x)[0][:, PLACEMENT:]
        bond, angle, torsion = shape.split([3, 2, 1], 1)
        springs = 0.5 * self.stretch * (bond - 1).square().sum(1) + 0.5 * self.bend * (angle - self.angle).square().sum(1)
        return springs + self._of_torsion(torsion[:, 0])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` exact draws, float64, each coordinate by inverting its distribution function; centre at the origin, turned at random."""
        columns = [0, 0, 0, 1, 1, 2]
        u = rand((n, 6), generator, dtype=torch.float64).numpy()
        shape = np.stack([np.interp(u[:, i], *self._tables[j][1::-1]) for i, j in enumerate(columns)], 1)
        turn = 2 * math.pi * rand((n, 2), generator, dtype=torch.float64) - math.pi
        polar = torch.acos(2 * rand((n, 1), generator, dtype=torch.float64) - 1)
        q = torch.cat([torch.zeros(n, 3, dtype=torch.float64), polar, turn, torch.from_numpy(shape)], 1)
        place = self._map.inverse_and_log_det(q)[0].unflatten(1, (4, 3))
        return (place - place.mean(1, keepdim=True)).flatten(1)

    def start(self, n, generator):
        """Trans, bent as it should be, jittered."""
        step = math.pi - self.angle
        x = torch.tensor([[-0.5, 0, 0], [0.5, 0, 0], [0.5 + math.cos(step), math.sin(step), 0]], dtype=torch.float64)
        first = torch.tensor([[-0.5 - math.cos(step), -math.sin(step), 0]], dtype=torch.float64)
        return torch.cat([first, x]).flatten() + 0.02 * randn((n, 12), generator, dtype=torch.float64)

    def torsion(self, x: Tensor) -> Tensor:
        """``(n,)`` in [-pi, pi) of configurations ``x (n, 12)``."""
        return self._map.forward_and_log_det(x)[0][:, -1]

    def _of_torsion(self, t):
        cos = torch.cos if isinstance(t, Tensor) else np.cos
        return self.twist * (1 + cos(3 * t)) + self.lean * (1 + cos(t))

    def _bond(self, r: np.ndarray) -> np.ndarray:
        return 2 * np.log(r) - 0.5 * self.stretch * (r - 1) ** 2

    def _angle(self, a: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(np.sin(a), 1e-300)) - 0.5 * self.bend * (a - self.angle) ** 2

    def _torsion(self, t: np.ndarray) -> np.ndarray:
        return -self._of_torsion(t)


def _table(log_density: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Points, the distribution function there, and the logarithm of the integral."""
    points = np.linspace(low, high, _GRID)
    density = np.exp(log_density(points))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return points, cumulative / cumulative[-1], math.log(cumulative[-1] * (points[1] - points[0]))
