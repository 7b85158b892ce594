"""What a posterior of known evidence is, and exact draws from densities without a formula for them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

Array = np.ndarray
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Problem:
    """A posterior with a known evidence.

    Attributes
    ----------
    name : str
    features : int
        Number of parameters, d.
    log_z : float
        Exact ln Z.
    log_posterior : callable
        ``(n, d)`` float64 to ``(n,)``: ln L + ln prior; -inf outside the support.
    sample : callable
        ``sample(n, rng)`` gives exact independent draws ``(n, d)``, or stationary chains ``(chain, draw, d)`` of n draws in all.
    support : list
        One entry a column, in the package's grammar.
    prior : object or None
        The prior with ``sample``, ``log_prob`` and ``support``, where the problem has a proper one that can be drawn from.
    n_draws : int
        Draws a repetition of the benchmark uses.
    modes : ndarray (m, d) or None
        Places of the modes that each hold at least a tenth of the mass, for a posterior with several.
    """

    name: str
    features: int
    log_z: float
    log_posterior: Callable[[Array], Array]
    sample: Callable[[int, np.random.Generator], Array]
    support: list
    prior: object | None = None
    n_draws: int = 10_000
    modes: Array | None = None


class GridSampler:
    """Exact draws from a one-dimensional density by rejection from its histogram on a fine grid.

    ``margin`` bounds how far the log density moves within half a cell, so the histogram times ``exp(margin)`` is an envelope.
    """

    def __init__(self, log_density: Callable[[Array], Array], low: float, high: float, *, cells: int, margin: float):
        self.log_density, self.low, self.width, self.margin = log_density, low, (high - low) / cells, margin
        self.log_height = log_density(low + (np.arange(cells) + 0.5) * self.width)
        self.cumulative = np.cumsum(np.exp(self.log_height - logsumexp(self.log_height)))

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        return until(n, self._propose, rng)

    def _propose(self, n, rng):
        cell = np.searchsorted(self.cumulative, self.cumulative[-1] * rng.random(n), side="right")
        x = self.low + (cell + rng.random(n)) * self.width
        return x[np.log(rng.random(n)) < self.log_density(x) - self.log_height[cell] - self.margin]


def until(n: int, propose: Callable, rng: np.random.Generator) -> Array:
    """The first ``n`` survivors of a rejection sampler ``propose(m, rng)``; a fixed batch size keeps them unbiased."""
    batches, found = [], 0
    while found < n:
        batches.append(propose(n, rng))
        found += len(batches[-1])
    return np.concatenate(batches)[:n]


def wrap(angle: Array) -> Array:
    """The same angle on [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def minus_inf_outside(log_posterior: Array) -> Array:
    """Rows marked NaN lie outside the support."""
    return np.where(np.isnan(log_posterior), -np.inf, log_posterior)
