"""The part of the columns that is linear in the context, taken off before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor

# Ridge strengths tried, in units of the number of rows; infinity (no regression) is tried too.
_STRENGTHS = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


def ridge(y: Tensor, context: Tensor, weights: Tensor | None = None) -> Tensor:
    """Slopes of the ridge regression of each column on the context, its strength chosen by leave-one-out error.

    Parameters
    ----------
    y : Tensor (n, d)
    context : Tensor (n, c)
        Of order one and about zero.
    weights : Tensor (n,), optional
        Non-negative.

    Returns
    -------
    Tensor (d, c)
        float64; zero for columns that the regression does not predict better than their mean.

    References
    ----------
    Golub, Heath & Wahba 1979, "Generalized cross-validation as a method for choosing a good ridge parameter", Technometrics 21.

    Examples
    --------
    >>> context = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> ridge(3 * context[:, :1], context).round(decimals=3).abs()
    tensor([[3., 0.]], dtype=torch.float64)
    """
    y, context = y.double(), context.double()
    n = len(y)
    share = torch.full((n,), 1 / n, dtype=y.dtype, device=y.device) if weights is None else weights.to(y) / weights.to(y).sum()
    root = share.sqrt()[:, None]
    y, context = (y - share @ y) * root, (context - share @ context) * root
    size, direction = torch.linalg.eigh(context.mT @ context)
    size = size.clamp(min=0.0)
    scores = context @ direction  # (n, c), orthogonal columns of squared length ``size``
    projected = scores.mT @ y
    best_error, best = y.square().sum(0), torch.zeros(context.shape[1], y.shape[1], dtype=y.dtype, device=y.device)
    for strength in _STRENGTHS:
        gain = 1 / (size + strength)
        coefficient = gain[:, None] * projected
        leverage = (share + scores.square() @ gain).clamp(max=1 - 1e-9)
        error = ((y - scores @ coefficient) / (1 - leverage)[:, None]).square().sum(0)
        better = error < best_error
        best = torch.where(better, coefficient, best)
        best_error = torch.where(better, error, best_error)
    return (direction @ best).mT
