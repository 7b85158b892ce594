"""Calling a user's log-density: only where it is defined, its shape checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sbi_flows.bijections.support import ColumnSupport

LogDensity = Callable[[Tensor], Tensor]
HAS_NO_GRADIENT = "has no gradient"


def where_inside(function: LogDensity, x: Tensor, rows: Tensor | None, name: str) -> Tensor:
    """``function`` at the rows inside (None: all of them), -inf at the others: outside, a formula may have no value."""
    if rows is None or bool(rows.all()):
        return _evaluated(function, x, name)
    values = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    if not bool(rows.any()):
        # Zero times x keeps the result attached to x, for whoever asks for gradients of nothing.
        return values + (0.0 * x).nan_to_num().sum(-1)
    return values.index_put((rows,), _evaluated(function, x[rows], name))


def _evaluated(function: LogDensity, x: Tensor, name: str) -> Tensor:
    try:
        values = function(x)
    except Exception as error:
        error.add_note(
            f"{name} raised this for a batch of {len(x)} points. Where the model has no value return -inf, which samplers reject; numpy "
            "functions wrapped as from_numpy(function) may raise."
        )
        raise
    if not isinstance(values, Tensor):
        raise TypeError(
            f"Expected {name} to return a tensor; got a {type(values).__name__}. Wrap a numpy function as from_numpy(function)."
        )
    if tuple(values.shape) != (len(x),):
        raise ValueError(
            f"Expected {name}(x) of shape ({len(x)},) for x of shape {tuple(x.shape)}; got {tuple(values.shape)}. "
            "It takes many points at once, one a row; for a numpy function of one point pass from_numpy(function, vectorized=False)."
        )
    if x.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
        raise ValueError(no_gradient(name))
    return values.double()


def no_gradient(name: str) -> str:
    """What to do about a function that autograd cannot see through."""
    return (
        f"{name} {HAS_NO_GRADIENT}: write it in torch, or pass from_numpy(function, grad=...). "
        "Random walks and flow proposals need none."
    )


def inside(x: Tensor, columns: Sequence[ColumnSupport]) -> Tensor:
    """Which rows of ``x (n, d)`` lie within every end, ``(n,)`` bool; angles have none."""
    ends = [(c.low, c.high) if c.kind != "circular" else (-math.inf, math.inf) for c in columns]
    low, high = torch.tensor(ends, dtype=x.dtype, device=x.device).unbind(-1)
    return ((x >= low) & (x <= high)).all(-1)
