"""Path gradients: a flow learns an unnormalised density, or draws whose scores are known, without noise where it is right already.

The gradient of a divergence has two parts: along the path of each point through the flow, and through the parameters in the flow's own
log-density. The second has mean zero but not variance zero, not even where flow and target agree. Left out, what remains is the
difference of two scores (gradients of log-densities) at the end of the path, along which it is carried back. The flow's score comes with
the pass that makes the point (:meth:`sbi_flows.flows.Flow.from_base_with_score`); for couplings and linear layers no second pass is made.

References
----------
Roeder, Wu & Duvenaud 2017, "Sticking the landing", arXiv:1703.09194; Vaitl, Nicoli, Nakajima & Kessel 2022, "Gradients should stay on
path", arXiv:2207.08219; Vaitl, Winkler, Richter & Kessel 2024, "Fast and unified path gradient estimators for normalizing flows",
arXiv:2403.15881.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_flows.losses.base import Batch, Loss

# Where the target is zero a flow's draw costs this many nats, without a direction: importance weights drop it later.
_IMPOSSIBLE = -1e3
# A row may pull this many times as hard as the median row: overlapping atoms push with any force.
_HARDEST = 1e4


def reverse_kl(log_prob: Callable[[Tensor], Tensor]) -> Loss:
    """``ln q(x) - ln p(x)`` at the flow's own draws x, with the path gradient.

    A base with parameters of its own (a mixture) keeps them: its draws have no path to them.

    Parameters
    ----------
    log_prob : callable
        ``(n, d)`` float64 tensor to ``(n,)``: ln p up to a constant, differentiable.

    Returns
    -------
    callable
        ``loss(flow, batch, generator) -> (n,)``, with draws of the flow's base as ``batch.x``; the flow is one with
        ``from_base_with_score``.

    Examples
    --------
    >>> from sbi_flows.flows import realnvp
    >>> loss = reverse_kl(lambda x: -0.5 * x.square().sum(-1))
    >>> loss(realnvp(2), Batch(torch.zeros(3, 2)), torch.Generator()).shape
    torch.Size([3])
    """

    def loss(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        z = batch.x.to(next(flow.parameters()).dtype)
        if not torch.is_grad_enabled():
            x, log_det = flow.from_base(z, dtype=torch.float64)
            return flow.base.log_prob(z) - log_det - _possible(log_prob(x))
        x, log_det, score = flow.from_base_with_score(z, dtype=torch.float64)
        there = x.detach().requires_grad_()
        log_p = log_prob(there)
        (wanted,) = torch.autograd.grad(log_p.sum(), there)
        value = (flow.base.log_prob(z) - log_det).detach() - _possible(log_p.detach())
        return along(value, x, torch.where(torch.isfinite(log_p)[:, None], score - wanted, 0.0))

    return loss


def forward_kl(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood of draws whose score is known, with the path gradient: ``(n,)``.

    Where they are draws of ``exp(-U)`` the score is the force. Forces tell what the likelihood of few draws leaves open; the gradient
    vanishes without noise where the flow is right, but for that of a base with parameters of its own, which learns by plain likelihood.

    Parameters
    ----------
    flow : Flow
        Without context.
    batch : Batch
        ``context (n, d)``: gradients of the target's log-density at the rows.
    generator : torch.Generator
        Not used.

    Examples
    --------
    >>> from sbi_flows.flows import realnvp
    >>> x = torch.randn(3, 2)
    >>> forward_kl(realnvp(2), Batch(x, -x), torch.Generator()).shape
    torch.Size([3])
    """
    if batch.context is None or batch.context.shape != batch.x.shape:
        raise ValueError(f"Expected a batch whose context holds the score at each row, of shape {tuple(batch.x.shape)}; got none such.")
    if not torch.is_grad_enabled():
        return -flow.log_prob(batch.x)
    z, log_det, score = flow.to_base_with_score(batch.x, batch.context)
    value = -(flow.base.log_prob(z) + log_det).detach()
    at_base = flow.base.log_prob(z.detach())  # a base with parameters of its own, a mixture, learns them by likelihood
    return along(value, z, score - flow.base_score(z)) - (at_base - at_base.detach())


def along(value: Tensor, point: Tensor, direction: Tensor) -> Tensor:
    """``value (n,)`` with the gradient of ``direction (n, d)`` dotted into ``point (n, d)``; no row pulls much harder than most."""
    norm = direction.norm(dim=-1, keepdim=True)
    direction = torch.nan_to_num(direction * (_HARDEST * norm.median() / norm.clamp(min=1e-300)).clamp(max=1.0))
    pull = (direction.detach() * point).sum(-1)
    return value + (pull - pull.detach())


def _possible(log_p: Tensor) -> Tensor:
    return torch.where(torch.isfinite(log_p), log_p, _IMPOSSIBLE)
