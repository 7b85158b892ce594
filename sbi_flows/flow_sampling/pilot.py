"""The local kernel before anything is decided: warmed up, and watched until it is clear whether a flow would pay."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows.flow_sampling import starts
from sbi_flows.flow_sampling.choice import FlowCosts, LocalPilot, nearly_done, wants_flow
from sbi_flows.flow_sampling.counting import CountedTarget
from sbi_flows.flow_sampling.fitting import flow_prices
from sbi_flows.flow_sampling.modes import separated_modes
from sbi_flows.flow_sampling.settings import Settings
from sbi_flows.flow_sampling.walk import Drawn, Walk
from sbi_flows.flow_sampling.worth import effective_size
from sbi_flows.samplers import Kernel, RandomWalk
from sbi_flows.targets import circular_columns, unconstrained

_WARMUP = 150
_WARMUP_ANNEALED = 60  # of random walks from starts that annealing has brought there: covariance and spread are right already
_SHORTEST, _LONGEST = 40, 640  # steps of the local kernel that are looked at
_SEEN = 10  # times that the kernel has forgotten where it was, for its speed to be known


class Pilot:
    """Chains of the local kernel, and what they show.

    Parameters
    ----------
    target : CountedTarget
    settings : Settings
    start : Tensor (n_chains, d)
        In the user's parameters.
    kernel : Kernel
    explore : bool
        Let half of the chains look around, where there is no prior to do it.
    generator : torch.Generator

    Attributes
    ----------
    walk : Walk
        The chains where they are now.
    space : Target
        The target on the real line.
    records : list of Drawn
    draws : Tensor (chain, draw, d)
        All of them, on the real line.
    modes : Modes
    local : LocalPilot
    """

    def __init__(
        self, target: CountedTarget, settings: Settings, start: Tensor, kernel: Kernel, *, explore: bool, generator: torch.Generator
    ):
        self._target, self._settings, self._ledger = target, settings, target.ledger
        self._costs: FlowCosts | None = None
        self.kernel = kernel
        space = unconstrained(target, start)
        walk = Walk(kernel, space, start, generator)
        with self._ledger.purpose("warm-up"):
            walk.warm_up(_WARMUP_ANNEALED if isinstance(kernel, RandomWalk) and target.prior is not None else _WARMUP)
        if explore:
            with self._ledger.purpose("exploration"):
                x = walk.state.position
                half = len(x) // 2
                x = torch.cat([x[:half], starts.heated(kernel, space, x[half:], generator)])
                walk = Walk(kernel, space, space.to_user(x)[0], generator)
                walk.warm_up(_WARMUP // 3)
        self.walk, self.space = walk, space
        self.records: list[Drawn] = []
        self._before = self._ledger.evaluations["pilot"], self._ledger.target_seconds["pilot"]
        with self._ledger.purpose("pilot"):
            self._watch()

    @property
    def diverged(self) -> bool:
        """Whether any trajectory did."""
        return any(drawn.diverged for drawn in self.records)

    @property
    def costs(self) -> FlowCosts:
        """Of a flow, from a pass forward and back of an untrained one."""
        if self._costs is None:
            rows = self.walk.to_user(self.draws[:, -1:])[0][:, 0]
            row, step = flow_prices(rows, self._target.support)
            self._costs = FlowCosts.of(step, row, self.modes.n, ascends=self._settings.ascends)
        return self._costs

    def _watch(self) -> None:
        """Look at the local kernel until it is clear whether a flow pays: a short look flatters a kernel that forgets slowly."""
        n_steps = _SHORTEST
        while n_steps > 0:
            drawn = self.walk.draw(n_steps)
            self.records.append(drawn)
            self.draws = torch.cat([record.position for record in self.records], dim=1)
            n_steps = self._look(drawn.seconds_a_step)

    def _look(self, seconds_a_step: float) -> int:
        """Measure the draws so far; the steps by which it should go on."""
        self.modes = separated_modes(self.draws, circular_columns(self.space))
        n_chains, n, _ = self.draws.shape
        ess = effective_size(self.draws)
        rows = self._ledger.evaluations["pilot"] - self._before[0]
        spent = self._ledger.target_seconds["pilot"] - self._before[1]
        self.local = LocalPilot(
            kernel=type(self.kernel).__name__,
            seconds_a_step=seconds_a_step,
            ess_a_step=ess / n,
            rows_a_step=rows / n,
            row_seconds=spent / max(rows, 1),
            n_modes=self.modes.n,
        )
        wanted = self._settings.n_effective
        if self.modes.n > 1 or self._settings.method != "auto":
            return 0
        if not nearly_done(self.local, wanted) and wants_flow(self.local, self.costs, wanted)[0]:
            return 0
        forgets = n_chains * n / ess
        return min(int(min(_SEEN * forgets, _LONGEST)) - n, 3 * n)
