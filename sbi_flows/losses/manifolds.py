"""Flow matching on manifolds: velocities along shortest paths from noise to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_flows.losses.base import Batch
from sbi_flows.losses.matching import stratified_times


def manifold_flow_matching(flow: Any, batch: Batch, generator: torch.Generator, time_exponent: float = 0.0) -> Tensor:
    """Squared error of velocities on geodesics at constant speed from noise to data, mean over columns, ``(n,)``.

    Parameters
    ----------
    flow : Flow
        From :func:`sbi_flows.flows.manifold_flow`.
    batch : Batch
    generator : torch.Generator
    time_exponent : float
        As in :func:`sbi_flows.losses.flow_matching`.

    Examples
    --------
    >>> from sbi_flows.flows import manifold_flow
    >>> flow = manifold_flow([("sphere", 3)])
    >>> manifold_flow_matching(flow, Batch(flow.sample(4)), torch.Generator()).shape
    torch.Size([4])

    References
    ----------
    Chen & Lipman 2024, "Flow matching on general geometries", arXiv:2302.03660.
    """
    bijection = flow.bijection
    data = bijection.settled(flow.to_unconstrained(batch.x))
    noise = flow.base.sample(len(data), generator).to(data)
    t = stratified_times(data, generator, time_exponent)
    point, velocity = bijection.path(noise, data, t)
    return (bijection.velocity(t, point) - velocity).square().mean(-1)
