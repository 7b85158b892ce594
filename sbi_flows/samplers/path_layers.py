"""Stochastic layers between the blocks of a flow: each knows the ratio of its backward to its forward density."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sbi_flows._random import randn
from sbi_flows.samplers.kernel import Kernel
from sbi_flows.samplers.normal_path import Between

_FIRST_STEP = 0.3  # of the squared width that the slopes tell: most moves of that length would be accepted
_LARGEST_STEP = 0.5


class StochasticLayer(nn.Module, ABC):
    """Random moves that nearly, or exactly, leave a density as it is."""

    @abstractmethod
    def prepare(self, y: Tensor, density: Between) -> None:
        """Set what has to be set from rows ``y (n, d)`` of about the density, before training."""

    @abstractmethod
    def forward_and_log_ratio(self, y: Tensor, density: Between, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Moved rows ``(n, d)``, and ``ln B(y | y') - ln F(y' | y)`` ``(n,)``."""

    @abstractmethod
    def backward_and_log_ratio(self, y: Tensor, density: Between, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows from which a forward move may have come, drawn by B, and the same log-ratio of that forward move."""


class Langevin(StochasticLayer):
    """Steps ``y' = y + h g(y) + sqrt(2 h) noise`` along the slope g, with a trained h for each column and no rejection.

    F and B are the same step, so the ratio is ``(|noise|^2 - |noise back|^2) / 2``, and differentiable.

    Parameters
    ----------
    features : int
    n_steps : int
        0 leaves rows alone.
    attached : bool
        Whether gradients in training pass through the slope.

    References
    ----------
    Wu, Köhler & Noé 2020, arXiv:2002.06707, section 3 (overdamped Langevin layers).
    """

    def __init__(self, features: int, n_steps: int, attached: bool):
        super().__init__()
        self.n_steps, self.attached = n_steps, attached
        self.log_step = nn.Parameter(torch.full((features,), math.log(_LARGEST_STEP), dtype=torch.float64))

    @torch.no_grad()
    def prepare(self, y, density):
        # Under a density the mean squared slope is the inverse squared width, or more.
        steepness = density.score(y, attached=False).square().mean(0)
        self.log_step.copy_((_FIRST_STEP / steepness.clamp(min=1e-300)).clamp(max=_LARGEST_STEP).log())

    def forward_and_log_ratio(self, y, density, generator):
        return self._run(y, density, generator, 1)

    def backward_and_log_ratio(self, y, density, generator):
        return self._run(y, density, generator, -1)

    def _run(self, y: Tensor, density: Between, generator: torch.Generator, way: int) -> tuple[Tensor, Tensor]:
        log_ratio = torch.zeros_like(y[:, 0])
        if not self.n_steps:
            return y, log_ratio
        step = self.log_step.exp()
        attached = self.attached and torch.is_grad_enabled()
        slope = density.score(y, attached)
        for _ in range(self.n_steps):
            noise = randn(y.shape, generator, dtype=y.dtype)
            moved = y + step * slope + (2 * step).sqrt() * noise
            next_slope = density.score(moved, attached)
            back = (y - moved - step * next_slope) / (2 * step).sqrt()
            log_ratio = log_ratio + 0.5 * way * (noise.square() - back.square()).sum(-1)
            y, slope = moved, next_slope
        return y, log_ratio


class KernelSteps(StochasticLayer):
    """Steps of a Markov kernel that leaves the density exactly as it is: the log-ratio is ``ln mu(y) - ln mu(y')``.

    Accepting is a jump, through which no gradient passes: in training each block of the flow learns from its own piece of the path.

    Parameters
    ----------
    kernel : Kernel
        Reversible, and chain by chain: ``HMC``, ``MALA``, ``NUTS``, ``RandomWalk``.
    n_steps : int
    n_adaptation : int
        Steps by which the kernel learns its step size, once.
    """

    def __init__(self, kernel: Kernel, n_steps: int, n_adaptation: int = 30):
        super().__init__()
        if getattr(kernel, "ensemble", False):
            raise ValueError(f"Expected a kernel whose chains do not look at each other; got {type(kernel).__name__}.")
        self.kernel, self.n_steps, self.n_adaptation = kernel, n_steps, n_adaptation
        self._state: Any = None
        self.acceptance = math.nan

    @torch.no_grad()
    def prepare(self, y, density):
        density = Between(density.path, density.power.detach())
        generator = torch.Generator().manual_seed(0)  # any: what it draws sets a step size, not a result
        state = self.kernel.init(y, density)
        for i in range(self.n_adaptation):
            state, info = self.kernel.step(state, density, generator)
            state = self.kernel.adapt(state, info, density, (i + 1) / self.n_adaptation)
            self.acceptance = float(info.acceptance.mean())
        self._state = state

    def forward_and_log_ratio(self, y, density, generator):
        return self._run(y, density, generator, 1)

    def backward_and_log_ratio(self, y, density, generator):
        # A reversible kernel is its own reversal.
        return self._run(y, density, generator, -1)

    def _run(self, y: Tensor, density: Between, generator: torch.Generator, way: int) -> tuple[Tensor, Tensor]:
        if not self.n_steps:
            return y, torch.zeros_like(y[:, 0])
        before = density.log_prob(y)
        with torch.no_grad():
            fixed = Between(density.path, density.power.detach())
            moved = torch.cat([self._walked(rows, fixed, generator) for rows in y.detach().split(len(self._state.position))])
        after = density.log_prob(moved)
        return moved, way * (before - after)

    def _walked(self, y: Tensor, density: Between, generator: torch.Generator) -> Tensor:
        """Rows after the steps, as many at a time as the kernel was prepared for."""
        missing = len(self._state.position) - len(y)
        rows = torch.cat([y, y[:1].expand(missing, -1)])
        state, _ = self.kernel.relocate(self._state, rows, density.log_prob(rows), density)
        for _ in range(self.n_steps):
            state, _ = self.kernel.step(state, density, generator)
        return state.position[: len(y)]
