"""A liquid of two kinds of discs in a periodic box, which supercools: Kob and Andersen's mixture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows._validation import positive
from sbi_flows.physics.molecules.energy import Energy

# Depths and diameters of pairs AA, AB, BB, in units of those of AA.
_DEPTH = (1.0, 1.5, 0.5)
_DIAMETER = (1.0, 0.8, 0.88)
_CUTOFF = 2.5  # diameters


class KobAndersen(Energy):
    """``4 eps_ab ((s_ab / r)^12 - (s_ab / r)^6)`` over pairs of the nearest images, over kT, in a square or cubic box.

    Pairs are cut at ``2.5 s_ab`` by a straight line that takes energy and force there to zero together, so forces are continuous.
    Coordinates are on ``[-side / 2, side / 2)``.

    Parameters
    ----------
    particles : int
    dimensions : int
    share : float
        Of the large particles (A), which come first; 0.65 does not crystallise in two dimensions, 0.8 in three.
    density : float
        Particles per area, in units of the diameter of A.
    temperature : float
        kT in units of the depth of AA.

    Attributes
    ----------
    side : float
        Of the box; at least twice the longest cutoff, so that a particle meets one image of another.
    permuted : tuple
        The two groups of particles that are alike.

    Examples
    --------
    >>> KobAndersen(43, temperature=0.5).side > 5
    True

    References
    ----------
    Kob & Andersen 1995, Phys. Rev. E 51, 4626; Bruening, St-Onge, Patterson & Kob 2009, J. Phys.: Condens. Matter 21, 035117 (two
    dimensions).
    """

    periodic = True
    particles: tuple[int, int]
    symmetries = ("translations", "permutations")

    def __init__(
        self, particles: int = 43, dimensions: int = 2, *, share: float = 0.65, density: float = 1.2, temperature: float = 0.5
    ):
        positive("particles", particles, integer=True)
        positive("dimensions", dimensions, integer=True)
        positive("density", density)
        positive("temperature", temperature)
        if not 0 <= share <= 1:
            raise ValueError(f"Expected share, that of the large particles, in [0, 1]; got {share}.")
        self.side = (particles / density) ** (1 / dimensions)
        if self.side < 2 * _CUTOFF * max(_DIAMETER):
            least = math.ceil(density * (2 * _CUTOFF * max(_DIAMETER)) ** dimensions)
            raise ValueError(
                f"Expected a box of at least twice the cutoff, 5 diameters; {particles} particles at density {density} give "
                f"{self.side:.3g}. Take {least} particles or more."
            )
        self.particles, self.features = (int(particles), int(dimensions)), particles * dimensions
        self.density, self.temperature = float(density), float(temperature)
        self.name = f"Kob-Andersen {particles} at kT {temperature:g}"
        large = round(share * particles)
        self.permuted = (tuple(range(large)), tuple(range(large, particles)))
        kind = (torch.arange(particles) >= large).long()
        self._first, self._second = torch.triu_indices(particles, particles, 1)
        pair = kind[self._first] + kind[self._second]
        self._depth = torch.tensor(_DEPTH, dtype=torch.float64)[pair][:, None]
        self._diameter = torch.tensor(_DIAMETER, dtype=torch.float64)[pair][:, None]

    @property
    def degrees_of_freedom(self) -> int:
        return self.features

    def energy(self, x):
        return self._parts(x)[0]

    def energy_and_force(self, x):
        energy, gradient = self._parts(x.detach())
        return energy, -gradient

    def wrapped(self, x):
        return x - self.side * torch.floor(x / self.side + 0.5)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        place = x.T.unflatten(0, self.particles)
        apart = place[self._first] - place[self._second]
        apart = apart - self.side * torch.round(apart / self.side)
        diameter, depth = self._diameter.to(x), (self._depth / self.temperature).to(x)
        distance = apart.square().sum(1).sqrt()
        inside = distance < _CUTOFF * diameter
        # Beyond the cutoff any harmless number, so that gradients of the unselected branch stay finite.
        reduced = torch.where(inside, distance, diameter) / diameter
        value, slope = _lennard_jones(reduced)
        edge, edge_slope = _lennard_jones(torch.tensor(_CUTOFF, dtype=x.dtype))
        energy = torch.where(inside, depth * (value - edge - edge_slope * (reduced - _CUTOFF)), 0.0)
        along = torch.where(inside, depth * (slope - edge_slope) / (diameter * distance), 0.0)
        on_pairs = along[:, None] * apart
        gradient = torch.zeros_like(place).index_add(0, self._first, on_pairs).index_add(0, self._second, -on_pairs)
        return energy.sum(0), gradient.flatten(0, 1).T

    def start(self, n, generator):
        """A lattice with the two kinds at random places, jittered."""
        count, dimensions = self.particles
        per_axis = math.ceil(count ** (1 / dimensions))
        axis = ((torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis - 0.5) * self.side
        grid = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
        order = torch.rand(n, len(grid), generator=generator).argsort(1)[:, :count]
        jitter = 0.02 * randn((n, count, dimensions), generator, dtype=torch.float64)
        return self.wrapped((grid[order] + jitter).flatten(1))


def _lennard_jones(r: Tensor) -> tuple[Tensor, Tensor]:
    """``4 (r^-12 - r^-6)`` and its derivative."""
    sixth = r.pow(-6)
    return 4 * (sixth - 1) * sixth, (24 - 48 * sixth) * sixth / r
