"""A loss that learns posteriors from parameters that were not drawn from the prior."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_flows.losses.base import Batch, Loss


def atomic(log_prior: Callable[[Tensor], Tensor], n_atoms: int) -> Loss:
    """The loss that picks, among some parameters (atoms), the one that made the data: ``-ln softmax(ln q(theta_k | x) - ln p(theta_k))``.

    At its minimum q is the posterior up to a factor that depends on x, whatever distribution the parameters of the batch come from.
    The atoms are a row's own parameter and others of the same batch.

    Parameters
    ----------
    log_prior : callable
        From parameters ``(n, d)`` to their log prior density ``(n,)``.
    n_atoms : int
        At least two; a batch with fewer rows has as many atoms as rows.

    Returns
    -------
    Loss
        A function of flow, batch and generator that gives ``(n,)``.

    References
    ----------
    Greenberg, Nonnenmacher & Macke 2019, "Automatic posterior transformation for likelihood-free inference", arXiv:1905.07488.
    """
    if n_atoms < 2:
        raise ValueError(f"Expected at least two atoms to tell apart; got n_atoms={n_atoms}.")

    def loss(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.context is None:
            raise ValueError("Expected a conditional flow: the atomic loss tells which parameters made the data it is conditioned on.")
        n = len(batch.x)
        k = min(n_atoms, n)
        # Others of the batch, without repeats: steps 1 ... n - 1 ahead in a circle.
        noise = torch.rand(n, n - 1, generator=generator, device=generator.device).to(batch.x.device)
        steps = 1 + noise.topk(k - 1, dim=1).indices
        own = torch.arange(n, device=batch.x.device)[:, None]
        index = torch.cat([own, (own + steps) % n], dim=1)
        atoms = batch.x[index.reshape(-1)]
        context = batch.context.repeat_interleave(k, dim=0)
        scores = (flow.log_prob(atoms, context) - log_prior(atoms).to(atoms)).view(n, k)
        return torch.logsumexp(scores, dim=1) - scores[:, 0]

    return loss
