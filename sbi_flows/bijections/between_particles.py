"""What velocities of alike particles share: coordinates without a centre, the pairs, and no context."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sbi_flows.bijections.mean_free import mean_free_basis
from sbi_flows.bijections.modulated import TimeModulated

_REACH = 5.0  # of the radial functions at the start: five standard deviations of a coordinate
SOFT = 0.3  # distances are sqrt(r^2 + soft^2): without a crease, which integrators would have to resolve, where two particles meet


class NoConditions(NamedTuple):
    """Particles have no context."""

    def rows(self, rows: Tensor | None) -> NoConditions:
        """The same for some rows of the batch."""
        return self


class BetweenParticles(TimeModulated):
    """Base of velocities of the mean-free coordinates ``y`` of particles that know them by their distances.

    Subclasses have ``forward`` and ``with_divergence``, the other methods of :class:`sbi_flows.bijections.velocity.VelocityNet` that
    :class:`sbi_flows.bijections.continuous.Continuous` calls.

    Parameters
    ----------
    particles, dimensions : int
    radial : int
        Radial functions of a distance: Gaussians, whose centres and widths are trained.
    """

    basis: Tensor
    is_real: Tensor
    signed: Tensor
    _first: Tensor
    _second: Tensor

    def __init__(self, particles: int, dimensions: int, radial: int):
        super().__init__()
        self.particles, self.dimensions = particles, dimensions
        self.features = (particles - 1) * dimensions
        self.register_buffer("basis", mean_free_basis(particles).to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("is_real", torch.ones(self.features, 1), persistent=False)
        first, second = torch.triu_indices(particles, particles, 1)
        self.register_buffer("_first", first, persistent=False)
        self.register_buffer("_second", second, persistent=False)
        # Sums over the pairs of each particle, with the sign of a difference.
        signed = torch.zeros(particles, len(first))
        pairs = torch.arange(len(first))
        signed[first, pairs], signed[second, pairs] = 1.0, -1.0
        self.register_buffer("signed", signed / math.sqrt(particles), persistent=False)
        self.centres = nn.Parameter(torch.linspace(0, _REACH, radial)[:, None])
        self.log_widths = nn.Parameter(torch.full((radial, 1), math.log(_REACH / radial)))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        # Cast from float64 anew: rounded to float32 once, its columns would never be orthonormal to more.
        self.basis = mean_free_basis(self.particles).to(self.basis)
        return self

    def conditions(self, context: Tensor | None, divergence: bool = False) -> NoConditions:
        """Nothing is prepared: there is no context."""
        return NoConditions()

    def modulations(self, t: Tensor, conditions: NoConditions) -> Callable[[int], Tensor]:
        """For times ``t (k,)`` known beforehand, a function of their number."""
        every = self._modulation(t)
        return lambda k: every[:, k : k + 1]

    def _differences(self, y: Tensor) -> Tensor:
        """Of all pairs, ``(pairs, dimensions, n)``, linear in ``y (d, n)``."""
        place = torch.tensordot(self.basis, y.unflatten(0, (self.particles - 1, self.dimensions)), 1)
        return place[self._first] - place[self._second]

    def _mean_free(self, velocity: Tensor) -> Tensor:
        """Of the coordinates, ``(d, n)``, from those of the particles, ``(particles, dimensions, n)``."""
        return torch.tensordot(self.basis, velocity, ([0], [0])).flatten(0, 1)
