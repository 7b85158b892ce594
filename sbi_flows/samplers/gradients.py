"""What kernels that follow gradients share: their state, their warm-up, and the check that the gradient is one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows._validation import positive
from sbi_flows.samplers.adaptation import METRICS, Learned, begin, learn, restart
from sbi_flows.samplers.kernel import MAX_ENERGY_ERROR, Info, metropolis
from sbi_flows.samplers.leapfrog import Dynamics, Phase, holes
from sbi_flows.targets import Target, check_gradient, circular_columns

_CHECKED_POINTS = 10
_CHECKED_COLUMNS = 1000  # beyond them the differences would cost more than many a run
_TRIALS = 50  # doublings or halvings of the first step size: fifteen orders of magnitude
_TRIAL_SEED = 0  # any: the momenta it draws set a scale to begin with, not a result


class GradientState(NamedTuple):
    """Positions, the gradient there, and what warm-up has learned; all chains share one step size and one metric.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob : Tensor (n,)
    gradient : Tensor (n, d)
    learned : Learned
    """

    position: Tensor
    log_prob: Tensor
    gradient: Tensor
    learned: Learned


class GradientKernel(ABC):
    """A kernel of trajectories; subclasses say how far to go, in ``step``."""

    def __init__(self, step_size: float | str, target_acceptance: float, metric: str, check: bool):
        if step_size != "auto":
            positive("step_size", step_size)
        if not (isinstance(target_acceptance, float) and 0 < target_acceptance < 1):
            raise ValueError(f"Expected target_acceptance in (0, 1); got {target_acceptance!r}.")
        if metric not in METRICS:
            raise ValueError(f"Expected metric to be one of {', '.join(METRICS)}; got {metric!r}.")
        self.step_size, self.target_acceptance, self.metric, self.check = step_size, target_acceptance, metric, check

    def init(self, x: Tensor, target: Target) -> GradientState:
        """The state at ``x (n, d)``, with a metric from the spread of x and a step size from a few trial steps.

        Raises
        ------
        ValueError
            If the target has no gradient, or one that is not the derivative of its density; the message names the parameters.
        """
        log_prob, gradient = target.log_prob_and_grad(x)
        first = 1.0 if isinstance(self.step_size, str) else float(self.step_size)
        state = GradientState(x, log_prob, gradient, begin(x, first, self.metric, circular_columns(target)))
        if self.step_size == "auto":
            state = state._replace(learned=restart(state.learned, _trial_step(state, target, self.target_acceptance)))
        if self.check and target.features <= _CHECKED_COLUMNS:
            _check_gradient(state, target)
        return state

    @abstractmethod
    def step(self, state: GradientState, target: Target, generator: torch.Generator) -> tuple[GradientState, Info]:
        """One trajectory of every chain, from fresh momenta."""

    def adapt(self, state: GradientState, info: Info, target: Target, done: float) -> GradientState:
        learned = learn(
            state.learned, state.position, info.acceptance, self.target_acceptance, self.metric, circular_columns(target), done
        )
        return state._replace(learned=learned)

    def relocate(self, state: GradientState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[GradientState, Tensor]:
        moved = (x != state.position).any(-1) | (log_prob != state.log_prob)
        gradient = state.gradient
        if bool(moved.any()):
            gradient = gradient.clone()
            gradient[moved] = target.log_prob_and_grad(x[moved])[1]
        return state._replace(position=x, log_prob=log_prob, gradient=gradient), moved.long()


def start_phase(state: GradientState, generator: torch.Generator) -> Phase:
    """The chains with fresh momenta."""
    momentum = randn(state.position.shape, generator, dtype=state.position.dtype, device=state.position.device)
    return Phase(state.position, momentum, state.log_prob, state.gradient)


def straight_step(
    state: GradientState, target: Target, generator: torch.Generator, n_steps: int
) -> tuple[GradientState, Info]:
    """One trajectory of ``n_steps`` leapfrogs, its end accepted or rejected by the energy error."""
    start = start_phase(state, generator)
    end = Dynamics(target, state.learned.factor).advance(start, state.learned.step_size, n_steps)
    error = end.energy - start.energy
    invalid = holes(end)
    info = metropolis(torch.where(torch.isnan(error) | invalid, -torch.inf, -error), generator)
    cost = torch.full_like(info.n_evaluations, n_steps)
    info = info._replace(
        invalid=invalid,
        n_evaluations=cost,
        n_gradients=cost,
        energy_error=error,
        divergent=~(error < MAX_ENERGY_ERROR) & ~invalid,
        saturated=torch.zeros_like(invalid),
    )
    accepted = info.accepted[:, None]
    return state._replace(
        position=torch.where(accepted, end.position, state.position),
        log_prob=torch.where(info.accepted, end.log_prob, state.log_prob),
        gradient=torch.where(accepted, end.gradient, state.gradient),
    ), info


def _trial_step(state: GradientState, target: Target, wanted: float) -> float:
    """The step size, to a factor of two, at which single leapfrogs begin to miss the wanted mean acceptance."""
    start = start_phase(state, torch.Generator().manual_seed(_TRIAL_SEED))
    dynamics = Dynamics(target, state.learned.factor)

    def acceptance(step: float) -> float:
        end = dynamics.advance(start, torch.tensor(step, dtype=torch.float64))
        error = torch.where(holes(end), torch.inf, end.energy - start.energy)
        return float(torch.nan_to_num(-error, nan=-torch.inf).clamp(max=0).exp().mean())

    step = 1.0
    grows = acceptance(step) > wanted
    for _ in range(_TRIALS):
        following = 2 * step if grows else step / 2
        passed = acceptance(following) > wanted
        if passed != grows:
            return step if grows else following
        step = following
    return step


def _check_gradient(state: GradientState, target: Target) -> None:
    """Points on the chains' first paths: at a start itself, a maximum perhaps, there may be no slope to compare.

    Rounding can make two points look wrong where a density is computed in float32; then ten decide.
    """
    rows = torch.arange(_CHECKED_POINTS) % len(state.position)
    generator = torch.Generator().manual_seed(_TRIAL_SEED)
    momentum = randn((_CHECKED_POINTS, target.features), generator, dtype=torch.float64, device=state.position.device)
    there = Phase(state.position[rows], momentum, state.log_prob[rows], state.gradient[rows])
    points = Dynamics(target, state.learned.factor).advance(there, state.learned.step_size).position
    try:
        check_gradient(target, points[:2])
    except ValueError:
        check_gradient(target, torch.cat([points, state.position[:1]]))
