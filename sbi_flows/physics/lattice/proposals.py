"""Proposals that cross topological barriers, and kernels in turn: flow proposals beside local updates."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from sbi_flows.bijections.spline import wrap
from sbi_flows.flows import Flow
from sbi_flows.physics.lattice.action import Action
from sbi_flows.physics.lattice.hmc import FieldInfo, FieldState, accept
from sbi_flows.physics.lattice.run import FieldKernel
from sbi_flows.physics.lattice.u1 import U1, instanton


class FlowProposal:
    """Independent Metropolis: fresh fields from a flow, accepted by the ratio of importance weights.

    Parameters
    ----------
    flow : Flow
        Of the theory's flattened fields; a float64 copy of it is used.

    Examples
    --------
    >>> from sbi_flows.physics.lattice import U1, gauge_flow, run_fields
    >>> theory, flow = U1(4, beta=0.5), gauge_flow(4, block=4)
    >>> kernel = FlowProposal(flow)
    >>> run_fields(kernel, theory, kernel.draw(theory, 10, torch.Generator().manual_seed(0)), n_steps=5, random_state=0).work
    {'flow': 5, 'action': 5}

    References
    ----------
    Albergo, Kanwar & Shanahan 2019, arXiv:1904.12072; Kanwar et al. 2020, arXiv:2003.06413.
    """

    work = start_work = MappingProxyType({"flow": 1, "action": 1})

    def __init__(self, flow: Flow):
        self.flow = copy.deepcopy(flow).double().requires_grad_(False).eval()

    def draw(self, theory: Action, n: int, generator: torch.Generator) -> Tensor:
        """``n`` fields of the flow."""
        return self._propose(theory, n, generator)[0]

    @torch.no_grad()
    def init(self, field: Tensor, theory: Action) -> FieldState:
        """The state at fields ``(n, *shape)``, which may come from anywhere."""
        return FieldState(field, theory.action(field), self.flow.log_prob(field.flatten(1)))

    @torch.no_grad()
    def step(self, state: FieldState, theory: Action, generator: torch.Generator) -> tuple[FieldState, FieldInfo]:
        """One proposal to every chain."""
        field, log_q = self._propose(theory, len(state.field), generator)
        action = theory.action(field)
        log_ratio = state.action - action + state.kept - log_q
        state, info = accept(state, FieldState(field, action, log_q), log_ratio, generator)
        return state, info

    def _propose(self, theory: Action, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows, log_q = self.flow.sample_and_log_prob(n, generator=generator)
        return rows.reshape(n, *theory.shape), log_q


class WindingProposal:
    """The smoothest field of charge +1 or -1, added to all links of a U(1) theory: known physics, no flow.

    It changes the charge by one and leaves local fluctuations as they are, so that other updates must go with it (:class:`InTurn`). In
    two dimensions and weak coupling nothing is better; it is here as the baseline that a flow must be compared with, and knows of no
    other theory.

    References
    ----------
    Fucito & Solomon 1984, "Does standard Monte Carlo give justice to instantons?", Phys. Lett. B 134, 230.
    """

    work = start_work = MappingProxyType({"action": 1})

    def init(self, field: Tensor, theory: Action) -> FieldState:
        """The state at links ``(n, 2, L, L)``."""
        if not isinstance(theory, U1):
            raise TypeError(f"Expected a U1 theory, whose instantons are known; got {theory}.")
        return FieldState(field, theory.action(field), field.new_empty(len(field), 0))

    @torch.no_grad()
    def step(self, state: FieldState, theory: Action, generator: torch.Generator) -> tuple[FieldState, FieldInfo]:
        """One instanton or anti-instanton offered to every chain."""
        n, size = len(state.field), state.field.shape[-1]
        sign = 2.0 * torch.randint(2, (n, 1, 1, 1), generator=generator).to(state.field) - 1
        field = wrap(state.field + sign * instanton(size).to(state.field))
        action = theory.action(field)
        return accept(state, FieldState(field, action, state.kept), state.action - action, generator)


class InTurn:
    """Several kernels one after another make one step, which leaves invariant what each of them does.

    Parameters
    ----------
    kernels : sequence of FieldKernel
        The report of a step (acceptance, energy error) is that of the first.

    Examples
    --------
    >>> from sbi_flows.physics.lattice import U1, FieldHMC, run_fields
    >>> theory = U1(4, beta=4.0)
    >>> kernel = InTurn([WindingProposal(), FieldHMC(0.2, 5)])
    >>> run_fields(kernel, theory, theory.cold_start(10), n_steps=10, random_state=0).work
    {'action': 40, 'force': 60}
    """

    def __init__(self, kernels: Sequence[FieldKernel]):
        if not kernels:
            raise ValueError("Expected at least one kernel to take in turn; got none.")
        self.kernels = list(kernels)

    @property
    def work(self) -> Mapping[str, int]:
        """Evaluations a step costs each chain: each kernel starts anew, as what the one before it kept means nothing to it."""
        return dict(sum((Counter(kernel.work) + Counter(kernel.start_work) for kernel in self.kernels), Counter()))

    @property
    def start_work(self) -> Mapping[str, int]:
        return self.kernels[0].start_work

    def init(self, field: Tensor, theory: Action) -> FieldState:
        """The state at fields ``(n, *shape)``."""
        return self.kernels[0].init(field, theory)

    def step(self, state: FieldState, theory: Action, generator: torch.Generator) -> tuple[FieldState, FieldInfo]:
        """One step of each kernel."""
        infos = []
        for kernel in self.kernels:
            state, info = kernel.step(kernel.init(state.field, theory), theory, generator)
            infos.append(info)
        return state, infos[0]
