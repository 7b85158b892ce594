"""Every point that was evaluated, weighted by the density that it was drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Points drawn together.

    Attributes
    ----------
    x : Tensor (n, d)
    log_prior, log_likelihood, log_proposal : Tensor (n,)
        The last is the log-density they were drawn from.
    power : float
        Of the likelihood, for which they were drawn.
    """

    x: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    log_proposal: Tensor
    power: float


class Pool:
    """Importance samples for many powers of the likelihood.

    A point's weight divides by the proposal it came from alone, which was fixed before it was drawn. A mixture that takes in later
    proposals (the balance heuristic) would be smoother, but later flows are trained on earlier points and rise at just those: their
    weights, and with them the mass of what few points have found, would shrink from temperature to temperature. On Rosenbrock-10 that lost
    .07 of ln Z in the first five temperatures and .18 in the first twenty.

    Parameters
    ----------
    parts : sequence of Part

    Attributes
    ----------
    parts : list of Part

    References
    ----------
    Marin, Pudlo & Sedki 2019, "Consistency of adaptive importance sampling and recycling schemes", Bernoulli 25.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = list(parts)

    @property
    def x(self) -> Tensor:
        return torch.cat([part.x for part in self.parts])

    @property
    def log_prior(self) -> Tensor:
        return torch.cat([part.log_prior for part in self.parts])

    @property
    def log_likelihood(self) -> Tensor:
        return torch.cat([part.log_likelihood for part in self.parts])

    def add(self, part: Part, keep: int) -> None:
        """More points; all but the last ``keep`` parts are left out."""
        self.parts = [*self.parts, part][-keep:]

    def log_weights(self, power: float) -> Tensor:
        """ln of prior times likelihood to the power over the proposal ``(n,)``; their mean is the normalising constant."""
        n = sum(len(part.x) for part in self.parts)
        trust = torch.tensor([_trust(part, power) for part in self.parts], dtype=torch.float64)
        shares = (trust / trust.sum()).log() if float(trust.sum()) > 0 else torch.full_like(trust, -math.log(len(trust)))
        return torch.cat(
            [
                part.log_prior + power * part.log_likelihood - part.log_proposal + share + math.log(n / len(part.x))
                for part, share in zip(self.parts, shares, strict=True)
            ]
        )

    def log_z(self, power: float) -> float:
        """ln of the normalising constant at that power."""
        return log_mean(self.log_weights(power))

    def ess(self, power: float) -> float:
        """Effective number of points at that power."""
        return ess(self.log_weights(power))


def _trust(part: Part, power: float) -> float:
    """Number of a part's points times the effective share that the change of power leaves of its tempered density.

    That density is smooth: a part that happened to draw a rare and heavy point does not count less for it, as it would by its own ESS.
    """
    possible = part.log_likelihood > -math.inf
    log_likelihood = part.log_likelihood[possible]
    own = torch.log_softmax(part.log_prior[possible] + part.power * log_likelihood - part.log_proposal[possible], 0)
    change = (power - part.power) * log_likelihood
    if len(own) == 0:
        return 0.0
    return len(part.x) * float(torch.exp(2 * torch.logsumexp(own + change, 0) - torch.logsumexp(own + 2 * change, 0)))


def log_mean(log_weights: Tensor) -> float:
    """``ln mean(exp(v))``."""
    return float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))


def ess(log_weights: Tensor) -> float:
    """Kish's effective sample size; 0 where nothing has weight."""
    top = torch.logsumexp(log_weights, 0)
    return 0.0 if top == -math.inf else float(torch.exp(2 * top - torch.logsumexp(2 * log_weights, 0)))
