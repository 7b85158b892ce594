"""Several kernels as one: local moves and jumps in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import rand
from sbi_flows.samplers.kernel import Info, Kernel, as_kernel
from sbi_flows.targets import Target


class MixedState(NamedTuple):
    """Positions, and the state of every kernel, brought there when its turn comes.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob : Tensor (n,)
    parts : tuple
        One state a kernel.
    acceptance : Tensor (k, n)
        Of each kernel when its turn last came; NaN before the first.
    ran : Tensor (k,) of bool
        Whose turn the last step was.
    """

    position: Tensor
    log_prob: Tensor
    parts: tuple[Any, ...]
    acceptance: Tensor
    ran: Tensor


class Mixed:
    """Kernels in turn, or one of them drawn by weight at each step: a local one beside flow proposals, say.

    Each leaves the target as it is, so any mixture does. All chains take the same kernel at a step, whose cost is then that kernel's.

    Parameters
    ----------
    kernels : sequence of Kernel
    weights : sequence of float, optional
        Chances of the kernels, up to a factor, at each step; the mixture keeps detailed balance if they do. Without weights every step
        applies all kernels once, in the order given.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.samplers import IndependentMetropolis, RandomWalk, run_chains
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: x[:, 0], 1, support=(0, 1))
    >>> kernel = Mixed([RandomWalk(), IndependentMetropolis(BoxUniform(0.0, 1.0))], weights=[0.8, 0.2])
    >>> run_chains(kernel, target, torch.full((4, 1), 0.5), n_steps=10, n_warmup=0, random_state=0).samples.shape
    (4, 10, 1)

    References
    ----------
    Tierney 1994, "Markov chains for exploring posterior distributions", Annals of Statistics 22; Gabrié, Rotskoff & Vanden-Eijnden 2022,
    "Adaptive Monte Carlo augmented with normalizing flows", PNAS 119 (local moves beside a flow).
    """

    def __init__(self, kernels: Sequence[Kernel], weights: Sequence[float] | None = None):
        if not len(kernels):
            raise ValueError("Expected at least one kernel to mix; got none.")
        if weights is not None:
            chances = np.asarray(weights, dtype=float)
            if chances.shape != (len(kernels),) or not np.isfinite(chances).all() or (chances < 0).any() or not chances.sum() > 0:
                raise ValueError(f"Expected {len(kernels)} weights of at least 0, one a kernel, not all 0; got {weights!r}.")
        self.kernels = tuple(map(as_kernel, kernels))
        self.names = _names(self.kernels)
        self.weights = None if weights is None else tuple(float(w) for w in weights)

    @property
    def ensemble(self) -> bool:
        return any(getattr(kernel, "ensemble", False) for kernel in self.kernels)

    def init(self, x: Tensor, target: Target) -> MixedState:
        parts = tuple(kernel.init(x, target) for kernel in self.kernels)
        k = len(parts)
        unknown = torch.full((k, len(x)), torch.nan, dtype=torch.float64, device=x.device)
        return MixedState(x, parts[0].log_prob, parts, unknown, torch.zeros(k, dtype=torch.bool))

    def step(self, state: MixedState, target: Target, generator: torch.Generator) -> tuple[MixedState, Info]:
        turns = range(len(self.kernels)) if self.weights is None else [_drawn(self.weights, generator)]
        state = state._replace(ran=torch.zeros_like(state.ran))
        infos = {}
        for index in turns:
            state, infos[self.names[index]] = self._turn(index, state, target, generator)
        return state, _joined(infos)

    def adapt(self, state: MixedState, info: Info, target: Target, done: float) -> MixedState:
        parts = list(state.parts)
        for index, kernel in enumerate(self.kernels):
            # At the end all of them settle, if they have ever run.
            learns = bool(state.ran[index]) or (done >= 1 and not bool(state.acceptance[index].isnan().any()))
            if learns:
                parts[index] = kernel.adapt(parts[index], info._replace(acceptance=state.acceptance[index]), target, done)
        return state._replace(parts=tuple(parts))

    def relocate(self, state: MixedState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[MixedState, Tensor]:
        moved = [kernel.relocate(part, x, log_prob, target) for kernel, part in zip(self.kernels, state.parts, strict=True)]
        parts, gradients = zip(*moved, strict=True)
        return state._replace(position=x, log_prob=log_prob, parts=parts), torch.stack(gradients).sum(0)

    def _turn(self, index: int, state: MixedState, target: Target, generator: torch.Generator) -> tuple[MixedState, Info]:
        kernel = self.kernels[index]
        own, gradients = kernel.relocate(state.parts[index], state.position, state.log_prob, target)
        own, info = kernel.step(own, target, generator)
        parts = (*state.parts[:index], own, *state.parts[index + 1 :])
        acceptance, ran = state.acceptance.clone(), state.ran.clone()
        acceptance[index], ran[index] = info.acceptance, True
        # What it costs to come to where another kernel has left the chains is part of the step.
        info = info._replace(n_evaluations=info.n_evaluations + gradients, n_gradients=info.n_gradients + gradients)
        return MixedState(own.position, own.log_prob, parts, acceptance, ran), info


def _drawn(weights: Sequence[float], generator: torch.Generator) -> int:
    ends = np.cumsum(np.asarray(weights))
    point = float(rand((), generator, dtype=torch.float64)) * ends[-1]
    return int(np.searchsorted(ends, point, side="right"))


def _names(kernels: Sequence[Kernel]) -> list[str]:
    """Those of their classes, numbered where they repeat."""
    names = [type(kernel).__name__ for kernel in kernels]
    return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)]


def _joined(infos: dict[str, Info]) -> Info:
    """One record of the turns of a step: means of chances, sums of counts, whatever happened in any of them."""
    turns = list(infos.values())
    return Info(
        acceptance=torch.stack([info.acceptance for info in turns]).mean(0),
        accepted=_any([info.accepted for info in turns]),
        invalid=_any([info.invalid for info in turns]),
        n_evaluations=torch.stack([info.n_evaluations for info in turns]).sum(0),
        n_gradients=torch.stack([info.n_gradients for info in turns]).sum(0),
        energy_error=_told([info.energy_error for info in turns], lambda errors: torch.stack(errors).sum(0)),
        divergent=_told([info.divergent for info in turns], _any),
        saturated=_told([info.saturated for info in turns], _any),
        by_kernel={name: info.acceptance for name, info in infos.items()},
    )


def _any(flags: list[Tensor]) -> Tensor:
    return torch.stack(flags).any(0)


def _told(values: list[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    told = [value for value in values if value is not None]
    return join(told) if told else None
