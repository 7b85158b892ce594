"""A harmonic crystal, whose free energy is a determinant: the exact answer that methods for free energies are held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from sbi_flows._random import randn
from sbi_flows._validation import positive
from sbi_flows.physics.molecules.energy import Energy


class HarmonicCrystal(Energy):
    """Atoms near the sites of a periodic square or cubic lattice: springs between neighbours, and one from each atom to its site.

    ``U = pin / 2 sum_i |u_i|^2 + spring / 2 sum over bonds |u_i - u_j|^2`` of displacements u in all directions, as phonons without
    dispersion of direction. Then ``ln Z = features / 2 ln 2 pi - 1/2 sum of ln (pin + spring * eigenvalue of the lattice Laplacian)``, the
    eigenvalues being sums of ``4 sin^2(pi k / cells)`` over axes.

    Parameters
    ----------
    cells : sequence of int
        Sites along each axis, at least 3; its length is the number of dimensions.
    spring, pin : float
        In kT per squared length. Without a pin the crystal could drift, and ln Z would be infinite.
    spacing : float
        Between neighbouring sites.

    Attributes
    ----------
    sites : Tensor (atoms, dimensions)

    Examples
    --------
    >>> soft, hard = HarmonicCrystal((3, 3), spring=1.0), HarmonicCrystal((3, 3), spring=4.0)
    >>> round(soft.log_z - hard.log_z, 4)
    9.8065

    References
    ----------
    Frenkel & Ladd 1984, "New Monte Carlo method to compute the free energy of arbitrary solids", J. Chem. Phys. 81, 3188.
    """

    def __init__(self, cells: Sequence[int], *, spring: float = 1.0, pin: float = 1.0, spacing: float = 1.0):
        if not cells or min(cells) < 3:
            raise ValueError(f"Expected at least 3 cells along each axis, so that no two atoms share two bonds; got {tuple(cells)}.")
        positive("pin", pin)
        positive("spring", spring, zero=True)
        positive("spacing", spacing)
        self.cells, self.spring, self.pin = tuple(int(n) for n in cells), float(spring), float(pin)
        atoms, dimensions = math.prod(self.cells), len(self.cells)
        self.particles, self.features = (atoms, dimensions), atoms * dimensions
        self.name = f"harmonic crystal {'x'.join(map(str, self.cells))}"
        self.sites = spacing * torch.tensor(list(itertools.product(*map(range, self.cells))), dtype=torch.float64)
        phonons = [4 * np.sin(math.pi * np.arange(n) / n) ** 2 for n in self.cells]
        self._stiffness = self.pin + self.spring * sum(np.meshgrid(*phonons, indexing="ij"))
        self.log_z = 0.5 * self.features * math.log(2 * math.pi) - 0.5 * dimensions * float(np.log(self._stiffness).sum())

    def energy(self, x):
        u = (x - self.sites.flatten().to(x)).unflatten(1, (*self.cells, len(self.cells)))
        bonds = sum((u - u.roll(1, axis)).square().flatten(1).sum(1) for axis in range(1, 1 + len(self.cells)))
        return 0.5 * self.pin * u.flatten(1).square().sum(1) + 0.5 * self.spring * bonds

    @property
    def modes(self):
        return self.sites.flatten()[None]

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """``n`` exact draws, float64: independent phonons."""
        axes = tuple(range(1, 1 + len(self.cells)))
        white = randn((n, *self.cells, len(self.cells)), generator, dtype=torch.float64)
        scale = torch.from_numpy(self._stiffness).rsqrt()[..., None]
        u = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * scale, dim=axes).real
        return self.sites.flatten() + u.flatten(1)

    def start(self, n, generator):
        return self.sites.flatten() + 0.1 * randn((n, self.features), generator, dtype=torch.float64)
