"""Where a proposal is too thin for any of its draws to have come, found by chains that climb its weights.

A branch that narrows away from the bulk, the neck of a funnel or a ridge towards the end of a parameter, holds next to nothing of the
prior: no flow that came from there knows of it, and no draw tells. But it is connected. Chains of ``p^2 / q``, bounded, for a target
``p`` and a proposal ``q``, go where ``p / q`` is large. What they find trains the proposal, which lets the next ones go further.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.samplers.flow_mixture import FlowMixture
from sbi_flows.samplers.latent_walk import latent_walk
from sbi_flows.samplers.pool import Part, ess, log_mean
from sbi_flows.samplers.tempered_path import TemperedPath, systematic
from sbi_flows.targets import Target

_CHAINS, _MOVES = 200, 30
_THIN, _SPREADS = 3.0, 3.0  # excess of a log-weight that is thin: a factor of 20, or as many standard deviations if that is more
_MOST = 7.0  # excess beyond which more counts no more
_FEW = 0.01  # of the chains, where a thin place begins to count
_LEAST_SHARE = 0.05  # of the usual weight of a row in training: where q is too thin p must count all the same


class Climbed(NamedTuple):
    """Where such chains were in the second half of their way.

    Attributes
    ----------
    x : Tensor (n, d)
        Row ``i`` belongs to chain ``i % n_chains``.
    log_prob : Tensor (n,)
        Of the target.
    excess : Tensor (n,)
        Their log-weights less the log of the mean weight of the proposal's draws.
    limit : float
        Excess from which on a place is thin.
    n_chains : int
    """

    x: Tensor
    log_prob: Tensor
    excess: Tensor
    limit: float
    n_chains: int

    @property
    def highest(self) -> float:
        """The largest excess where the chains are now."""
        return float(self.excess[-self.n_chains :].max())

    @property
    def thin(self) -> bool:
        """Whether some chains are now in places where the proposal is too thin.

        Where log-weights are normal of variance s^2, those of the chains are about ``1.5 s^2`` larger than ln of the mean weight.
        """
        return float((self.excess[-self.n_chains :] > self.limit).double().mean()) >= _FEW

    def reasons(self) -> list[str]:
        """Against a result whose draws have this proposal."""
        if not self.thin:
            return []
        times = math.exp(min(self.highest, _MOST))
        return [
            f"chains that climb from the draws come to places where the flow is {times:.0f} times too thin, or more: a narrow branch may "
            "hold mass there that hardly a draw has seen"
        ]

    @property
    def share(self) -> Tensor:
        """The target's density over that of the rows, ``(n,)``, of mean one."""
        share = (-self.excess).exp().clamp(min=_LEAST_SHARE)
        return share / share.mean()


class _Weighted(Target):
    """``p`` times its weight ``p / q`` over the mean weight ``z``, a thousand at most.

    Without a bound ``p^2 / q`` has no integral where ``q`` falls off faster, and all chains end there, however little there is of ``p``.
    """

    def __init__(self, path: TemperedPath, proposal: FlowMixture, log_z: float):
        super().__init__(path.features, path.names, path.support)
        self._path, self._proposal, self._log_z = path, proposal, log_z

    def log_prob(self, x):
        log_p = self._path.log_prob(x)
        excess = log_p - self._proposal.log_prob(x) - self._log_z
        return torch.where(log_p > -math.inf, log_p + excess.clamp(max=_MOST), -math.inf)

    def recovered(self, x: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """ln p and the excess of the log-weight ``(n,)`` at rows whose density is known; ln p is not evaluated again."""
        log_q = self._proposal.log_prob(x) + self._log_z
        bounded = 0.5 * (log_prob + log_q)
        beyond = (bounded - log_q > _MOST) | (log_q == -math.inf)
        log_p = torch.where(beyond, log_prob - _MOST, bounded)
        return log_p, log_p - log_q


@torch.no_grad()
def climb(path: TemperedPath, proposal: FlowMixture, draws: Part, before: Climbed | None, generator: torch.Generator) -> Climbed:
    """Chains that climb from the heaviest draws, and from where the last ones came.

    After a thin place two looks, the second from where the first ended, must find none: the way into a narrow branch is a matter of luck.

    Parameters
    ----------
    path : TemperedPath
        At power 1.
    proposal : FlowMixture
        The chains move in the latent space of its last flow.
    draws : Part
        Of the proposal.
    before : Climbed or None
    generator : torch.Generator
    """
    found = _look(path, proposal, draws, before, generator)
    if before is None or found.thin:
        return found
    return _look(path, proposal, draws, found, generator)


def _look(path: TemperedPath, proposal: FlowMixture, draws: Part, before: Climbed | None, generator: torch.Generator) -> Climbed:
    log_weights = draws.log_prior + draws.log_likelihood - draws.log_proposal
    log_z, spread = log_mean(log_weights), math.log(len(log_weights) / ess(log_weights))
    x = draws.x
    if before is not None:
        x = torch.cat([x, before.x])
        log_weights = torch.cat([log_weights, before.log_prob - proposal.log_prob(before.x)])
    start = x[systematic(torch.softmax(2 * log_weights, 0), _CHAINS, generator)]
    target = _Weighted(path, proposal, log_z)
    x, log_weighted = latent_walk(target, proposal.flows[-1], start, _MOVES, generator, kept=_MOVES // 2)
    log_p, excess = target.recovered(x, log_weighted)
    return Climbed(x, log_p, excess, max(_THIN, 1.5 * spread + _SPREADS * math.sqrt(spread)), _CHAINS)
