"""A bijection by integration: data flow along a velocity field to noise, and the log-determinant is the integral of its divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_flows.bijections.base import Bijection
from sbi_flows.bijections.paths import PATHS
from sbi_flows.bijections.spline import wrap
from sbi_flows.bijections.training_solve import TrainingSolution, solve_for_training
from sbi_flows.bijections.velocity import VelocityField
from sbi_flows.nn import transforms_active
from sbi_flows.ode import ORDER8, RowSolution, State, integrate, solve_rows, stage_times

# Grids tried when steps are chosen: times 1 - (1 - s)^power of even s. Narrow densities need short steps near the data.
_POWERS = (1.0, 1.5, 2.0, 3.0)
_STEPS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_STEPS_OF_POWER = 8  # the power is chosen first, at so many steps
_ROWS = 256


class Continuous(Bijection):
    """The flow of ``dx/dt = velocity(t, x, context)`` from data at t = 1 to noise at t = 0; columns that are angles stay on their circle.

    Value and log-determinant come from one solve on a fixed grid of times. Where neither a gradient transform is running nor
    ``tolerance`` is None, rows whose error is above ``tolerance`` are solved again with twice the steps until it is not.

    Parameters
    ----------
    net : VelocityNet or ParticleNet
    circular : sequence of int
        The columns that are angles.
    path : {"straight", "variance-preserving"}
        What the net is scaled for, and trained along.
    steps : int
        Steps of the grid, each of 11 evaluations at order 8; :meth:`choose_steps` sets another number from measured errors.
    tolerance : float or None
        Error aimed at in the log-density, in nats.

    Attributes
    ----------
    steps : int
    power : float
        Times of the grid are ``1 - (1 - s)^power`` for even s.

    References
    ----------
    Chen, Rubanova, Bettencourt & Duvenaud 2018, "Neural ordinary differential equations", arXiv:1806.07366.
    """

    def __init__(
        self,
        net: VelocityField,
        circular: Sequence[int] = (),
        *,
        path: str = "straight",
        steps: int = 8,
        tolerance: float | None = 1e-3,
    ):
        super().__init__()
        if path not in PATHS:
            raise ValueError(f"Expected path {' or '.join(map(repr, PATHS))}; got {path!r}.")
        if steps < 1:
            raise ValueError(f"Expected at least one integration step; got steps={steps}.")
        self.net, self.rows_at_once = net, net.rows_at_once
        self.path = PATHS[path]
        self.circular = list(circular)
        self.steps, self.power, self.tolerance = int(steps), 1.5, tolerance

    # --- The field ---------------------------------------------------------------------------------------------------------

    def velocity(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(n, d)`` at times ``t`` (n,) or () and points ``x (n, d)``."""
        t = t.to(x)
        drift, gain, scale = self._preconditioning(t)
        net = self.net(t, scale * x.mT, self.net.conditions(context))
        return (drift * x.mT + gain * net).mT

    def velocity_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same at one time ``t`` () for all rows, with the exact ``sum_j dv_j/dx_j``, ``(n,)``."""
        velocity, divergence = self._slope(t.to(x), x.mT, self.net.conditions(context, divergence=True))
        return velocity.mT, divergence

    def _preconditioning(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drift, gain, scale = self.path.preconditioning(t)
        return self._of_columns(drift, gain, scale) if self.circular else (drift, gain, scale)

    def _of_columns(self, drift, gain, scale):
        """Angles have no scale: for them the net is the velocity."""
        real = self.net.is_real
        return drift * real, 1 + real * (gain - 1), 1 + real * (scale - 1)

    def _slopes(self, t: Tensor, conditions: Any, like: Tensor) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
        """For times ``t (k,)``, a function of their number and of ``x (d, n)``: velocity and divergence."""
        numbers = list(zip(*(part.tolist() for part in self.path.preconditioning(t.double().cpu())), strict=True))
        modulation = self.net.modulations(t.to(like), conditions)
        return lambda k, x: self._slope_at(numbers[k], modulation(k), x, conditions)

    def _slope(self, t: Tensor, x: Tensor, conditions: Any) -> tuple[Tensor, Tensor]:
        """Velocity and divergence of ``x (d, n)`` at one time ``t`` (), differentiable in it."""
        return self._slope_at(self.path.preconditioning(t), self.net.modulations(t.reshape(1), conditions)(0), x, conditions)

    def _slope_at(self, numbers, modulation: Tensor, x: Tensor, conditions: Any) -> tuple[Tensor, Tensor]:
        drift, gain, scale = numbers
        drift_each, gain_each, scale_each = self._of_columns(*numbers) if self.circular else numbers
        net, divergence = self.net.with_divergence(modulation, scale_each * x, conditions, gain * scale)
        return drift_each * x + gain_each * net, divergence + (self.net.features - len(self.circular)) * drift

    # --- The map -----------------------------------------------------------------------------------------------------------

    def forward_and_log_det(self, x, context=None):
        return self.forward_with_error(x, context)[:2]

    def inverse_and_log_det(self, z, context=None):
        return self.inverse_with_error(z, context)[:2]

    def forward_with_error(self, x, context=None):
        return self._map(x, context, to_noise=True)

    def inverse_with_error(self, z, context=None):
        return self._map(z, context, to_noise=False)

    def _map(self, x: Tensor, context: Tensor | None, to_noise: bool) -> tuple[Tensor, Tensor, Tensor]:
        solution = self._solution(x, context, to_noise, self.steps, self.power, self.tolerance)
        end, log_det = solution.state
        if self.circular:
            end = torch.where(self.net.is_real > 0, end, wrap(end))
        return end.mT, log_det, solution.error

    def _solution(self, x, context, to_noise, steps, power, tolerance) -> RowSolution:
        conditions = self.net.conditions(context, divergence=True)
        start = (x.mT, x.new_zeros(x.shape[0]))

        def solve(rows: Tensor | None, n_steps: int) -> State:
            some = conditions.rows(rows)
            state = start if rows is None else tuple(part.index_select(-1, rows) for part in start)
            times = [1 - (1 - i / n_steps) ** power for i in range(n_steps + 1)]
            times = times[::-1] if to_noise else times
            at = {t: k for k, t in enumerate(dict.fromkeys(stage_times(times, ORDER8)))}
            slope = self._slopes(torch.tensor(list(at), dtype=torch.float64), some, x)
            return integrate(lambda t, s: slope(at[t], s[0]), state, times, ORDER8)

        if tolerance is None or transforms_active():
            return RowSolution(solve(None, steps), x.new_zeros(x.shape[0]))
        return solve_rows(solve, self._log_prob_distance if to_noise else self._draw_distance, steps, tolerance)

    def _log_prob_distance(self, a: State, b: State) -> Tensor:
        """Between two solutions, the differences of the log-determinant and of the base's log-density (normal; uniform for angles).

        Their absolute values are added: a difference that vanishes by chance is no sign of precision.
        """
        square = self.net.is_real * (a[0].square() - b[0].square())
        return (a[1] - b[1]).abs() + 0.5 * square.sum(0).abs()

    def _draw_distance(self, a: State, b: State) -> Tensor:
        return (a[1] - b[1]).abs() + (a[0] - b[0]).square().sum(0).sqrt()

    def forward_with_costs(self, x: Tensor, context: Tensor | None = None, steps: int = 8) -> TrainingSolution:
        """Data ``(n, d)`` to noise on the grid of ``steps`` steps, to be differentiated; its ``x`` is ``(n, d)``."""
        if steps < 1:
            raise ValueError(f"Expected at least one integration step; got steps={steps}.")
        conditions = self.net.conditions(context, divergence=True)
        times = 1 - torch.linspace(0, 1, steps + 1, dtype=x.dtype, device=x.device) ** self.power
        solution = solve_for_training(lambda t, y: self._slope(t, y, conditions), x.mT, times)
        return solution._replace(x=self.wrapped(solution.x.mT))

    def wrapped(self, x: Tensor) -> Tensor:
        """Angles among the columns of ``x (n, d)`` back on their circle."""
        return x if not self.circular else torch.where(self.net.is_real[:, 0] > 0, x, wrap(x))

    # --- The grid ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose_steps(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the power of the grid with the least error, and the least number of steps with which 95 % of rows ``x (n, d)`` are within
        ``tolerance``.

        At most 256 rows are looked at, spread evenly over ``x``. Nothing changes where ``tolerance`` is None.
        """
        if self.tolerance is None:
            return
        chosen = torch.linspace(0, len(x) - 1, min(len(x), _ROWS)).round().long().to(x.device)
        x = x[chosen]
        context = context if context is None or len(context) == 1 else context[chosen]

        def error(steps: int, power: float) -> float:
            each = self._solution(x, context, True, steps, power, float("inf")).error
            return float(each.nan_to_num(nan=torch.inf).quantile(0.95))

        self.power = min(_POWERS, key=lambda power: error(_STEPS_OF_POWER, power))
        self.steps = next((steps for steps in _STEPS if error(steps, self.power) <= self.tolerance), _STEPS[-1])

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.steps, self.power], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps, self.power = int(state[0]), float(state[1])
