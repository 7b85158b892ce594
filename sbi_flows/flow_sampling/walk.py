"""Chains that are watched while they run: warmed up, looked at, run on, and recorded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_flows.samplers import Kernel
from sbi_flows.targets import Target, circular_columns

_STATS = ("acceptance", "invalid", "energy_error", "divergent", "saturated", "n_evaluations", "n_gradients")


@dataclass(frozen=True)
class Record:
    """Draws with what the kernel said of its steps.

    Attributes
    ----------
    position : Tensor (chain, draw, d)
        On the real line.
    log_prob : Tensor (chain, draw)
        There.
    stats : dict of str to ndarray (chain, draw)
        Means over the steps between draws; of counts, sums.
    n_steps : int
    """

    position: Tensor
    log_prob: Tensor
    stats: dict[str, np.ndarray]
    n_steps: int


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

    Attributes
    ----------
    acceptance : float
        Mean of the last call of :meth:`draw` or :meth:`warm_up`.
    """

    def __init__(self, kernel: Kernel, space: Target, start: Tensor, generator: torch.Generator):
        self.kernel, self.space, self.generator = kernel, space, generator
        self.state = kernel.init(space.from_user(start), space)
        self.acceptance = float("nan")

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
        accepted = []
        for step in range(n_steps):
            state, info = self.kernel.step(self.state, self.space, self.generator)
            self.state = self.kernel.adapt(state, info, self.space, (step + 1) / n_steps)
            accepted.append(float(info.acceptance.mean()))
        self.acceptance = float(np.mean(accepted))

    @torch.no_grad()
    def draw(self, n_steps: int, thin: int = 1) -> Record:
        """Steps in which nothing is learned."""
        positions, densities, kept, since = [], [], defaultdict(list), defaultdict(list)
        for step in range(n_steps // thin * thin):
            self.state, info = self.kernel.step(self.state, self.space, self.generator)
            for name in _STATS:
                value = getattr(info, name, None)
                if value is not None:
                    since[name].append(value.double())
            if (step + 1) % thin:
                continue
            positions.append(self.state.position)
            densities.append(self.state.log_prob)
            for name, values in since.items():
                total = torch.stack(values).sum(0)
                kept[name].append(total if name.startswith("n_") else total / thin)
            since.clear()
        stats = {name: torch.stack(values, dim=1).numpy() for name, values in kept.items()}
        self.acceptance = float(stats["acceptance"].mean())
        return Record(torch.stack(positions, dim=1), torch.stack(densities, dim=1), stats, n_steps)

    def to_user(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """``(chain, draw, d)`` in the user's parameters, and ``ln |det|`` ``(chain, draw)`` of that map."""
        user, log_det = self.space.to_user(samples.flatten(0, 1))
        return user.view_as(samples), log_det.view(samples.shape[:2])
