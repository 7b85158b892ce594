"""Losses of ratio estimation: a network learns ``ln p(x | theta) / p(x)`` by telling real pairs from shuffled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sbi_flows.losses.base import Batch, Loss

BALANCE = 100.0  # weight of the balancing term, as in the paper


def contrastive(n_contrasts: int = 10) -> Loss:
    """Which of several parameters made x, or none of them: the loss of contrastive ratio estimation (NRE-C with gamma = 1).

    Unlike the plain multi-class loss (NRE-B), its optimum is the ratio itself, not the ratio times any function of x.

    Parameters
    ----------
    n_contrasts : int
        Parameters of other rows that each row is compared with; fewer where the batch has fewer.

    Returns
    -------
    callable
        ``loss(net, batch, generator) -> (n,)``, with theta as ``batch.x`` and x as ``batch.context``. The net has
        ``encode(theta, x)``, which gives both as rows, and ``compare``, which gives the log ratio of pairs of such rows, ``(n,)``.

    Examples
    --------
    >>> class Zero:
    ...     def encode(self, theta, x):
    ...         return theta, x
    ...     def compare(self, theta, x):
    ...         return torch.zeros(len(theta))
    >>> contrastive(2)(Zero(), Batch(torch.zeros(5, 1), torch.zeros(5, 1)), torch.Generator()).shape
    torch.Size([5])

    References
    ----------
    Miller, Weniger & Forre 2022, "Contrastive neural ratio estimation", arXiv:2210.06170; Durkan, Murray & Papamakarios 2020, "On
    contrastive learning for likelihood-free inference", arXiv:2002.03712 (NRE-B).
    """

    def loss(net: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        theta, x = _given(batch)
        k = min(n_contrasts, len(theta) - 1)
        if k < 1:
            return _shuffled(net, theta, x, 0)[0] * 0.0  # a single row has nothing to be told from
        log_ratio = _shuffled(net, theta, x, k)  # (k + 1, n): own parameters first, then others
        # Classes 1..k: one of k parameters made x; class 0: none did. All have prior odds 1/k, or 1 for class 0.
        zero = torch.zeros_like(log_ratio[:1])
        log_k = torch.log(zero.new_tensor(float(k)))
        real = torch.logsumexp(torch.cat([zero + log_k, log_ratio[:k]]), dim=0) - log_ratio[0]
        none = torch.logsumexp(torch.cat([zero + log_k, log_ratio[1:]]), dim=0) - log_k
        return 0.5 * (real + none)

    return loss


def balanced(weight: float = BALANCE) -> Loss:
    """Real pair or shuffled one, with a penalty for an unbalanced classifier: posteriors tend to be too wide rather than too narrow.

    Parameters
    ----------
    weight : float
        Of the squared imbalance ``mean(sigmoid at real pairs) + mean(sigmoid at shuffled pairs) - 1``; 0 leaves plain NRE-A.

    Returns
    -------
    callable
        As :func:`contrastive`. The penalty is one number a batch, the same in every row.

    References
    ----------
    Delaunoy, Hermans, Rozet, Wehenkel & Louppe 2022, "Towards reliable simulation-based inference with balanced neural ratio
    estimation", arXiv:2208.13624.
    """

    def loss(net: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        theta, x = _given(batch)
        if len(theta) < 2:
            return _shuffled(net, theta, x, 0)[0] * 0.0
        real, shuffled = _shuffled(net, theta, x, 1)
        imbalance = torch.sigmoid(real).mean() + torch.sigmoid(shuffled).mean() - 1
        return 0.5 * (softplus(-real) + softplus(shuffled)) + weight * imbalance.square()

    return loss


LOSSES: dict[str, Callable[[], Loss]] = {"contrastive": contrastive, "balanced": balanced}


def _given(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.context is None:
        raise ValueError("Expected batches with a context: ratio losses compare theta (batch.x) with x (batch.context).")
    return batch.x, batch.context


def _shuffled(net: Any, theta: Tensor, x: Tensor, k: int) -> Tensor:
    """Log ratio of each x with its own theta and with those of k other rows, ``(k + 1, n)``.

    Rows are shifted by different amounts, evenly spread: batches come shuffled, and where held-out rows do not, neighbours that
    share parameters are passed over.
    """
    n = len(theta)
    shifts = [0] + [1 + j * (n - 1) // k for j in range(k)]
    theta, x = net.encode(theta, x)
    pairs = torch.cat([torch.roll(theta, shift, dims=0) for shift in shifts])
    return net.compare(pairs, x.repeat(k + 1, 1)).unflatten(0, (k + 1, n))
