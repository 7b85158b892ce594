"""Chains that are watched while they run: warmed up, looked at, run on, and recorded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows.samplers import Kernel, MixedState
from sbi_flows.samplers.gradients import GradientState
from sbi_flows.samplers.record import Record
from sbi_flows.targets import Target, circular_columns


@dataclass(frozen=True)
class Drawn:
    """Draws with what the kernel said of its steps.

    Attributes
    ----------
    position : Tensor (chain, draw, d)
        On the real line.
    log_prob : Tensor (chain, draw)
        There.
    stats : dict of str to ndarray (chain, draw)
    n_invalid, n_steps : int
        Proposals without a value, and steps, of each chain.
    seconds_a_step : float
        The median: on a machine that others use as well, a mean is theirs.
    """

    position: Tensor
    log_prob: Tensor
    stats: dict[str, np.ndarray]
    n_invalid: int
    n_steps: int
    seconds_a_step: float

    @property
    def diverged(self) -> bool:
        """Whether any trajectory did."""
        return "divergent" in self.stats and bool(self.stats["divergent"].any())

    def stat(self, name: str, kind: np.dtype) -> np.ndarray:
        """What the kernel said, ``(chain, draw)``; where a kernel of a mixture had no turn, nothing happened and no chance is known."""
        if name in self.stats:
            return self.stats[name]
        nothing = np.nan if name.startswith("acceptance_") else 0
        return np.full(self.log_prob.shape, nothing, dtype=kind)


class Walk:
    """Chains of one kernel between their steps.

    Parameters
    ----------
    kernel : Kernel
    space : Target
        On the real line, as :func:`sbi_flows.targets.unconstrained` makes it.
    start : Tensor (n, d)
        In the user's parameters.
    generator : torch.Generator
    """

    def __init__(self, kernel: Kernel, space: Target, start: Tensor, generator: torch.Generator):
        self.kernel, self.space, self.generator = kernel, space, generator
        self.state = kernel.init(space.from_user(start), space)

    @property
    def circular(self) -> Tensor:
        return circular_columns(self.space)

    @property
    def position(self) -> Tensor:
        """Where the chains are, ``(n, d)`` in the user's parameters."""
        return self.space.to_user(self.state.position)[0]

    @torch.no_grad()
    def warm_up(self, n_steps: int) -> None:
        """Steps from which the kernel learns."""
        for step in range(n_steps):
            state, info = self.kernel.step(self.state, self.space, self.generator)
            self.state = self.kernel.adapt(state, info, self.space, (step + 1) / n_steps)

    @torch.no_grad()
    def draw(self, n_steps: int, thin: int = 1) -> Drawn:
        """Steps in which nothing is learned."""
        n_draws = n_steps // thin
        record = Record(len(self.state.position), n_draws, thin, self.space.features)
        seconds = []
        for step in range(n_draws * thin):
            began = time.perf_counter()
            self.state, info = self.kernel.step(self.state, self.space, self.generator)
            seconds.append(time.perf_counter() - began)
            record.step(info, step // thin)
            if (step + 1) % thin == 0:
                record.draw(step // thin, self.state.position, self.state.log_prob)
        position = torch.from_numpy(record.arrays["samples"]).transpose(0, 1)
        log_prob = torch.from_numpy(record.arrays["log_prob"]).T
        n_invalid = int(record.arrays["invalid"].sum())
        return Drawn(position, log_prob, record.stats(), n_invalid, n_draws * thin, float(np.median(seconds)))

    def halve_steps(self) -> None:
        """Leapfrogs half as long in trajectories of the same length; other kernels stay as they are."""
        self.state = _halved(self.state)

    def to_user(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """``(chain, draw, d)`` in the user's parameters, and ``ln |det|`` ``(chain, draw)`` of that map."""
        user, log_det = self.space.to_user(samples.flatten(0, 1))
        return user.view_as(samples), log_det.view(samples.shape[:2])


def _halved(state: Any) -> Any:
    if isinstance(state, MixedState):
        return state._replace(parts=tuple(_halved(part) for part in state.parts))
    if isinstance(state, GradientState):
        return state._replace(learned=state.learned._replace(step_size=0.5 * state.learned.step_size))
    return state
