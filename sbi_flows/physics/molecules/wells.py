"""Wells with barriers between them, whose partition functions are one-dimensional integrals: one double well, and many."""

from __future__ import annotations

import itertools
import math
from functools import cached_property

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows.physics.molecules.energy import Energy

_LOG_2PI = math.log(2 * math.pi)


class ManyWell(Energy):
    """``sum over pairs of (tilt x1 + barrier x1^2 + quartic x1^4 + x2^2 / 2)``: ``2^(features / 2)`` modes, ln Z exact.

    Parameters
    ----------
    features : int
        Even. 32 is the common benchmark: 65536 modes.
    tilt, barrier, quartic : float
        ``barrier < 0`` makes two wells, ``quartic > 0`` keeps them.

    Attributes
    ----------
    log_z : float
        ln Z, by quadrature.
    log_z_sides : tuple of float
        Of one pair: the logarithm of the integral over ``x1 < 0`` and over ``x1 > 0``.
    free_energy_difference : float
        Of one pair, in kT: of the side ``x1 > 0`` minus that of ``x1 < 0``.

    Examples
    --------
    >>> energy = ManyWell(32)
    >>> round(energy.log_z, 4)
    164.6957
    >>> energy(torch.zeros(2, 32))
    tensor([0., 0.])

    References
    ----------
    Noe, Olsson, Koehler & Wu 2019, "Boltzmann generators", Science 365, eaaw1147; Midgley et al. 2023, "Flow annealed importance
    sampling bootstrap", arXiv:2208.01893.
    """

    def __init__(self, features: int = 32, *, tilt: float = -0.5, barrier: float = -6.0, quartic: float = 1.0):
        if features < 2 or features % 2:
            raise ValueError(f"Expected an even number of features, two a pair of coordinates; got {features}.")
        if not quartic > 0:
            raise ValueError(f"Expected quartic > 0, or the energy has no minimum; got {quartic}.")
        self.features, self.tilt, self.barrier, self.quartic = int(features), float(tilt), float(barrier), float(quartic)
        self.name = f"ManyWell-{features}" if features > 2 else "double well"
        self.log_z_sides = (self._log_side(-1.0) + 0.5 * _LOG_2PI, self._log_side(1.0) + 0.5 * _LOG_2PI)
        self.log_z = features // 2 * float(np.logaddexp(*self.log_z_sides))
        self.free_energy_difference = self.log_z_sides[0] - self.log_z_sides[1]

    def energy(self, x):
        first, second = x[:, ::2], x[:, 1::2]
        square = first.square()
        return (self.tilt * first + (self.barrier + self.quartic * square) * square + 0.5 * second.square()).sum(1)

    def _log_side(self, sign: float) -> float:
        """ln of the integral of exp(-U(x1)) over ``sign * x1 > 0``."""
        bottom = self._well(self.minima[0 if sign < 0 else -1])
        integral, _ = quad(lambda x: math.exp(bottom - self._well(sign * x)), 0, math.inf, epsabs=0, epsrel=1e-12, limit=200)
        return math.log(integral) - bottom

    def _well(self, x: float) -> float:
        return self.tilt * x + self.barrier * x**2 + self.quartic * x**4

    @cached_property
    def minima(self) -> tuple[float, ...]:
        """The minima of one well coordinate, from left to right."""
        roots = np.roots([4 * self.quartic, 0.0, 2 * self.barrier, self.tilt])
        real = np.sort(roots[np.abs(roots.imag) < 1e-9].real)
        return tuple(float(x) for x in real if 12 * self.quartic * x**2 + 2 * self.barrier > 0)

    @property
    def modes(self) -> Tensor | None:
        pairs = self.features // 2
        if pairs > 16:
            return None  # more rows than memory
        out = torch.zeros(len(self.minima) ** pairs, self.features, dtype=torch.float64)
        out[:, ::2] = torch.tensor(list(itertools.product(self.minima, repeat=pairs)), dtype=torch.float64)
        return out

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` exact draws, float64: x1 by inverting its distribution function on a fine grid, x2 normal."""
        reach = max(abs(m) for m in self.minima) + 12 / math.sqrt(2 * abs(self.barrier) + 1)
        grid = torch.linspace(-reach, reach, 200_001, dtype=torch.float64)
        well = self.tilt * grid + self.barrier * grid**2 + self.quartic * grid**4
        density = torch.exp(well.min() - well)
        cumulative = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, grid)])
        u = torch.rand(n, self.features // 2, generator=generator, dtype=torch.float64) * cumulative[-1]
        above = torch.searchsorted(cumulative, u).clamp(1, len(grid) - 1)
        low, high = cumulative[above - 1], cumulative[above]
        x = randn((n, self.features), generator, dtype=torch.float64)
        x[:, ::2] = grid[above - 1] + (u - low) / (high - low) * (grid[above] - grid[above - 1])
        return x

    def start(self, n, generator):
        return 2 * randn((n, self.features), generator, dtype=torch.float64)


def double_well(*, tilt: float = -0.5, barrier: float = -6.0, quartic: float = 1.0) -> ManyWell:
    """``tilt x1 + barrier x1^2 + quartic x1^4 + x2^2 / 2``: two wells and the exact free-energy difference between them.

    Examples
    --------
    >>> round(double_well().free_energy_difference, 6)
    -1.690679
    """
    return ManyWell(2, tilt=tilt, barrier=barrier, quartic=quartic)
