"""What continuous flows on manifolds share whose network gives the numbers of a frame: its two layers, and the solution row by row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows._random import randn
from sbi_flows._validation import positive
from sbi_flows.bijections.base import Bijection
from sbi_flows.bijections.modulated import TimeModulated, normal_parameter, two_layers
from sbi_flows.nn import transforms_active
from sbi_flows.ode import ORDER8, RowSolution, State, integrate, solve_rows

_EMBEDDING = 64  # of time


class Framed(TimeModulated, Bijection):
    """Base of :class:`sbi_flows.bijections.rigid.RigidContinuous` and :class:`sbi_flows.bijections.manifold_flow.ManifoldContinuous`.

    Parameters
    ----------
    steps : int
    tolerance : float or None
        As of those.
    """

    rows_at_once = 256  # tangents along every move

    def __init__(self, steps: int, tolerance: float | None):
        super().__init__()
        positive("steps", steps, integer=True)
        self.steps, self.tolerance = int(steps), tolerance

    @abstractmethod
    def _slope(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivative of ``x (features, n)`` and the divergence ``(n,)``."""

    def _start_network(self, seen: int, moves: int, hidden: Sequence[int], generator: torch.Generator | None) -> None:
        """Weights from what is seen to moves, which are zero at first."""
        first, second = two_layers(hidden)
        self.in_weight = normal_parameter(first, seen, fan_in=seen, generator=generator)
        self.mid_weight = normal_parameter(second, first, fan_in=first, generator=generator)
        self.out_weight = nn.Parameter(torch.zeros(moves, second))
        self._start_modulation((first, second), moves, _EMBEDDING, generator)
        with torch.no_grad():
            self.film_bias.copy_(0.5 * randn(self.film_bias.shape, generator, dtype=self.film_bias.dtype, device="cpu"))
            self.film_bias[-moves:] = 0

    def _solution(self, x: Tensor, start: float, end: float) -> RowSolution:
        """Where rows ``x (n, features)`` come to, ``(features, n)``, and the integral of the divergence."""
        state = (x.mT, x.new_zeros(len(x)))

        def solve(rows: Tensor | None, n_steps: int) -> State:
            some = state if rows is None else tuple(part.index_select(-1, rows) for part in state)
            times = [start + (end - start) * i / n_steps for i in range(n_steps + 1)]
            return integrate(lambda t, s: self._slope(t, s[0]), some, times, ORDER8)

        if self.tolerance is None or transforms_active():
            return RowSolution(solve(None, self.steps), x.new_zeros(len(x)))
        return solve_rows(solve, _distance, self.steps, self.tolerance)


def _distance(a: State, b: State) -> Tensor:
    return (a[1] - b[1]).abs() + 0.5 * (a[0].square() - b[0].square()).sum(0).abs() + (a[0] - b[0]).square().sum(0).sqrt()
