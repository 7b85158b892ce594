"""Ordinary differential equations on fixed grids, with an error for every row and more steps for the rows that need them.

A state is a tuple of tensors whose last axis is the batch. Nothing here looks at more than one row at a time, so the solution of
a row does not depend on its neighbours, as it would with one adaptive step size for a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Derivative = Callable[[float, State], State]
# What solves rows (a tensor of row numbers, or None for all) with a number of steps.
Solver = Callable[[Tensor | None, int], State]


@dataclass(frozen=True)
class Method:
    """An explicit Runge-Kutta method.

    Attributes
    ----------
    name : str
    order : int
        The error of a solution falls as the step to this power.
    stages : tuple of tuple of float
        Stage i is evaluated at the state plus step times ``sum_j stages[i][j] k_j``.
    weights : tuple of float
    """

    name: str
    order: int
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @property
    def nodes(self) -> tuple[float, ...]:
        """Where in the step each stage is evaluated."""
        return tuple(math.fsum(row) for row in self.stages)


def _cooper_verner() -> Method:
    s = math.sqrt(21)
    stages = (
        (),
        (1 / 2,),
        (1 / 4, 1 / 4),
        (1 / 7, (-7 - 3 * s) / 98, (21 + 5 * s) / 49),
        ((11 + s) / 84, 0, (18 + 4 * s) / 63, (21 - s) / 252),
        ((5 + s) / 48, 0, (9 + s) / 36, (-231 + 14 * s) / 360, (63 - 7 * s) / 80),
        ((10 - s) / 42, 0, (-432 + 92 * s) / 315, (633 - 145 * s) / 90, (-504 + 115 * s) / 70, (63 - 13 * s) / 35),
        (1 / 14, 0, 0, 0, (14 - 3 * s) / 126, (13 - 3 * s) / 63, 1 / 9),
        (1 / 32, 0, 0, 0, (91 - 21 * s) / 576, 11 / 72, (-385 - 75 * s) / 1152, (63 + 13 * s) / 128),
        (1 / 14, 0, 0, 0, 1 / 9, (-733 - 147 * s) / 2205, (515 + 111 * s) / 504, (-51 - 11 * s) / 56, (132 + 28 * s) / 245),
        (
            *(0, 0, 0, 0),
            *((-42 + 7 * s) / 18, (-18 + 28 * s) / 45, (-273 - 53 * s) / 72),
            *((301 + 53 * s) / 72, (28 - 28 * s) / 45, (49 - 7 * s) / 18),
        ),
    )
    return Method("Cooper-Verner", 8, stages, (1 / 20, 0, 0, 0, 0, 0, 0, 49 / 180, 16 / 45, 49 / 180, 1 / 20))


EULER = Method("Euler", 1, ((),), (1.0,))
RK4 = Method("RK4", 4, ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
# Dormand & Prince 1980, its fifth-order weights.
DOPRI5 = Method(
    "Dormand-Prince",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Cooper & Verner 1972, "Some explicit Runge-Kutta methods of high order", SIAM J. Numer. Anal. 9, 389.
ORDER8 = _cooper_verner()


def integrate(derivative: Derivative, state: State, times: Sequence[float], method: Method = ORDER8) -> State:
    """The state at ``times[-1]``, from ``state`` at ``times[0]``, by one step of ``method`` between neighbouring times.

    Parameters
    ----------
    derivative : callable
        ``derivative(t, state)`` gives the time derivative of every part of the state.
    state : tuple of Tensor (..., n)
    times : sequence of float
        Increasing or decreasing.
    method : Method

    Examples
    --------
    >>> (x,) = integrate(lambda t, s: (-s[0],), (torch.ones(1, dtype=torch.float64),), [0.0, 0.5, 1.0])
    >>> abs(x.item() - math.exp(-1)) < 1e-9
    True
    """
    moments = iter(stage_times(times, method))
    for start, end in pairwise(times):
        step = end - start
        slopes: list[State] = []
        for row in method.stages:
            slopes.append(derivative(next(moments), _moved(state, slopes, row, step)))
        state = _moved(state, slopes, method.weights, step)
    return state


def stage_times(times: Sequence[float], method: Method = ORDER8) -> list[float]:
    """The times at which :func:`integrate` asks for derivatives, in that order: so they can be prepared beforehand."""
    nodes = method.nodes
    return [start + node * (end - start) for start, end in pairwise(times) for node in nodes]


def _moved(state: State, slopes: Sequence[State], weights: Sequence[float], step: float) -> State:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            state = tuple(torch.add(part, change, alpha=weight * step) for part, change in zip(state, slope, strict=True))
    return state


@dataclass(frozen=True)
class RowSolution:
    """Solutions with what is known of their errors.

    Attributes
    ----------
    state : tuple of Tensor (..., n)
    error : Tensor (n,)
        Estimated error of each row, in the units of the ``distance`` it was judged by.
    """

    state: State
    error: Tensor


def solve_rows(
    solve: Solver,
    distance: Callable[[State, State], Tensor],
    n_steps: int,
    tolerance: float,
    max_doublings: int = 6,
) -> RowSolution:
    """Solve with ``n_steps``, and with twice as many again and again those rows whose error is above ``tolerance``.

    The error of a row is the distance between its last two solutions. That is the error of the poorer one; the better one, which is
    returned, is closer to the truth by two to the order of the method where steps are short enough for the order to show,
    and where they are not the estimate is still of the right size.

    Parameters
    ----------
    solve : callable
        ``solve(rows, n_steps)`` gives the final state of ``rows`` (all of them for None).
    distance : callable
        Of two states, ``(n,)``.
    n_steps : int
        Steps of the first solution; its error is measured against one of half as many.
    tolerance : float
    max_doublings : int
        A row that is not within ``tolerance`` after so many keeps its best solution, and its error tells.
    """
    n_steps = max(2, n_steps)
    fine = solve(None, n_steps)
    with torch.no_grad():
        error = distance(solve(None, n_steps // 2), fine)
    for _ in range(max_doublings):
        # NaN counts as bad: too few steps can throw a row to infinity.
        rows = torch.nonzero(~(error <= tolerance))[:, 0]
        if not len(rows):
            break
        n_steps *= 2
        before = tuple(part.index_select(-1, rows) for part in fine)
        after = solve(rows, n_steps)
        fine = tuple(part.index_copy(-1, rows, new) for part, new in zip(fine, after, strict=True))
        with torch.no_grad():
            error = error.index_copy(-1, rows, distance(before, after))
    return RowSolution(fine, error)
