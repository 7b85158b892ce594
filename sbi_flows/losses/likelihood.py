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


def nll_through_solver(
    flow: Any, batch: Batch, generator: torch.Generator, steps: int = 8, kinetic: float = 0.01, curvature: float = 0.0
) -> Tensor:
    """Negative log-likelihood of a continuous flow in nats, plus what is charged for its paths, ``(n,)``.

    The gradient is that of the discretised solve. A step costs as much as some 25 of flow matching: they are best spent on refining a
    flow that matching has trained (``benchmarks/refine.py``). A solver may be exploited by what it trains, so keep some of the
    costs, and let :meth:`Flow.choose_steps` measure the true error afterwards.

    Parameters
    ----------
    flow : Flow
        From :func:`sbi_flows.flows.cnf`, or with such a flow inside.
    batch : Batch
    generator : torch.Generator
        Not used.
    steps : int
        Of the classical fourth-order method, each of four evaluations.
    kinetic : float
        Nats charged for a unit of the squared speed integrated over the path, in standard deviations of the data.
    curvature : float
        The same for the squared acceleration, in which the solver's error begins.

    Examples
    --------
    >>> import torch
    >>> from sbi_flows.flows import cnf
    >>> nll_through_solver(cnf(2), Batch(torch.zeros(4, 2)), torch.Generator(), steps=2).shape
    torch.Size([4])

    References
    ----------
    Finlay, Jacobsen, Nurbekyan & Oberman 2020, "How to train your neural ODE: the world of Jacobian and kinetic regularization",
    arXiv:2002.02798; Kelly, Bettencourt, Johnson & Duvenaud 2020, arXiv:2007.04504.
    """
    inner, context = flow.conditioned(batch.context)
    log_prob, speed, bending = inner.log_prob_with_costs(batch.x, context, steps=steps)
    return kinetic * speed + curvature * bending - log_prob
