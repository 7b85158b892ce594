"""Exchanges between neighbouring temperatures: of positions as they are, or carried over by flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.samplers.kernel import metropolis

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


class Replicas(NamedTuple):
    """Positions at every temperature of several independent ladders.

    Attributes
    ----------
    position : Tensor (levels, ladders, d)
    log_base : Tensor (levels, ladders)
        ln of the density at power 0.
    log_likelihood : Tensor (levels, ladders)
    """

    position: Tensor
    log_base: Tensor
    log_likelihood: Tensor

    def taken(self, rows: Tensor, other: Replicas) -> Replicas:
        """``other`` where ``rows (levels, ladders)``."""
        return Replicas(
            torch.where(rows[..., None], other.position, self.position),
            torch.where(rows, other.log_base, self.log_base),
            torch.where(rows, other.log_likelihood, self.log_likelihood),
        )


def exchange(replicas: Replicas, powers: Tensor, parity: int, generator: torch.Generator) -> tuple[Replicas, Tensor]:
    """Swap levels ``parity, parity + 2, ...`` with the next, in turn even and odd: what has been swapped goes on the same way.

    Returns
    -------
    Replicas
    Tensor (pairs, ladders)
        Probability with which each swap was accepted.

    References
    ----------
    Okabe, Kawata, Okamoto & Mikami 2001, "Replica-exchange Monte Carlo method for the isobaric-isothermal ensemble"; Syed,
    Bouchard-Côté, Deligiannidis & Doucet 2022, "Non-reversible parallel tempering", J. R. Statist. Soc. B 84.
    """
    low = torch.arange(parity, len(powers) - 1, 2)
    gap = (powers[low + 1] - powers[low])[:, None]
    info = metropolis(gap * (replicas.log_likelihood[low] - replicas.log_likelihood[low + 1]), generator)
    return _swapped(replicas, low, info.accepted, replicas), info.acceptance


def exchange_by_flows(
    replicas: Replicas, powers: Tensor, parity: int, flows: Sequence[Flow], evaluate: Evaluate, generator: torch.Generator
) -> tuple[Replicas, Tensor]:
    """As :func:`exchange`, each position carried to the other's temperature by the flow of its own and the inverse of the other's.

    Where the flows are right every swap is accepted, however far apart the temperatures; where they are not, the ratio of densities, volume
    included, keeps the chains exact. ``evaluate`` gives ``log_base`` and ``log_likelihood`` of rows ``(n, d)``.

    References
    ----------
    Invernizzi, Krämer, Clementi & Noé 2022, "Skipping the replica exchange ladder with normalizing flows", arXiv:2210.14104.
    """
    low = torch.arange(parity, len(powers) - 1, 2)
    up = [_carried(replicas.position[k], flows[k], flows[k + 1]) for k in low.tolist()]
    down = [_carried(replicas.position[k + 1], flows[k + 1], flows[k]) for k in low.tolist()]
    arrived = torch.stack([x for x, _ in down]), torch.stack([x for x, _ in up])
    volume = torch.stack([log_det for _, log_det in down]) + torch.stack([log_det for _, log_det in up])
    rows = torch.cat(arrived)
    log_base, log_likelihood = (part.view(rows.shape[:2]) for part in evaluate(rows.flatten(0, 1)))
    proposed = Replicas(rows, log_base, log_likelihood)
    at_low, at_high = (Replicas(*(part[rows] for part in proposed)) for rows in (slice(len(low)), slice(len(low), None)))
    own, next_up = powers[low][:, None], powers[low + 1][:, None]
    after = _density(at_low, own) + _density(at_high, next_up)
    before = _density(Replicas(*(part[low] for part in replicas)), own) + _density(Replicas(*(part[low + 1] for part in replicas)), next_up)
    info = metropolis(after - before + volume, generator)
    whole = Replicas(*(part.clone() for part in replicas))
    for part, down_part, up_part in zip(whole, at_low, at_high, strict=True):
        part[low], part[low + 1] = up_part, down_part  # crossed: _swapped crosses them back
    return _swapped(replicas, low, info.accepted, whole), info.acceptance


def _carried(x: Tensor, own: Flow, other: Flow) -> tuple[Tensor, Tensor]:
    z, log_there = own.to_base(x)
    y, log_back = other.from_base(z)
    return y, log_there + log_back


def _density(replicas: Replicas, power: Tensor) -> Tensor:
    # Zero power and zero likelihood: such points are as good as any other there.
    return replicas.log_base + torch.where(power > 0, power * replicas.log_likelihood, 0.0)


def _swapped(replicas: Replicas, low: Tensor, accepted: Tensor, source: Replicas) -> Replicas:
    """Level k of ``source`` at k + 1 and the reverse, where accepted."""
    order = torch.arange(len(replicas.log_base))
    order[low], order[low + 1] = low + 1, low
    rows = torch.zeros_like(replicas.log_base, dtype=torch.bool)
    rows[low], rows[low + 1] = accepted, accepted
    return replicas.taken(rows, Replicas(*(part[order] for part in source)))
