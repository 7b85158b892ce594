"""A local step, then several flow proposals."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbi_flows.samplers import IndependentMetropolis, IndependentState, Info, Kernel
from sbi_flows.samplers.independent import Proposal
from sbi_flows.targets import Target


class CycleState(NamedTuple):
    """Positions, and the state of the local kernel.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob : Tensor (n,)
    local : NamedTuple
    """

    position: Tensor
    log_prob: Tensor
    local: Any


class Cycle:
    """One step of a local kernel and ``n_global`` proposals of a flow; what is reported are the proposals of the flow."""

    def __init__(self, local: Kernel, proposal: Proposal, n_global: int):
        self.local, self.independent, self.n_global = local, IndependentMetropolis(proposal), n_global

    def init(self, x: Tensor, target: Target) -> CycleState:
        return self.take_over(self.local.init(x, target))

    def take_over(self, local: Any) -> CycleState:
        """The state of chains that the local kernel has run so far."""
        return CycleState(local.position, local.log_prob, local)

    @torch.no_grad()
    def step(self, state: CycleState, target: Target, generator: torch.Generator) -> tuple[CycleState, Info]:
        local, _ = self.local.step(state.local, target, generator)
        jumping = IndependentState(local.position, local.log_prob, self.independent._log_proposal(local.position, target))
        acceptance = torch.zeros_like(local.log_prob)
        for _ in range(self.n_global):
            jumping, info = self.independent.step(jumping, target, generator)
            acceptance = acceptance + info.acceptance / self.n_global
        local, _ = self.local.relocate(local, jumping.position, jumping.log_prob, target)
        return CycleState(jumping.position, jumping.log_prob, local), info._replace(acceptance=acceptance)

    def relocate(self, state: CycleState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[CycleState, Tensor]:
        local, gradients = self.local.relocate(state.local, x, log_prob, target)
        return CycleState(x, log_prob, local), gradients

    def adapt(self, state: CycleState, info: Info, target: Target, done: float) -> CycleState:
        return state
