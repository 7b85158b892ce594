"""An energy without place as a density: in coordinates of mean-free configurations."""

from __future__ import annotations

from torch import Tensor

from sbi_flows.bijections.mean_free import from_mean_free, to_mean_free
from sbi_flows.physics.molecules.energy import Energy


class MeanFreeEnergy(Energy):
    """``energy`` of mean-free configurations in orthonormal coordinates ``y (n, (particles - 1) * dimensions)``.

    Over all of space the integral of ``exp(-U)`` of an energy that does not depend on place is infinite; here it is finite, ``exp(-U)``
    is a density, and any flow of real columns can model it. Lengths are kept, so ln Z is that of the subspace.

    Parameters
    ----------
    energy : Energy
        With "translations" among its symmetries.

    Examples
    --------
    >>> from sbi_flows.physics.molecules import dw4
    >>> MeanFreeEnergy(dw4()).features
    6
    """

    def __init__(self, energy: Energy):
        if energy.particles is None or "translations" not in energy.symmetries:
            raise ValueError(f"Expected an energy of particles that does not depend on their place; got {energy}. Use it as it is.")
        self.whole = energy
        self._count = energy.particles[0]
        self.features = energy.features - energy.particles[1]
        self.name = f"{energy.name}, mean-free"
        self.log_z = energy.log_z

    @property
    def modes(self) -> Tensor | None:
        modes = self.whole.modes
        return None if modes is None else self.from_particles(modes)

    def energy(self, x):
        return self.whole(self.to_particles(x))

    def energy_and_force(self, x):
        energy, force = self.whole.energy_and_force(self.to_particles(x))
        return energy, to_mean_free(force, self._count)

    def to_particles(self, y: Tensor) -> Tensor:
        """Coordinates to the configuration ``(n, particles * dimensions)`` with its centre at the origin."""
        return from_mean_free(y, self._count)

    def from_particles(self, x: Tensor) -> Tensor:
        """Configurations, wherever their centre is, to coordinates."""
        return to_mean_free(x, self._count)

    def start(self, n, generator):
        return self.from_particles(self.whole.start(n, generator))
