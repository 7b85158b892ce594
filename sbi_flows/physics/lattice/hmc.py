"""Hybrid Monte Carlo of fields: leapfrog trajectories, accepted by their energy error.

The same kernel serves a theory and the theory seen through a flow (:class:`sbi_flows.physics.lattice.flow_action.FlowAction`), where it is
field-transformation HMC.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows._validation import positive
from sbi_flows.bijections.spline import wrap
from sbi_flows.physics.lattice.action import Action
from sbi_flows.samplers import metropolis


class FieldState(NamedTuple):
    """Fields, their actions, and what a kernel keeps of them so as not to compute it again.

    Attributes
    ----------
    field : Tensor (n, *shape)
    action : Tensor (n,)
    kept : Tensor
        The force ``(n, *shape)`` of HMC, the proposal's log density ``(n,)`` of a flow; empty where nothing is kept.
    """

    field: Tensor
    action: Tensor
    kept: Tensor


class FieldInfo(NamedTuple):
    """What happened in one step, one entry a chain.

    Attributes
    ----------
    acceptance : Tensor (n,)
        Probability of acceptance.
    accepted, invalid : Tensor (n,) of bool
        ``invalid``: the action of the proposal was NaN or infinite.
    energy_error : Tensor (n,)
        Minus the log of the Metropolis ratio; ``dH`` of a trajectory. In equilibrium ``exp(-energy_error)`` has mean one.
    """

    acceptance: Tensor
    accepted: Tensor
    invalid: Tensor
    energy_error: Tensor


class Trajectory(NamedTuple):
    """The end of a trajectory: field, momentum and force ``(n, *shape)``, action ``(n,)``."""

    field: Tensor
    momentum: Tensor
    action: Tensor
    force: Tensor


def leapfrog(theory: Action, field: Tensor, momentum: Tensor, force: Tensor, step_size: float, n_steps: int) -> Trajectory:
    """``n_steps`` of the leapfrog from ``field`` with its ``force``, at the price of as many forces.

    Time-reversible and volume-preserving: with the momentum turned round it leads back. Unlike the leapfrog of ``samplers``, it computes
    the action at the end only, and leaves angles unwrapped.

    References
    ----------
    Duane, Kennedy, Pendleton & Roweth 1987, "Hybrid Monte Carlo", Phys. Lett. B 195, 216.
    """
    momentum = momentum + 0.5 * step_size * force
    for _ in range(n_steps - 1):
        field = field + step_size * momentum
        momentum = momentum + step_size * theory.force(field)
    field = field + step_size * momentum
    action, force = theory.action_and_force(field)
    return Trajectory(field, momentum + 0.5 * step_size * force, action, force)


class FieldHMC:
    """Hybrid Monte Carlo with unit masses.

    Parameters
    ----------
    step_size : float
    n_leapfrog : int
        Steps of a trajectory, each one force.
    jitter : float
        Share, below one, by which the step of each trajectory is drawn longer or shorter: with trajectories of one length a mode whose
        period fits it would never change (a free field has such modes).

    Examples
    --------
    >>> from sbi_flows.physics.lattice.u1 import U1
    >>> theory, generator = U1(4, beta=1.0), torch.Generator().manual_seed(0)
    >>> kernel = FieldHMC(step_size=0.1, n_leapfrog=10)
    >>> state, info = kernel.step(kernel.init(theory.hot_start(50, generator), theory), theory, generator)
    >>> bool(info.acceptance.mean() > 0.9)
    True

    References
    ----------
    Duane, Kennedy, Pendleton & Roweth 1987, "Hybrid Monte Carlo", Phys. Lett. B 195, 216; Mackenzie 1989, "An improved hybrid Monte Carlo
    method", Phys. Lett. B 226, 369 (the jitter).
    """

    def __init__(self, step_size: float, n_leapfrog: int, *, jitter: float = 0.2):
        if not 0 <= jitter < 1:
            raise ValueError(f"Expected jitter in [0, 1), a share of the step size; got {jitter!r}.")
        self.jitter = float(jitter)
        self.step_size = float(positive("step_size", step_size))
        self.n_leapfrog = int(positive("n_leapfrog", n_leapfrog, integer=True))

    @property
    def work(self) -> dict[str, int]:
        """Evaluations a step costs each chain."""
        return {"force": self.n_leapfrog, "action": 1}

    start_work = MappingProxyType({"force": 1, "action": 1})

    def init(self, field: Tensor, theory: Action) -> FieldState:
        """The state at fields ``(n, *shape)``."""
        return FieldState(field, *theory.action_and_force(field))

    @torch.no_grad()
    def step(self, state: FieldState, theory: Action, generator: torch.Generator) -> tuple[FieldState, FieldInfo]:
        """One trajectory of every chain."""
        momentum = randn(state.field.shape, generator, dtype=state.field.dtype, device=state.field.device)
        spread = 2 * float(rand((), generator, dtype=torch.float64)) - 1
        end = leapfrog(theory, state.field, momentum, state.kept, self.step_size * (1 + self.jitter * spread), self.n_leapfrog)
        energy_error = end.action - state.action + _kinetic(end.momentum) - _kinetic(momentum)
        field = wrap(end.field) if theory.circular else end.field
        return accept(state, FieldState(field, end.action, end.force), -energy_error, generator)


def accept(old: FieldState, new: FieldState, log_ratio: Tensor, generator: torch.Generator) -> tuple[FieldState, FieldInfo]:
    """Metropolis: the new state in the chains that accept it."""
    info = metropolis(log_ratio, generator)
    return choose_rows(info.accepted, new, old), FieldInfo(info.acceptance, info.accepted, info.invalid, -log_ratio)


def choose_rows(which: Tensor, new: FieldState, old: FieldState) -> FieldState:
    """``new`` in the rows of ``which (n,)``, ``old`` elsewhere."""
    return FieldState(*(torch.where(which.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, old, strict=True)))


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().flatten(1).sum(1)
