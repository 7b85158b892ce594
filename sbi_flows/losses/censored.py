"""Maximum likelihood where some values are known only to lie beyond a limit."""

from typing import Any

import torch
from torch import Tensor

from sbi_flows.flows.tails import log_prob_and_tails
from sbi_flows.losses.base import Batch


def censored_nll(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood in nats, ``(n,)``: of a value seen its density, of a limit the mass beyond it.

    Right for limits that tell nothing more than themselves: whoever was watched until t might as well have been anybody with the same
    context who lived to t.

    Parameters
    ----------
    flow : Flow
        Of one column (:func:`sbi_flows.flows.tails.check_tails`), or with such a flow behind an embedding.
    batch : Batch
        Its ``x (n, 2)`` are value and kind: 0 for a value seen, 1 where the true one lies above, -1 where it lies below.
    generator : torch.Generator
        Not used.

    Examples
    --------
    >>> import torch
    >>> from sbi_flows.flows import nsf
    >>> rows = torch.tensor([[0.3, 0.0], [1.5, 1.0], [-2.0, -1.0]])
    >>> censored_nll(nsf(1), Batch(rows), torch.Generator()).shape
    torch.Size([3])

    References
    ----------
    Kalbfleisch & Prentice 2002, "The statistical analysis of failure time data", Wiley, section 3.2.
    """
    value, kind = batch.x[:, :1], batch.x[:, 1]
    inner, context = flow.conditioned(batch.context)
    log_prob, below, above = log_prob_and_tails(inner, value, context)
    return -torch.where(kind > 0, above, torch.where(kind < 0, below, log_prob))
