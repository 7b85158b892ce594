"""The alpha = 2 divergence from points of a replay buffer: it grows wherever the flow is too thin, so a flow that minimises it covers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sbi_flows.losses.base import Batch
from sbi_flows.losses.known_density import height_misfit

_MOST = math.log(10.0)  # of a correction: buffers may be old


def alpha_two(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """``-w ln q(x)``, where x is distributed as ``p^2 / q`` with the q of ``batch.context``, and w corrects for the change of q since.

    Its expected gradient is that of ``ln E_p[p / q]``, the logarithm of the mean square of importance weights: least where these are
    constant, and large where the flow misses a mode, which draws of the flow alone would never tell.

    Parameters
    ----------
    flow : Flow
        Without context.
    batch : Batch
        ``context (n, 1)``: ln q of the rows when they were put into the buffer or last weighed. With a second column, ln p there, the
        misfit of heights is charged as well, as in :func:`sbi_flows.losses.known_density`.
    generator : torch.Generator
        Not used.

    Examples
    --------
    >>> from sbi_flows.flows import realnvp
    >>> alpha_two(realnvp(2), Batch(torch.zeros(4, 2), torch.zeros(4, 1)), torch.Generator()).shape
    torch.Size([4])

    References
    ----------
    Midgley, Stimper, Simm, Schölkopf & Hernandez-Lobato 2023, "Flow annealed importance sampling bootstrap", arXiv:2208.01893.
    """
    if batch.context is None or batch.context.shape[-1] not in (1, 2):
        raise ValueError("Expected a batch whose context has one column or two: ln q of the rows when they were last weighed, and ln p.")
    log_q = flow.log_prob(batch.x)
    correction = (batch.context[:, 0] - log_q.detach()).clamp(max=_MOST).exp()
    loss = -correction * log_q
    return loss if batch.context.shape[-1] == 1 else loss + height_misfit(log_q, batch.context[:, 1], correction)
