"""What an energy is: a function of batches of configurations, in units of kT, and what is known of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sbi_flows.boltzmann.symmetries import SYMMETRIES

__all__ = ["SYMMETRIES", "Energy"]


class Energy(ABC):
    """An energy ``U / kT`` of batches of configurations ``x (n, features)``; they have the density ``exp(-U)``.

    Attributes
    ----------
    features : int
        Numbers in one configuration.
    name : str
    log_z : float or None
        The exact natural logarithm of the integral of ``exp(-U)``, where it is known.
    modes : Tensor (k, features) or None
        A configuration in each mode, where they are known.
    particles : (int, int) or None
        Number of particles and of space dimensions: a configuration is then ``(particles, dimensions)``, flattened.
    symmetries : tuple of str
        Of "translations", "rotations", "reflections" and "permutations". An energy without place ("translations") is a density of
        configurations with zero mean: :class:`sbi_flows.bijections.mean_free.MeanFree` gives them coordinates.
    permuted : tuple of tuple of int
        Groups of particles that are alike; empty for all.
    bonds : tuple of (int, int) or None
        Which atoms are bound, of a molecule.
    periodic : bool
        Whether coordinates live on a torus; :meth:`wrapped` brings them back into its cell.
    """

    features: int
    name: str
    log_z: float | None = None
    particles: tuple[int, int] | None = None
    symmetries: tuple[str, ...] = ()
    permuted: tuple[tuple[int, ...], ...] = ()
    bonds: tuple[tuple[int, int], ...] | None = None
    periodic: bool = False

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """``U / kT`` ``(n,)`` of ``x (n, features)``."""

    @property
    def modes(self) -> Tensor | None:
        return None

    @property
    def degrees_of_freedom(self) -> int:
        """Dimensions of the space in which ``exp(-U)`` is a density: without the centre of mass where energies do not depend on it."""
        if "translations" in self.symmetries and self.particles is not None:
            return self.features - self.particles[1]
        return self.features

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.features:
            hint = "For a single configuration pass x[None]." if tuple(x.shape) == (self.features,) else "Rows are configurations."
            raise ValueError(f"Expected configurations of {self.name} of shape (n, {self.features}); got {tuple(x.shape)}. {hint}")
        return self.energy(x)

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``U / kT`` ``(n,)`` and ``-dU/dx / kT`` ``(n, features)``, both detached."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = self(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), -gradient

    def force(self, x: Tensor) -> Tensor:
        """``-dU/dx / kT`` ``(n, features)``."""
        return self.energy_and_force(x)[1]

    def wrapped(self, x: Tensor) -> Tensor:
        """The same configurations inside the periodic box: here as they are."""
        return x

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` configurations of finite energy to start chains from, float64."""
        raise NotImplementedError(f"{self.name} has no start of its own; pass configurations.")

    def __repr__(self) -> str:
        known = "" if self.log_z is None else f", ln Z {self.log_z:.6f}"
        return f"{self.name} ({self.features} coordinates{known})"
