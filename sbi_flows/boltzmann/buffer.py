"""Bootstrapped annealed importance sampling: a flow proposes, annealing carries its draws to where it is too thin, a buffer keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.losses import Batch
from sbi_flows.samplers import HMC, GradientState
from sbi_flows.samplers.adaptation import restart
from sbi_flows.targets import Target

LEVELS = 4  # between the flow and p^2 / q
LEAPFROGS = 4
HEIGHTS = 1
WANTED = 0.7  # mean acceptance
_GAIN = 0.3  # of the logarithm of the step, for an acceptance off by one


class FlowBridge(Target):
    """``(1 - 2 b) ln q + 2 b ln p`` with a power b that may be changed: from the flow q at 0 to ``p^2 / q`` at 1."""

    def __init__(self, target: Target, flow: Flow):
        super().__init__(target.features, target.names, target.support)
        self.target, self.flow, self.power = target, flow, 1.0

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln p and ln q, ``(n,)`` each, float64."""
        return self.target.log_prob(x), self.flow.log_prob(x).double()

    def log_prob(self, x):
        log_p, log_q = self.parts(self._checked(x))
        return torch.where(log_p == -math.inf, -math.inf, (1 - 2 * self.power) * log_q + 2 * self.power * log_p)


class AnnealedDraws:
    """Draws of a flow carried to ``p^2 / q`` by annealed importance sampling.

    Parameters
    ----------
    target : Target
        On real columns.
    flow : Flow
        Whatever its weights are when :meth:`draw` is called.
    levels : int

    References
    ----------
    Neal 2001, "Annealed importance sampling", Statistics and Computing 11.
    """

    def __init__(self, target: Target, flow: Flow, levels: int = LEVELS):
        self.bridge, self.levels = FlowBridge(target, flow), levels
        self.kernel = HMC(n_steps=LEAPFROGS, check=False, metric="diagonal")
        self._learned: Any = None

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points ``(n, d)``, their log-weights for ``p^2 / q``, ln p and ln q, ``(n,)`` each."""
        bridge, kernel = self.bridge, self.kernel
        x = bridge.flow.sample(n, generator=generator, dtype=torch.float64)
        log_p, log_q = bridge.parts(x)
        log_weights = torch.zeros_like(log_p)
        state = None
        for level in range(self.levels):
            log_weights = log_weights + 2 / self.levels * (log_p - log_q)
            bridge.power = (level + 1) / self.levels
            state = self._state(x)
            state, info = kernel.step(state, bridge, generator)
            change = _GAIN * (float(info.acceptance.mean()) - WANTED)
            self._learned = restart(state.learned, state.learned.step_size * math.exp(change))
            x = state.position
            log_p, log_q = bridge.parts(x)
        return x, log_weights.nan_to_num(-math.inf, -math.inf, -math.inf), log_p, log_q

    def _state(self, x: Tensor) -> GradientState:
        if self._learned is None:
            state = self.kernel.init(x, self.bridge)
            self._learned = state.learned
            return state
        return GradientState(x, *self.bridge.log_prob_and_grad(x), self._learned)


class ReplayBuffer:
    """A batch source of annealed draws that are used again, in proportion to their weights, while the flow learns from them.

    Every epoch new draws come in, the oldest go, and all are weighed by the flow of the moment.

    Parameters
    ----------
    draws : AnnealedDraws
    rows : int
        Of an epoch.
    fresh : int
        New draws an epoch.
    size : int
        Most draws kept.

    References
    ----------
    Midgley et al. 2023, arXiv:2208.01893; Schaul, Quan, Antonoglou & Silver 2016, "Prioritized experience replay", arXiv:1511.05952.
    """

    def __init__(self, draws: AnnealedDraws, rows: int, fresh: int, size: int):
        self.draws, self.n_rows, self.fresh, self.size = draws, rows, fresh, size
        self.x = torch.empty(0, draws.bridge.features, dtype=torch.float64)
        self.log_weights = self.log_q = self.log_p = torch.empty(0, dtype=torch.float64)

    def to(self, device: torch.device, dtype: torch.dtype) -> ReplayBuffer:
        """The buffer itself: its rows are float64 and stay where the target is."""
        return self

    def epoch(self, members: int, n_steps: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches drawn in proportion to the weights."""
        self._refill(generator)
        size = self.n_rows // n_steps
        chance = torch.softmax(self.log_weights, 0)
        rows = torch.multinomial(chance, size * n_steps, replacement=True, generator=generator)
        for chosen in rows.split(size):
            yield Batch(self.x[chosen], torch.stack([self.log_q[chosen], self.log_p[chosen]], 1)[:, : 1 + HEIGHTS])

    def validation(self, members: int) -> Iterator[Batch]:
        """Nothing is held out."""
        return iter(())

    def description(self) -> dict[str, Any]:
        return {"kind": "replay", "rows": self.n_rows, "fresh": self.fresh, "size": self.size}

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing: a resumed fit fills its buffer again."""

    @torch.no_grad()
    def _refill(self, generator: torch.Generator) -> None:
        if len(self.x):
            log_q = self.draws.bridge.flow.log_prob(self.x).double()
            self.log_weights = self.log_weights + self.log_q - log_q
            self.log_q = log_q
        self._append(*self.draws.draw(self.fresh, generator))

    def _append(self, x: Tensor, log_weights: Tensor, log_p: Tensor, log_q: Tensor) -> None:
        good = torch.isfinite(log_weights) & torch.isfinite(log_q)
        pairs = ((self.x, x), (self.log_weights, log_weights), (self.log_p, log_p), (self.log_q, log_q))
        self.x, self.log_weights, self.log_p, self.log_q = (torch.cat([old, new[good]])[-self.size :] for old, new in pairs)
