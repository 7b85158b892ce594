"""Training by maximum likelihood."""

from typing import Any

import torch
from torch import Tensor

from sbi_flows.losses.base import Batch


def nll(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood in nats, ``(n,)``: training by maximum likelihood.

    Parameters
    ----------
    flow : Flow
        Anything with ``log_prob(x, context)``.
    batch : Batch
        Rows ``x (n, d)`` and their ``context (n, c)`` or None.
    generator : torch.Generator
        Not used; other losses draw noise from it.

    Examples
    --------
    >>> import torch
    >>> from sbi_flows.flows import maf
    >>> nll(maf(2), Batch(torch.zeros(4, 2)), torch.Generator()).shape
    torch.Size([4])

    References
    ----------
    Papamakarios et al. 2021, "Normalizing flows for probabilistic modeling and inference", JMLR 22(57).
    """
    return -flow.log_prob(batch.x, batch.context)
