"""Proposals from random paths, for those who ask for them: ``method="stochastic-flow"`` and ``method="diffusion"``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sbi_flows.flow_sampling.walk import Walk
from sbi_flows.samplers import MixedState, PathProposal, PathSampler, diffusion_sampler, stochastic_flow
from sbi_flows.samplers.mixed import Mixed
from sbi_flows.targets import Target

N_TRAINING = {"stochastic-flow": 100, "diffusion": 400}  # optimiser steps
_BATCH = 64
_LEAST_ACCEPTANCE = 0.02
_LOOKED_AT = 20  # steps by which proposals are judged

_SAMPLERS: dict[str, Callable[..., PathSampler]] = {"stochastic-flow": stochastic_flow, "diffusion": diffusion_sampler}


def with_paths(method: str, target: Target, walk: Walk, generator: torch.Generator) -> tuple[Walk, float]:
    """The chains with a path's end proposed after every local step, and the share of proposals accepted in the first steps.

    Paths begin at a normal as wide as the chains are by now, which know every mode that was found.
    """
    sampler = _SAMPLERS[method](
        target, n_steps=N_TRAINING[method], batch_size=_BATCH, start=walk.position, random_state=generator
    )
    local = walk.state
    mixed = Walk(Mixed([walk.kernel, PathProposal(sampler)]), walk.space, walk.position, generator)
    if isinstance(mixed.state, MixedState):
        mixed.state = mixed.state._replace(parts=(local, *mixed.state.parts[1:]))
    drawn = mixed.draw(_LOOKED_AT)
    return mixed, float(drawn.stats["acceptance_PathProposal"].mean())


def too_rare(method: str, acceptance: float) -> str | None:
    """The reason against proposals that are hardly ever accepted."""
    if acceptance >= _LEAST_ACCEPTANCE:
        return None
    return (
        f"method={method!r} was asked for, but {acceptance:.1%} of its proposals are accepted: the local kernel ran alone. Use "
        "method='auto' or 'mixed'"
    )
