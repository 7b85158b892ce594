"""``run_fields``: many chains of fields side by side, of which the observables are kept and the fields are not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import positive
from sbi_flows.physics.lattice.action import Action
from sbi_flows.physics.lattice.hmc import FieldInfo, FieldState
from sbi_flows.physics.lattice.observables import Estimate, gamma_method
from sbi_flows.results import Reliability

_SIGMAS = 4.5  # <exp(-dH)> off by more is no accident: one run in 150 000
_LEAST_ACCEPTANCE = 0.1


class FieldKernel(Protocol):
    """A Markov transition of many fields at once.

    Attributes
    ----------
    work : dict of str to int
        Evaluations a step costs each chain, by kind: "force", "action", "flow".
    start_work : mapping of str to int
        The same of ``init``.
    """

    @property
    def work(self) -> Mapping[str, int]: ...

    @property
    def start_work(self) -> Mapping[str, int]: ...

    def init(self, field: Tensor, theory: Action) -> FieldState:
        """The state at fields ``(n, *shape)``."""
        ...

    def step(self, state: FieldState, theory: Action, generator: torch.Generator) -> tuple[FieldState, FieldInfo]:
        """One transition of every chain."""
        ...


@dataclass(frozen=True)
class FieldChains:
    """What was measured along chains of fields.

    Attributes
    ----------
    observables : dict of str to ndarray (chain, draw)
    acceptance, energy_error : ndarray (chain, draw)
        Of the last step before each draw.
    field : Tensor (chain, *shape)
        The last fields: where a longer run may go on.
    work : dict of str to int
        Evaluations of each chain in the draws kept (not the warm-up), by kind.
    seconds : float
        Wall time of these draws.
    every : int
        Steps between draws.
    reliability : Reliability
    """

    observables: dict[str, np.ndarray]
    acceptance: np.ndarray
    energy_error: np.ndarray
    field: Tensor = field(repr=False)
    work: dict[str, int]
    seconds: float
    every: int
    reliability: Reliability

    def estimate(self, name: str) -> Estimate:
        """Mean, error and autocorrelation time (in draws) of an observable, by the Gamma method."""
        if name not in self.observables:
            raise ValueError(f"Expected one of the observables {', '.join(self.observables)}; got {name!r}.")
        return gamma_method(self.observables[name])

    @property
    def exp_minus_dh(self) -> tuple[float, float]:
        """Mean of ``exp(-dH)``, one for an exact kernel in equilibrium, and its standard error over chains."""
        return exp_minus(self.energy_error)

    def __repr__(self) -> str:
        chains, draws = self.acceptance.shape
        head = f"FieldChains({chains} chains of {draws} draws, acceptance {self.acceptance.mean():.2f})   {self.reliability}"
        return "\n    ".join([head, *(f"{name}: {gamma_method(values)}" for name, values in self.observables.items())])


@torch.no_grad()
def run_fields(
    kernel: FieldKernel,
    theory: Action,
    start: Tensor,
    *,
    n_steps: int,
    n_warmup: int = 0,
    every: int = 1,
    random_state: RandomState = None,
    progress: bool = False,
) -> FieldChains:
    """Run a kernel from the given fields, all chains in one batch, and measure as it goes.

    Parameters
    ----------
    kernel : FieldKernel
        Such as ``FieldHMC(0.1, 10)`` or ``FlowProposal(flow)``.
    theory : Action
        Such as ``U1(8, beta=2.0)``, or one seen through a flow.
    start : Tensor (n_chains, *shape)
        Float64 for exact work.
    n_steps : int
        Steps after warm-up.
    n_warmup : int
        Steps before, in which nothing is measured.
    every : int
        Steps between measurements.
    random_state : int, generator or None
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    FieldChains

    Raises
    ------
    ValueError
        For fields of another shape or with an action that is not finite, or settings out of range.

    Examples
    --------
    >>> from sbi_flows.physics.lattice.hmc import FieldHMC
    >>> from sbi_flows.physics.lattice.u1 import U1
    >>> theory = U1(4, beta=1.0)
    >>> start = theory.hot_start(20, torch.Generator().manual_seed(0))
    >>> run_fields(FieldHMC(0.2, 5), theory, start, n_steps=30, n_warmup=10, random_state=0).acceptance.shape
    (20, 30)
    """
    positive("n_steps", n_steps, integer=True)
    positive("n_warmup", n_warmup, integer=True, zero=True)
    positive("every", every, integer=True)
    if n_steps < every:
        raise ValueError(f"Expected n_steps of at least every; got n_steps={n_steps} and every={every}, which measure nothing.")
    theory.check(start)
    generator = torch_generator(random_state, start.device)
    state = kernel.init(start, theory)
    _check_start(state.action)
    record: dict[str, list[Tensor]] = {}
    infos: list[FieldInfo] = []
    for _ in range(n_warmup):
        state, _ = kernel.step(state, theory, generator)
    began = time.perf_counter()
    for step in tqdm(range(n_steps // every * every), desc="fields", unit="step", disable=not progress):
        state, info = kernel.step(state, theory, generator)
        if (step + 1) % every == 0:
            infos.append(info)
            for name, value in theory.observables(theory.physical(state.field)).items():
                record.setdefault(name, []).append(value)
    seconds = time.perf_counter() - began
    acceptance, energy_error = (torch.stack([getattr(i, name) for i in infos], 1).cpu().numpy() for name in ("acceptance", "energy_error"))
    invalid = int(sum(int(i.invalid.sum()) for i in infos))
    observables = {name: torch.stack(values, 1).cpu().numpy() for name, values in record.items()}
    return FieldChains(
        observables=observables,
        acceptance=acceptance,
        energy_error=energy_error,
        field=state.field,
        work={kind: count * (n_steps // every * every) for kind, count in kernel.work.items()},
        seconds=seconds,
        every=every,
        reliability=_verdict(observables, acceptance, energy_error, invalid),
    )


def exp_minus(energy_error: np.ndarray) -> tuple[float, float]:
    """Mean of ``exp(-dH)`` over ``(chain, draw)`` and its standard error, from the scatter of chains (of draws, for a single chain)."""
    values = np.exp(-np.where(np.isfinite(energy_error), energy_error, np.inf))
    parts = values.mean(axis=1) if len(values) > 1 else values[0]
    return float(values.mean()), float(parts.std(ddof=1) / np.sqrt(len(parts))) if len(parts) > 1 else float("nan")


def _check_start(action: Tensor) -> None:
    bad = ~torch.isfinite(action)
    if bool(bad.any()):
        raise ValueError(
            f"Expected fields with a finite action to start from; {int(bad.sum())} of {len(bad)} have none, the first is row "
            f"{int(bad.nonzero()[0])}."
        )


def _verdict(observables: dict[str, np.ndarray], acceptance: np.ndarray, energy_error: np.ndarray, invalid: int) -> Reliability:
    reasons, notes = [], []
    if invalid:
        notes.append(f"{invalid} proposals had an action that is not finite and were rejected")
    if acceptance.mean() < _LEAST_ACCEPTANCE:
        reasons.append(f"acceptance is {acceptance.mean():.1%}: take smaller steps, or train the flow further")
    mean, error = exp_minus(energy_error)
    if abs(mean - 1) > _SIGMAS * max(error, 1e-12):
        reasons.append(f"<exp(-dH)> = {mean:.4f} +- {error:.4f}, not one: chains out of equilibrium (warm up longer) or a wrong kernel")
    for name, values in observables.items():
        if values.shape[1] < 4:
            continue
        estimate = gamma_method(values)
        reasons += [f"{name}: {reason}" for reason in estimate.reliability.reasons]
    return Reliability.from_reasons(reasons, notes)
