"""Hamiltonian trajectories of many chains at once, by the leapfrog: reversible, and preserving volume whatever the gradient is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.targets import Target, circular_columns, wrap_angles

_FARTHEST = 1e100  # a trajectory that explodes is rejected by its energy; the user's function is spared the infinities


class Phase(NamedTuple):
    """Points in phase space.

    Attributes
    ----------
    position, momentum : Tensor (n, d)
        The momentum in units in which its distribution is standard normal.
    log_prob : Tensor (n,)
    gradient : Tensor (n, d)
    """

    position: Tensor
    momentum: Tensor
    log_prob: Tensor
    gradient: Tensor

    @property
    def energy(self) -> Tensor:
        """Potential plus kinetic energy, ``(n,)``."""
        return 0.5 * self.momentum.square().sum(-1) - self.log_prob


class Dynamics:
    """Motion in the potential ``-log_prob`` with a constant mass.

    Parameters
    ----------
    target : Target
        On real columns and angles; angles stay on their circle, and momenta know of no seam.
    factor : Tensor (d,) or (d, d)
        Square root L of the inverse mass ``L L^T``, lower triangular, or its diagonal: best near that of the target's covariance.

    References
    ----------
    Neal 2011, "MCMC using Hamiltonian dynamics", arXiv:1206.1901.
    """

    def __init__(self, target: Target, factor: Tensor):
        self.target, self.factor = target, factor
        circular = circular_columns(target)
        self._circular = circular.to(factor.device) if bool(circular.any()) else None

    def advance(self, phase: Phase, step: Tensor, n_steps: int = 1) -> Phase:
        """``n_steps`` leapfrogs of signed length ``step``, a number or ``(n, 1)``: one gradient each."""
        position, momentum, gradient = phase.position, phase.momentum, phase.gradient
        log_prob = phase.log_prob
        for i in range(n_steps):
            # Two half kicks between drifts are one.
            momentum = momentum + (0.5 * step if i == 0 else step) * self._kick(gradient)
            position = self._on_circle(position + step * self._drift(momentum)).nan_to_num(0.0, _FARTHEST, -_FARTHEST)
            log_prob, gradient = self.target.log_prob_and_grad(position)
        return Phase(position, momentum + 0.5 * step * self._kick(gradient), log_prob, gradient)

    def goes_round(self, way: Tensor) -> Tensor | None:
        """Whether an angle is carried more than half way round by ``way (n, d)``, a sum of momenta times the step; None without angles."""
        if self._circular is None:
            return None
        return ((self._drift(way).abs() > math.pi) & self._circular).any(-1)

    def _drift(self, momentum: Tensor) -> Tensor:
        return momentum * self.factor if self.factor.ndim == 1 else momentum @ self.factor.T

    def _kick(self, gradient: Tensor) -> Tensor:
        return gradient * self.factor if self.factor.ndim == 1 else gradient @ self.factor

    def _on_circle(self, x: Tensor) -> Tensor:
        return x if self._circular is None else wrap_angles(x, self._circular)


def holes(phase: Phase) -> Tensor:
    """Where the target, not the trajectory, failed: NaN or +inf of its log-density, ``(n,)`` bool."""
    undefined = torch.isnan(phase.log_prob) | (phase.log_prob == torch.inf)
    return undefined & torch.isfinite(phase.momentum).all(-1)
