"""The maximum of a density, by gradient ascent from many starts at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sbi_flows.bijections.linear import Whiten
from sbi_flows.bijections.support import parse_support
from sbi_flows.bijections.unconstrain import Unconstrain

_STEPS = 200
_COMBINATIONS = 10  # of discrete values
_RATE = 0.1  # in units of the draws' spread


def climb(log_density: Callable[[Tensor], Tensor], draws: Tensor, support: Sequence, n_starts: int) -> Tensor:
    """The highest point found.

    Parameters
    ----------
    log_density : callable
        ``(n, d)`` to ``(n,)``, differentiable, per unit volume of its argument.
    draws : Tensor (n, d)
        Float64 draws: the best are starts, all of them set the scale of the search.
    support : sequence
        One entry a column, see :func:`sbi_flows.bijections.support.parse_support`.
    n_starts : int

    Returns
    -------
    Tensor (d,)
        At least as high as the best draw.

    Examples
    --------
    >>> draws = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).double()
    >>> top = climb(lambda x: -(x - 0.5).square().sum(-1), draws, ["real", "real"], 5)
    >>> bool((top - 0.5).abs().max() < 1e-3)
    True
    """
    columns = parse_support(list(support), draws.shape[1])
    unconstrain = Unconstrain(columns)
    unconstrain.fit(draws)
    free = [i for i, column in enumerate(columns) if column.kind != "circular"]
    whiten = Whiten(draws.shape[1], free)
    whiten.fit(unconstrain.forward_and_log_det(draws)[0])

    def to_parameters(z: Tensor) -> Tensor:
        return unconstrain.inverse_and_log_det(whiten.inverse_and_log_det(z)[0])[0]

    with torch.no_grad():
        values = _finite(log_density(draws))
        best = values.argsort(descending=True)[:n_starts]
        z = whiten.forward_and_log_det(unconstrain.forward_and_log_det(draws[best])[0])[0]
        top, top_value = draws[best[0]].clone(), values[best[0]]
    z.requires_grad_()
    optimizer = torch.optim.Adam([z], lr=_RATE)
    for step in range(_STEPS):
        theta = to_parameters(z)
        height = _finite(log_density(theta))
        highest = height.argmax()
        if height[highest] > top_value:
            top, top_value = theta[highest].detach().clone(), height[highest].detach()
        optimizer.zero_grad()
        (gradient,) = torch.autograd.grad(-height.sum(), z)
        z.grad = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        optimizer.param_groups[0]["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        optimizer.step()
    return top


def climb_each(
    log_density: Callable[[Tensor], Tensor], draws: Tensor, support: Sequence, n_starts: int, discrete: Sequence[int]
) -> Tensor:
    """As :func:`climb` where some columns are ``discrete``: for each of their values in turn, with these held.

    Examples
    --------
    >>> draws = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).double()
    >>> draws[:, 0] = (draws[:, 0] > 0).double()
    >>> top = climb_each(lambda x: x[:, 0] - (x[:, 1] - x[:, 0]).square(), draws, ["real", "real"], 5, [0])
    >>> bool((top - 1.0).abs().max() < 1e-3)
    True
    """
    rest = [j for j in range(draws.shape[1]) if j not in discrete]
    _, which, counts = torch.unique(draws[:, list(discrete)], dim=0, return_inverse=True, return_counts=True)
    tops = []
    for m in counts.argsort(descending=True)[:_COMBINATIONS]:
        own = draws[which == m]
        if not rest or len(own) <= len(rest):
            tops.append(own[:1])  # nothing to climb, or too little to set a scale by
            continue

        def held(y: Tensor, like: Tensor = own[0]) -> Tensor:
            columns = list(like.expand(len(y), -1).unbind(1))
            for j, column in zip(rest, y.unbind(1), strict=True):
                columns[j] = column
            return log_density(torch.stack(columns, dim=1))

        top = own[:1].clone()
        top[0, rest] = climb(held, own[:, rest], [support[j] for j in rest], n_starts)
        tops.append(top)
    found = torch.cat(tops)
    with torch.no_grad():
        return found[_finite(log_density(found)).argmax()]


def _finite(values: Tensor) -> Tensor:
    """Heights that can be compared and summed: -inf and NaN become the lowest float."""
    return torch.nan_to_num(values, nan=-1e300, neginf=-1e300)
