"""Training a continuous flow, or a sampler of few steps, on the noise and draws of a flow that is trained already.

Batches hold the parent's own paths: ``x (n, (k + 1) d)``, noise, what becomes of it at k - 1 even times, and the draw, all standardised.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sbi_flows._random import rand
from sbi_flows.losses.base import Batch
from sbi_flows.losses.matching import on_path, stratified_times


def reflow_matching(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """Flow matching on the parent's own pairs of noise and draw, ``(n,)``: their paths do not cross, so what is learned is straighter.

    Parameters
    ----------
    flow : Flow
        From :func:`sbi_flows.flows.cnf`.
    batch : Batch
        Pairs ``x (n, 2 d)`` and contexts.
    generator : torch.Generator
        Draws times.

    References
    ----------
    Liu, Gong & Liu 2023, "Flow straight and fast: learning to generate and transfer data with rectified flow", arXiv:2209.03003.
    """
    noise, draws = batch.x.to(next(flow.parameters()).dtype).chunk(2, dim=-1)
    t = stratified_times(draws, generator)
    point, velocity = on_path(flow.continuous, t, draws, noise)
    return (flow.velocity(t, point, batch.context) - velocity).square().mean(-1)


def mean_flow_matching(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """Squared error of average velocities, mean over columns, ``(n,)``.

    Along a path of the parent ``x_s = x_t + (s - t) u(x_t, t, s)`` does not change with t, so that ``u = v + (s - t) du/dt`` with v the
    parent's velocity and d/dt along the path: one Jacobian-vector product, through which no gradient goes. To this is added the error
    of a step as draws take it, on a path that the parent went: that leaves no error to be handed down from late to early times.

    Parameters
    ----------
    flow : MeanFlow
    batch : Batch
        Paths ``x (n, (flow.n_steps + 1) d)`` and contexts.
    generator : torch.Generator
        Draws times, noise and steps.

    References
    ----------
    Geng et al. 2025, "Mean flows for one-step generative modeling", arXiv:2505.13447; Boffi, Albergo & Vanden-Eijnden 2025, "Flow map
    matching", arXiv:2406.07507.
    """
    parent, k = flow.parent, flow.n_steps
    points = batch.x.to(next(flow.parameters()).dtype).unflatten(-1, (k + 1, flow.features))
    draws = points[:, -1]
    # Any point will do, and fresh noise makes more of them than there are pairs.
    fresh = parent.base.sample(len(draws), generator).to(draws)
    s = 1 - stratified_times(draws, generator).square()
    t = s * rand(s.shape, generator, dtype=s.dtype, device=s.device)
    point, _ = on_path(parent.continuous, t, draws, fresh)
    with torch.no_grad():
        velocity = parent.velocity(t, point, batch.context)

    def average(time: Tensor, y: Tensor) -> Tensor:
        return flow.average_velocity(time, s, y, batch.context)

    with warnings.catch_warnings():
        # The first product makes torch load formulas of its own through an interface that it has deprecated.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        u, change, *_ = torch.func.jvp(average, (t, point), (torch.ones_like(t), velocity))
    target = (velocity + (s - t)[:, None] * change).detach()
    step = torch.floor(k * stratified_times(draws, generator)).long().clamp(max=k - 1)
    rows = torch.arange(len(draws), device=draws.device)
    start, end = points[rows, step], points[rows, step + 1]
    now = step.to(draws) / k
    taken = flow.average_velocity(now, now + 1 / k, start, batch.context) / k
    return (u - target).square().mean(-1) + (k * flow.wrapped(start + taken - end)).square().mean(-1)
