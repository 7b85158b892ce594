"""One solve of a continuous flow that can be differentiated, with what its path costs.

Discretise, then optimise: gradients are those of the numbers computed on the fixed grid, to rounding. Each step keeps only its start and
is computed again in the backward pass, so memory holds one step's activations however many steps there are: this is the
discrete adjoint, without the drift of one that integrates the equation backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sbi_flows.nn import transforms_active

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainingSolution(NamedTuple):
    """The end of the path, and what it cost.

    Attributes
    ----------
    x : Tensor (d, n)
    log_det : Tensor (n,)
    kinetic : Tensor (n,)
        Integral over the path of the squared speed.
    curvature : Tensor (n,)
        Integral over the path of the squared acceleration, from differences of the slopes that the solver computes anyway. It is zero for
        straight lines at constant speed, which one Euler step solves exactly, and the leading part of a solver's error otherwise.
    """

    x: Tensor
    log_det: Tensor
    kinetic: Tensor
    curvature: Tensor


def solve_for_training(field: Field, x: Tensor, times: Tensor) -> TrainingSolution:
    """From ``x (d, n)`` at ``times[0]`` to ``times[-1]``, a step of the classical fourth-order method between neighbours.

    Parameters
    ----------
    field : callable
        Time () and ``x (d, n)`` to velocity ``(d, n)`` and divergence ``(n,)``.
    x : Tensor (d, n)
    times : Tensor (steps + 1,)

    References
    ----------
    Chen, Xu, Zhang & Guestrin 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174; Onken & Ruthotto 2020,
    "Discretize-optimize vs. optimize-discretize for time-series regression and continuous normalizing flows", arXiv:2005.13420;
    Kelly et al. 2020, "Learning differential equations that are easy to solve", arXiv:2007.04504 (the curvature, their K = 2).
    """

    def step(x: Tensor, start: Tensor, end: Tensor) -> TrainingSolution:
        h = end - start
        v1, d1 = field(start, x)
        v2, d2 = field(start + 0.5 * h, x + 0.5 * h * v1)
        v3, d3 = field(start + 0.5 * h, x + 0.5 * h * v2)
        v4, d4 = field(end, x + h * v3)
        return TrainingSolution(
            x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4),
            h / 6 * (d1 + 2 * d2 + 2 * d3 + d4),
            h.abs() / 6 * (v1.square() + 2 * v2.square() + 2 * v3.square() + v4.square()).sum(0),
            (v4 - v1).square().sum(0) / h.abs(),
        )

    # Under vmap what would be computed again is not known to the transform; there all activations are kept.
    forget = torch.is_grad_enabled() and not transforms_active()
    totals = [x.new_zeros(x.shape[-1])] * 3
    for start, end in pairwise(times.unbind()):
        x, *costs = checkpoint(step, x, start, end, use_reentrant=False, preserve_rng_state=False) if forget else step(x, start, end)
        totals = [total + cost for total, cost in zip(totals, costs, strict=True)]
    return TrainingSolution(x, *totals)
