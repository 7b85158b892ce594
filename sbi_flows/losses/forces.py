"""Force matching: the gradient of a flow's log-density against the force at configurations of the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_flows.losses.base import Batch

WEIGHT = 0.1


def force_matching(flow: Any, batch: Batch, generator: torch.Generator, weight: float = WEIGHT) -> Tensor:
    """Negative log-likelihood plus the squared misfit of the force a column, in kT per standard deviation, ``(n,)``.

    It differentiates the flow twice: smooth flows only (:func:`sbi_flows.flows.realnvp`; splines refuse).

    Parameters
    ----------
    flow : Flow
        Without context.
    batch : Batch
        ``context (n, d)``: forces over kT, the gradient of the target's log-density at the rows.
    generator : torch.Generator
        Not used.
    weight : float
        Of the misfit.

    Examples
    --------
    >>> from sbi_flows.flows import realnvp
    >>> x = torch.randn(3, 2)
    >>> force_matching(realnvp(2), Batch(x, -x), torch.Generator()).shape
    torch.Size([3])

    References
    ----------
    Koehler, Kraemer & Noe 2021, "Smooth normalizing flows", arXiv:2110.00351.
    """
    if batch.context is None or batch.context.shape != batch.x.shape:
        raise ValueError(f"Expected a batch whose context holds the force at each row, of shape {tuple(batch.x.shape)}; got none such.")
    with torch.enable_grad():
        x = batch.x.detach().requires_grad_()
        log_q = flow.log_prob(x)
        (score,) = torch.autograd.grad(log_q.sum(), x, create_graph=True)
    # A force of one in these units moves ln q by one over a standard deviation, whatever the units of the columns.
    misfit = (score - batch.context) @ flow.scaling.inverse_matrix.to(score)
    return weight * misfit.square().mean(-1) - log_q
