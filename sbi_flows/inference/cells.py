"""Whole numbers as cells of a line, on which a flow can model them: noise to fit to, and the probability of a cell by quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sbi_flows.flows.counts import SQUARE_ROOT, UNIT

CONTINUOUS = ""
# Gauss-Legendre points a column where one or two hold whole numbers; Sobol points in all where more do. The last is the reference.
_ONE = (1, 3, 8, 64)
_TWO = (1, 3, 8, 20)
_MORE = (1, 16, 64, 512)
_REFERENCE = 3
_ROWS_AT_ONCE = 200_000
_EXAMINED = 1000
_TAIL = 0.99
_FINE_ENOUGH, _TOO_COARSE = 0.02, 0.1
_HALF_NORMAL = math.sqrt(2 / math.pi)


class Cells:
    """Cells of a line for columns of whole numbers, and a rule of quadrature over them.

    On scale "unit" the cell of k is ``[k, k + 1)``. Counts have a scale g, "root" or "log", on which the cell is ``[g(k), g(k + 1))``, so
    that cells are about as wide as the scatter of counts; that of 0 has no lower end, ``(-inf, g(1))``. A hard edge there, where
    most of the probability may lie in one cell, is what a flow learns worst.

    Parameters
    ----------
    scales : sequence of str
        One a column: "unit", "root", "log", or "" for a column that is left alone.
    level : int
        How fine the rule is, 0 (one point a cell) to 2.

    Examples
    --------
    >>> cells = Cells(["unit"], level=1)
    >>> ramp = lambda x, given: torch.log(2 * x[:, 0])  # normalised on [0, 1)
    >>> round(cells.log_mass(ramp, torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 0)).item(), 6)
    0.0
    """

    def __init__(self, scales: Sequence[str], level: int = 0):
        self.scales = tuple(scales)
        self.level = level
        self._whole = [i for i, scale in enumerate(scales) if scale != CONTINUOUS]
        self._points, self._log_weights = _rule(len(self._whole), level)

    def noisy(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows ``(n, k)`` with whole numbers spread over their cells: uniformly, by half a normal density where a cell has no end."""
        noisy, noise = torch.from_numpy(rows.copy()), torch.from_numpy(rng.random(rows.shape))
        for i in self._whole:
            k, u = noisy[:, i], noise[:, i].clamp(min=1e-12)
            low, width, endless = cell(k, self.scales[i])
            # The width at which the density goes on smoothly where the counts 0 and 1 are equally probable.
            tail = low + width + _HALF_NORMAL * width * torch.special.ndtri(u / 2)
            noisy[:, i] = torch.where(endless, tail, low + width * u)
        return noisy.numpy()

    def log_mass(self, log_density: Callable[[Tensor, Tensor], Tensor], rows: Tensor, given: Tensor) -> Tensor:
        """ln of the probability of the cells of each row (times the density of what is continuous), ``(n,)``.

        Parameters
        ----------
        log_density : callable
            From points ``(m, k)`` and conditions ``(m, c)`` to ``(m,)``.
        rows : Tensor (n, k)
            With whole numbers as they are.
        given : Tensor (n, c)
        """
        if not self._whole:
            return log_density(rows, given)
        size = max(1, _ROWS_AT_ONCE // len(self._points))
        parts = [self._log_mass(log_density, *part) for part in zip(rows.split(size), given.split(size), strict=True)]
        return torch.cat(parts) if parts else rows.new_zeros(0)

    def _log_mass(self, log_density: Callable[[Tensor, Tensor], Tensor], rows: Tensor, given: Tensor) -> Tensor:
        q = len(self._points)
        points, log_volume = rows[:, None].repeat(1, q, 1), self._log_weights.expand(len(rows), q)
        for j, i in enumerate(self._whole):
            u = self._points[:, j]
            low, width, endless = (each[:, None] for each in cell(rows[:, i], self.scales[i]))
            # Below the cell of 0 the points thin out exponentially: more slowly than any density that a flow is likely to have there.
            points[..., i] = torch.where(endless, low + width * (1 + u.log()), low + width * u)
            log_volume = log_volume + torch.where(endless, width.log() - u.log(), width.log())
        values = log_density(points.flatten(0, 1), given.repeat_interleave(q, dim=0)).view(len(rows), q)
        return torch.logsumexp(values + log_volume, dim=1)

    @torch.no_grad()
    def fine_enough(self, log_density: Callable[[Tensor, Tensor], Tensor], rows: Tensor, given: Tensor) -> tuple[Cells, float]:
        """The coarsest rule that is accurate for a density at the simulations it was fitted to, and the error of that rule.

        The error is relative, and that which 1 % of up to 1000 simulations exceed: a mean would pass a rule that fails only in the few
        simulations whose cells are wide, as counts near zero are.
        """
        if not self._whole:
            return self, 0.0
        some = torch.linspace(0, len(rows) - 1, min(len(rows), _EXAMINED)).long()
        rows, given = rows[some], given[some]
        reference = Cells(self.scales, _REFERENCE).log_mass(log_density, rows, given)
        for level in range(_REFERENCE):
            rule = Cells(self.scales, level)
            error = float((rule.log_mass(log_density, rows, given) - reference).expm1().abs().quantile(_TAIL))
            if error < _FINE_ENOUGH:
                break
        return rule, error


def reasons_against(error: float) -> tuple[str, ...]:
    """What to say of probabilities of whole numbers with this error, as :meth:`Cells.fine_enough` measures it; NaN is one to report."""
    if error < _TOO_COARSE:
        return ()
    return (
        f"x: probabilities of whole numbers are wrong by {error:.0%} or more in 1 % of the simulations, as the density learned varies "
        "too much within a cell: use NPE or NRE, more simulations, or a smoother flow (fewer bins)",
    )


def cell(k: Tensor, scale: str) -> tuple[Tensor, Tensor, Tensor]:
    """Lower end and width of the cells of numbers ``(n,)`` on their scale, and whether they have no lower end in truth; width 0 is none."""
    if scale == UNIT:
        return k, torch.ones_like(k), torch.zeros_like(k, dtype=torch.bool)
    g = torch.sqrt if scale == SQUARE_ROOT else torch.log1p
    low = g(k.clamp(min=0))
    return low, torch.where(k < 0, 0.0, g(k.clamp(min=0) + 1) - low), k == 0


def _rule(columns: int, level: int) -> tuple[Tensor, Tensor]:
    """Points ``(q, columns)`` in the unit cube and the logs of their weights ``(q,)``, which sum to one."""
    if columns > 2 and level:
        n = _MORE[level]
        return torch.quasirandom.SobolEngine(columns, scramble=True, seed=level).draw(n, dtype=torch.float64), _logs(np.full(n, 1 / n))
    nodes, weights = np.polynomial.legendre.leggauss((_TWO if columns == 2 else _ONE)[level])
    points = np.array(list(itertools.product((nodes + 1) / 2, repeat=columns)))
    return torch.from_numpy(points), _logs(np.array([np.prod(own) for own in itertools.product(weights / 2, repeat=columns)]))


def _logs(weights: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log(weights))
