"""Every point that was evaluated, weighted as one sample of the mixture of all that they were drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensity = Callable[[Tensor, Tensor, Tensor], Tensor]


class Component(NamedTuple):
    """What some of the points were drawn from.

    Attributes
    ----------
    n : int
    log_density : callable
        ``(x, log_prior, log_likelihood)`` to the normalised log-density ``(m,)``.
    """

    n: int
    log_density: LogDensity


class Pool:
    """Points with their ln prior and ln L, and the components they came from.

    Weights divide by the mixture of all components, whichever a point came from (the balance heuristic): a point that one of them found by
    luck and another expects has no outsized weight.

    Attributes
    ----------
    x : Tensor (n, d)
    log_prior, log_likelihood : Tensor (n,)

    References
    ----------
    Veach & Guibas 1995, SIGGRAPH; Cornuet, Marin, Mira & Robert 2012, "Adaptive multiple importance sampling", Scand. J. Statist. 39.
    """

    def __init__(self, x: Tensor, log_prior: Tensor, log_likelihood: Tensor, component: LogDensity):
        self.x, self.log_prior, self.log_likelihood = x, log_prior, log_likelihood
        self._components = [Component(len(x), component)]
        self._table = component(x, log_prior, log_likelihood)[None]

    def add(self, x: Tensor, log_prior: Tensor, log_likelihood: Tensor, component: LogDensity) -> None:
        """More points, and what they were drawn from."""
        old = [c.log_density(x, log_prior, log_likelihood) for c in self._components]
        new = torch.cat([component(self.x, self.log_prior, self.log_likelihood), component(x, log_prior, log_likelihood)])
        self._table = torch.cat([torch.cat([self._table, torch.stack(old)], 1), new[None]])
        self._components.append(Component(len(x), component))
        self.x = torch.cat([self.x, x])
        self.log_prior = torch.cat([self.log_prior, log_prior])
        self.log_likelihood = torch.cat([self.log_likelihood, log_likelihood])

    def forget(self, keep: int) -> None:
        """Leave out all but the last ``keep`` components and their points."""
        drop = len(self._components) - keep
        if drop <= 0:
            return
        rows = sum(c.n for c in self._components[:drop])
        self._components = self._components[drop:]
        self._table = self._table[drop:, rows:]
        self.x, self.log_prior, self.log_likelihood = self.x[rows:], self.log_prior[rows:], self.log_likelihood[rows:]

    def log_weights(self, power: float) -> Tensor:
        """ln of prior times likelihood to the power over the mixture, ``(n,)``."""
        n = torch.tensor([c.n for c in self._components], dtype=torch.float64)
        mixture = torch.logsumexp(self._table + (n / n.sum()).log()[:, None], 0)
        return self.log_prior + power * self.log_likelihood - mixture

    def log_z(self, power: float) -> float:
        """ln of the normalising constant at that power."""
        return log_mean(self.log_weights(power))

    def ess(self, power: float) -> float:
        """Effective number of points at that power."""
        return ess(self.log_weights(power))


def log_mean(log_weights: Tensor) -> float:
    """``ln mean(exp(v))``."""
    return float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))


def ess(log_weights: Tensor) -> float:
    """Kish's effective sample size; 0 where nothing has weight."""
    top = torch.logsumexp(log_weights, 0)
    return 0.0 if top == -math.inf else float(torch.exp(2 * top - torch.logsumexp(2 * log_weights, 0)))
