"""What a Markov kernel is: three functions over explicit records."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sbi_flows.targets import Target


class Info(NamedTuple):
    """What happened in one step, one entry a chain.

    Attributes
    ----------
    acceptance : Tensor (n,)
        Probability with which the proposal was accepted.
    accepted : Tensor (n,) of bool
    invalid : Tensor (n,) of bool
        Proposals whose log-density was NaN or +inf; they are rejected, and counted.
    """

    acceptance: Tensor
    accepted: Tensor
    invalid: Tensor


class Kernel(Protocol):
    """A Markov transition of many chains at once.

    ``init`` and ``step`` see the target on real columns and angles on [-pi, pi), as :func:`sbi_flows.targets.unconstrained` makes it.
    A state is a ``NamedTuple`` of tensors (and of such tuples), of which ``position (n, d)`` and ``log_prob (n,)`` are the first two:
    so a run can be kept in a file and taken up again. A step must leave the target invariant whatever else the state holds; what
    the kernel learns, it learns in ``adapt``, which :func:`sbi_flows.samplers.run_chains` calls in warm-up only.
    """

    def init(self, x: Tensor, target: Target) -> Any:
        """The state at positions ``x (n, d)``."""
        ...

    def step(self, state: Any, target: Target, generator: torch.Generator) -> tuple[Any, Info]:
        """One transition of every chain."""
        ...

    def adapt(self, state: Any, info: Info, target: Target, done: float) -> Any:
        """The state after learning from the last step; ``done`` of the warm-up, in (0, 1], is over."""
        ...


def metropolis(log_ratio: Tensor, generator: torch.Generator) -> Info:
    """Accept or reject by the log Metropolis-Hastings ratio ``(n,)``; NaN and +inf are rejected and counted.

    References
    ----------
    Hastings 1970, "Monte Carlo sampling methods using Markov chains and their applications", Biometrika 57.
    """
    invalid = torch.isnan(log_ratio) | (log_ratio == torch.inf)
    acceptance = torch.where(invalid, 0.0, log_ratio.clamp(max=0.0).exp())
    uniform = torch.rand(log_ratio.shape, generator=generator, dtype=log_ratio.dtype)
    return Info(acceptance, uniform < acceptance, invalid)
