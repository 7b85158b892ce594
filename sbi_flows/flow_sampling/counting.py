"""What a run costs: every evaluation of the user's density, by what it was for."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sbi_flows.targets import Target


class Ledger:
    """Evaluations, gradients and seconds by purpose.

    Attributes
    ----------
    evaluations, gradients : dict of str to int
        Rows at which the density, and those at which its gradient as well, was computed.
    seconds : dict of str to float
        Wall time, of each purpose by itself.
    target_seconds : dict of str to float
        Part of it spent in the user's density itself.
    """

    def __init__(self) -> None:
        self.evaluations: dict[str, int] = defaultdict(int)
        self.gradients: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self.target_seconds: dict[str, float] = defaultdict(float)
        self._purpose: str | None = None
        self._since = 0.0

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """What is spent inside is booked under ``name``, and not under the purpose around it."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> str | None:
        """Book the time since the last switch; what the purpose was until now."""
        now, before = time.perf_counter(), self._purpose
        if before is not None:
            self.seconds[before] += now - self._since
        self._purpose, self._since = name, now
        return before

    def call(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``function(x)``, counted."""
        began = time.perf_counter()
        values = function(x)
        purpose = self._purpose or "other"
        self.target_seconds[purpose] += time.perf_counter() - began
        self.evaluations[purpose] += len(x)
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradients[purpose] += len(x)
        return values

    @property
    def n_evaluations(self) -> int:
        return sum(self.evaluations.values())

    @property
    def n_gradients(self) -> int:
        return sum(self.gradients.values())


class CountedTarget(Target):
    """A target whose evaluations go through a ledger."""

    def __init__(self, target: Target, ledger: Ledger):
        super().__init__(target.features, target.names, target.support, target.prior)
        self.target, self.ledger = target, ledger
        self.same_parameters = target.same_parameters

    def log_prob(self, x):
        return self.ledger.call(self.target.log_prob, x)

    def recorded(self, x):
        return self.target.recorded(x)

    @property
    def notes(self):
        return self.target.notes

    def log_likelihood(self, x):
        return self.ledger.call(self.target.log_likelihood, x)
