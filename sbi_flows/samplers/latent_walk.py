"""Short random walks in the latent space of a flow, where what the flow knows is a standard normal."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.samplers.random_walk import RandomWalk
from sbi_flows.targets import Target, pulled_back


def latent_walk(
    target: Target, flow: Flow, start: Tensor, moves: int, generator: torch.Generator, *, kept: int | None = None
) -> tuple[Tensor, Tensor]:
    """Positions of one chain from each row of ``start (n, d)``, move by move, and ln of the target's density there.

    Parameters
    ----------
    target : Target
    flow : Flow
    start : Tensor (n, d)
        In the target's own parameters, as are the positions.
    moves : int
    generator : torch.Generator
    kept : int, optional
        The last moves only.

    Returns
    -------
    x : Tensor (kept n, d)
        Row ``i`` belongs to chain ``i % n``.
    log_prob : Tensor (kept n,)
    """
    space, kernel = pulled_back(target, flow), RandomWalk()
    state = kernel.init(space.from_user(start), space)
    state = state._replace(archive=state.position)
    rows, values = [], []
    for move in range(moves):
        state, info = kernel.step(state, space, generator)
        state = kernel.adapt(state, info, space, move / moves)
        if kept is None or move >= moves - kept:
            user, log_det = space.to_user(state.position)
            rows.append(user)
            values.append(state.log_prob - log_det)
    return torch.cat(rows), torch.cat(values)
