"""The network's posterior of one planet or of several, from rows that tell the radius by its offset (see ``offset``)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import positive
from sbi_flows.inference import Posterior
from sbi_flows.inference.flow_posterior import FlowPosterior
from sbi_flows.physics.exoplanets.offset import RadiusOffset
from sbi_flows.physics.exoplanets.planets import Planets
from sbi_flows.physics.exoplanets.transit import NAMES, planet_prior

_MEASURED = (1000, 10_000)  # draws that measure the share inside: the second number where not all of the first are
_LEAKY = 0.5
_ROUNDS, _MOST = 20, 20  # and times as many draws as are wanted in one


class AtmospherePosterior(Posterior):
    """Posterior of the parameters of one planet, or of each of several; :meth:`AtmosphereNPE.posterior` makes it.

    Draws whose radius is outside the prior's are drawn again, and the density of a single planet is divided by the share that are inside.

    Parameters
    ----------
    learned : FlowPosterior
        Of the rows of :class:`.offset.RadiusOffset`, given the same planets.
    planets : Planets

    Attributes
    ----------
    acceptance : float
        Share of the network's draws with a radius inside the prior, of a single planet; NaN for several.
    """

    def __init__(self, learned: FlowPosterior, planets: Planets):
        super().__init__(planet_prior(), NAMES, learned.x_o, learned.reliability, learned.n_observations)
        self._learned, self._planets = learned, planets
        self.acceptance = math.nan
        if self.n_observations is None:
            self.acceptance = self._measured()
            if self.acceptance < _LEAKY:
                found = f"only {self.acceptance:.3g} of the network's draws have a radius inside the prior; the others are rejected"
                self.remark([f"{found}: it has learned too little of planets like this one"], [])

    def _measured(self) -> float:
        for n in _MEASURED:
            _, inside = RadiusOffset(self._planets).theta(torch.from_numpy(self._learned.sample(n, random_state=0)))
            if bool(inside.all()):
                break
        return float(inside.double().mean())

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """``(n_samples, 7)`` draws inside the prior; ``(m, n_samples, 7)`` for several planets."""
        positive("n_samples", n_samples, integer=True)
        generator = torch_generator(random_state)
        rows = self._learned.sample(n_samples, generator)
        if self.n_observations is None:
            return _completed(self._learned, self._planets, rows, generator)
        return np.stack([_completed(self._learned[i], self._planets[i], own, generator) for i, own in enumerate(rows)])

    def log_density(self, theta: Tensor) -> Tensor:
        """As :meth:`Posterior.log_density`."""
        self._refuse_batch("log_density")
        box = planet_prior()
        inside = ((theta > box.low) & (theta < box.high)).all(1)
        within = torch.where(inside[:, None], theta.double(), (0.5 * (box.low + box.high)).expand_as(theta))
        rows, log_slope = RadiusOffset(self._planets).rows(within)
        values = self._learned.log_density(rows) + log_slope - math.log(max(self.acceptance, 1e-300))
        return torch.where(inside, values, -math.inf)

    def __len__(self) -> int:
        return 1 if self.n_observations is None else self.n_observations

    def __getitem__(self, index: int) -> AtmospherePosterior:
        """The posterior of one planet of several."""
        i = self._place(index)
        return AtmospherePosterior(self._learned[i], self._planets[i])


def _completed(learned: FlowPosterior, planet: Planets, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """As many draws of theta as there are rows, those outside the prior drawn again."""
    n, offset = len(rows), RadiusOffset(planet)
    kept, found, drawn = [], 0, 0
    for _ in range(_ROUNDS):
        theta, inside = offset.theta(torch.from_numpy(rows))
        kept.append(theta[inside].numpy())
        found, drawn = found + len(kept[-1]), drawn + len(rows)
        if found >= n:
            return np.concatenate(kept)[:n]
        rows = learned.sample(min(math.ceil(1.1 * (n - found) * drawn / max(found, 1)), _MOST * n) + 10, generator)
    raise RuntimeError(
        f"Expected posterior draws with a radius inside the prior; {found} of {drawn} have. Is the planet like any simulation? See "
        "reliability; learn from more simulations."
    )
