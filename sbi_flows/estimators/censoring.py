"""Limits in place of values: rows of which is known only that the true value lies above them, or below."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows.bijections.continuous import Continuous
from sbi_flows.estimators.ensemble import FlowEnsemble
from sbi_flows.flows.tails import check_tails, log_prob_and_tails

_FEW = 0.01  # mass beyond all values seen that is not worth a note


def check_censored(censored: Any, y: np.ndarray, name: str) -> np.ndarray | None:
    """The kinds of the rows ``(n,)``: 0 seen, 1 the true value lies above, -1 below; None where all are seen.

    Raises
    ------
    ValueError
        For other kinds or another shape, for y of several columns, and where fewer than two values were seen.
    """
    kinds = np.asarray(censored)
    if kinds.shape != (len(y),):
        raise ValueError(f"Expected censored of shape ({len(y)},), one entry a row of {name}; got {kinds.shape}.")
    if kinds.dtype.kind not in "biuf" or not np.isin(kinds, (-1, 0, 1)).all():
        odd = kinds[~np.isin(kinds, (-1, 0, 1))][:3].tolist()
        raise ValueError(
            f"Expected censored to hold 0 or False for a value seen, 1 or True where the true value lies above {name}, -1 where it lies "
            f"below; got {', '.join(map(repr, odd))}. Of an indicator of events pass censored=(event == 0)."
        )
    if not kinds.any():
        return None
    if y.shape[1] != 1:
        raise ValueError(f"Expected one column of {name} where some rows are limits; got {y.shape[1]}. Fit one column at a time.")
    if (kinds == 0).sum() < 2:
        raise ValueError(
            f"Expected at least two values that were seen; got {(kinds == 0).sum()} of {len(y)} rows, the others are limits. If censored "
            "marks the events, pass censored=(event == 0)."
        )
    return kinds.astype(np.float64)


def check_trainable(flow: Any) -> None:
    """``ValueError`` for a density that cannot be trained on limits."""
    check_tails(flow)
    if isinstance(flow.bijection, Continuous):
        raise ValueError(
            "Expected a flow of finitely many layers where some rows are limits, as flow matching knows no limits; got a continuous one. "
            "Use flow='nsf' or 'maf'."
        )


def with_kinds(x: Tensor, kinds: np.ndarray) -> Tensor:
    """Rows ``(n, 2)`` as :func:`sbi_flows.losses.censored_nll` wants them."""
    return torch.cat([x, torch.as_tensor(kinds).to(x)[:, None]], dim=1)


def log_tails(flow: Any, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mass below and above ``x (n, 1)``, each ``(n,)``, of an ensemble the mean of its members'."""
    if isinstance(flow, FlowEnsemble):
        each = [log_tails(member, x, context) for member in flow.flows]
        below, above = (torch.stack(side).logsumexp(0) - math.log(len(each)) for side in zip(*each, strict=True))
        return below, above
    inner, given = flow.conditioned(context)
    check_tails(inner)
    return log_prob_and_tails(inner, x, given)[1:]


def beyond(kinds: np.ndarray, y: np.ndarray, below: np.ndarray, above: np.ndarray, name: str) -> list[str]:
    """Notes on mass beyond all values seen, where only limits speak: ``below`` and ``above`` are the masses ``(n,)`` there."""
    seen = y[kinds == 0]
    told = []
    for kind, mass, edge, where in ((1, above, seen.max(), "above the largest"), (-1, below, seen.min(), "below the smallest")):
        if (kinds == kind).any() and mass.mean() > _FEW:
            told.append(f"{mass.mean():.0%} of the mass lies {where} value of {name} seen ({edge:g}): how it is spread there is a guess")
    return told
