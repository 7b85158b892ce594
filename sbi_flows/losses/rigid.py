"""Flow matching of rigid bodies: straight lines for positions, and turns at a constant rate for orientations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_flows.bijections.quaternions import conjugate, from_rate, multiply, to_rate
from sbi_flows.losses.base import Batch
from sbi_flows.losses.matching import stratified_times


def rigid_flow_matching(flow: Any, batch: Batch, generator: torch.Generator, time_exponent: float = 0.0) -> Tensor:
    """Squared error of velocities and angular velocities on the shortest paths of rotations from noise to data, ``(n,)``.

    Parameters
    ----------
    flow : Flow
        From :func:`sbi_flows.flows.rigid_flow` or :func:`sbi_flows.flows.free_rigid_flow`.
    batch : Batch
    generator : torch.Generator
    time_exponent : float
        As in :func:`sbi_flows.losses.flow_matching`.

    Examples
    --------
    >>> from sbi_flows.flows import rigid_flow
    >>> flow = rigid_flow()
    >>> rigid_flow_matching(flow, Batch(flow.sample(4)), torch.Generator()).shape
    torch.Size([4])

    References
    ----------
    Chen & Lipman 2024, "Flow matching on general geometries", arXiv:2302.03660; Bose et al. 2024, arXiv:2310.02391 (SO(3)).
    """
    bijection = flow.bijection
    data = bijection.scaled(flow.to_unconstrained(batch.x))
    noise = bijection.unit(flow.base.sample(len(data), generator).to(data))
    t = stratified_times(data, generator, time_exponent)
    place, turn = bijection._split(data.mT)
    start_place, start = bijection._split(noise.mT)
    start, turn = start.movedim(1, 0), turn.movedim(1, 0)
    rate = to_rate(multiply(conjugate(start), turn))
    now = multiply(start, from_rate(t * rate)).movedim(0, 1)
    point = torch.cat([torch.lerp(start_place, place, t), now], 1).flatten(0, 1).mT
    velocity, spin = bijection.rates(t, point)
    error = torch.cat([velocity - (place - start_place), spin - rate.movedim(0, 1)], 1)
    return error.square().flatten(0, 1).mean(0)
