"""Independent Metropolis: proposals from a density that does not look where the chain is, such as a flow."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sbi_flows.samplers.kernel import Info, metropolis
from sbi_flows.targets import Target


class Proposal(Protocol):
    """A normalised density in the user's parameters: a ``Flow``, a ``Distribution``, or anything with these two methods."""

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """``(n, d)`` draws."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """``(n,)`` for ``x (n, d)``."""
        ...


class IndependentState(NamedTuple):
    """Positions, their log-density, and the log-density of proposing them.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob, log_proposal : Tensor (n,)
    """

    position: Tensor
    log_prob: Tensor
    log_proposal: Tensor


class IndependentMetropolis:
    """Proposals drawn from one fixed density, accepted by the ratio of importance weights.

    The better the density, the more is accepted; modes it covers are never lost. Its tails must be as heavy as the target's, or
    chains stick there (``reliability`` of the run will say so).

    Parameters
    ----------
    proposal : Flow, Distribution or object
        ``sample(n, generator=...)`` and ``log_prob(x)`` in the user's own parameters, whatever space the chains run in.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.samplers import run_chains
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: x[:, 0], 1, support=(0, 1))
    >>> kernel = IndependentMetropolis(BoxUniform(0.0, 1.0))
    >>> run_chains(kernel, target, torch.full((4, 1), 0.5), n_steps=10, n_warmup=0, random_state=0).samples.shape
    (4, 10, 1)

    References
    ----------
    Tierney 1994, "Markov chains for exploring posterior distributions", Annals of Statistics 22; Albergo, Kanwar & Shanahan 2019,
    "Flow-based generative models for Markov chain Monte Carlo in lattice field theory", arXiv:1904.12072.
    """

    def __init__(self, proposal: Proposal):
        self.proposal = proposal

    def init(self, x: Tensor, target: Target) -> IndependentState:
        log_proposal = self._log_proposal(x, target)
        outside = ~torch.isfinite(log_proposal)
        if bool(outside.any()):
            raise ValueError(
                f"Expected starting points where the proposal has density; {int(outside.sum())} of {len(x)} have none. "
                "Start the chains at draws of the proposal."
            )
        return IndependentState(x, target.log_prob(x), log_proposal)

    @torch.no_grad()
    def step(self, state: IndependentState, target: Target, generator: torch.Generator) -> tuple[IndependentState, Info]:
        drawn = self.proposal.sample(len(state.position), generator=generator).double()
        position = target.from_user(drawn)
        log_prob, log_proposal = target.log_prob(position), self._log_proposal(position, target)
        info = metropolis(log_prob - log_proposal - state.log_prob + state.log_proposal, generator)
        kept = ~info.accepted
        return IndependentState(
            torch.where(kept[:, None], state.position, position),
            torch.where(kept, state.log_prob, log_prob),
            torch.where(kept, state.log_proposal, log_proposal),
        ), info

    def adapt(self, state: IndependentState, info: Info, target: Target, done: float) -> IndependentState:
        return state

    def relocate(self, state: IndependentState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[IndependentState, Tensor]:
        moved = (x != state.position).any(-1)
        log_proposal = state.log_proposal
        if bool(moved.any()):
            log_proposal = log_proposal.clone()
            log_proposal[moved] = self._log_proposal(x[moved], target)
        return IndependentState(x, log_prob, log_proposal), torch.zeros_like(moved, dtype=torch.int64)

    def _log_proposal(self, x: Tensor, target: Target) -> Tensor:
        user, log_det = target.to_user(x)
        return self.proposal.log_prob(user).double() + log_det
