"""Reverse Kullback-Leibler divergence: a flow learns an unnormalised density from the density alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sbi_flows.losses.base import Batch, Loss

# Where the target is zero a flow's draw costs this many nats, without a direction: importance weights drop it later.
_IMPOSSIBLE = -1e3


def reverse_kl(log_prob: Callable[[Tensor], Tensor]) -> Loss:
    """``ln q(x) - ln p(x)`` at the flow's own draws x, with the path gradient.

    The gradient is taken along the draws only, not through the parameters inside ln q: that part has mean zero, and leaving it out makes
    the gradient vanish without noise when q equals p.

    Parameters
    ----------
    log_prob : callable
        ``(n, d)`` float64 tensor to ``(n,)``: ln p up to a constant, differentiable.

    Returns
    -------
    callable
        ``loss(flow, batch, generator) -> (n,)``, with draws of the flow's base as ``batch.x``; the flow is one with ``from_base``.

    Examples
    --------
    >>> from sbi_flows.flows import realnvp
    >>> loss = reverse_kl(lambda x: -0.5 * x.square().sum(-1))
    >>> loss(realnvp(2), Batch(torch.zeros(3, 2)), torch.Generator()).shape
    torch.Size([3])

    References
    ----------
    Roeder, Wu & Duvenaud 2017, "Sticking the landing", arXiv:1703.09194; Vaitl, Nicoli, Nakajima & Kessel 2022, "Gradients should stay
    on path", arXiv:2207.08219.
    """

    def loss(flow: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        weights = {f"flow.{name}": parameter.detach() for name, parameter in flow.named_parameters()}
        dtype = next(flow.parameters()).dtype
        x = flow.from_base(batch.x.to(dtype), dtype=torch.float64)[0]
        log_q = functional_call(_LogProb(flow), weights, (x,))
        log_p = log_prob(x)
        return log_q - torch.where(torch.isfinite(log_p), log_p, _IMPOSSIBLE)

    return loss


class _LogProb(nn.Module):
    """A flow's ``log_prob`` as a module's ``forward``, the form that ``functional_call`` takes."""

    def __init__(self, flow: nn.Module):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)  # type: ignore[operator]
