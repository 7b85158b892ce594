"""Real scalar field with a quartic self-interaction on a periodic square lattice."""

from __future__ import annotations

import math

import torch

from sbi_flows._validation import positive
from sbi_flows.physics.lattice.action import Action
from sbi_flows.physics.lattice.u1 import check_size

# Couplings at mass^2 = -4 for which the correlation length stays near size / 4 (Albergo, Kanwar & Shanahan 2019).
CRITICAL_LINE = {6: 6.975, 8: 6.008, 10: 5.550, 12: 5.276, 14: 5.113}


class Phi4(Action):
    """``S = sum_x phi (4 phi - sum of the neighbours) + mass2 phi^2 + coupling phi^4``, without factors of one half.

    A field is ``phi(x)`` of shape ``(size, size)``.

    Parameters
    ----------
    size : int
        Sites along each axis.
    mass2 : float
        Squared mass; negative ones need a coupling.
    coupling : float
        Of the fourth power, not negative.

    Examples
    --------
    >>> theory = Phi4(8, mass2=-4.0, coupling=6.008)
    >>> theory.action(torch.ones(1, 8, 8))
    tensor([128.5120])

    References
    ----------
    Albergo, Kanwar & Shanahan 2019, "Flow-based generative models for Markov chain Monte Carlo in lattice field theory",
    arXiv:1904.12072.
    """

    circular = False

    def __init__(self, size: int, mass2: float, coupling: float):
        check_size(size)
        positive("coupling", coupling, zero=True)
        if not (math.isfinite(mass2) and (mass2 > 0 or coupling > 0)):
            raise ValueError(f"Expected a coupling above 0 or mass2 above 0, or the action has no minimum; got mass2={mass2}, coupling=0.")
        self.size, self.mass2, self.coupling = size, float(mass2), float(coupling)
        self.shape = (size, size)

    @property
    def volume(self) -> int:
        """Number of sites."""
        return self.size**2

    def action(self, field):
        self.check(field)
        square = field.square()
        # Every bond once: phi (4 phi - sum of neighbours) = 4 phi^2 - 2 phi (forward neighbours), summed over sites.
        bonds = field * (field.roll(1, 1) + field.roll(1, 2))
        return ((4 + self.mass2 + self.coupling * square) * square - 2 * bonds).sum((1, 2))

    def force(self, field):
        self.check(field)
        neighbours = field.roll(1, 1) + field.roll(-1, 1) + field.roll(1, 2) + field.roll(-1, 2)
        return 2 * neighbours - field * (2 * (4 + self.mass2) + 4 * self.coupling * field.square())

    def observables(self, field):
        mean = field.mean((1, 2))
        return {"magnetisation": mean, "susceptibility": self.volume * mean.square(), "phi2": field.square().mean((1, 2))}

    def __repr__(self) -> str:
        return f"Phi4(size={self.size}, mass2={self.mass2:g}, coupling={self.coupling:g})"


def free_field_phi2(size: int, mass2: float) -> float:
    """Exact ``<phi^2>`` of a site for ``coupling=0``: the mean over momenta of ``1 / (2 (k^2 + mass2))``, k^2 on the lattice."""
    momenta = 4 * torch.sin(math.pi * torch.arange(size, dtype=torch.float64) / size).square()
    return float((0.5 / (momenta[:, None] + momenta + mass2)).mean())
