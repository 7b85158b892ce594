"""What a Markov kernel is: three functions over explicit records."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sbi_flows._random import rand
from sbi_flows.targets import Target

MAX_ENERGY_ERROR = 1000.0  # beyond it nothing is ever accepted: the integrator has left the path, not merely strayed


class Info(NamedTuple):
    """What happened in one step, one entry a chain.

    Attributes
    ----------
    acceptance : Tensor (n,)
        Probability with which the proposal was accepted.
    accepted : Tensor (n,) of bool
    invalid : Tensor (n,) of bool
        Proposals whose log-density was NaN or +inf; they are rejected, and counted.
    n_evaluations : Tensor (n,) of int64
        Points at which the log-density was evaluated, with its gradient or without.
    n_gradients : Tensor (n,) of int64
        How many of them with the gradient.
    energy_error : Tensor (n,) or None
        Total energy at the end less that at the start; None of kernels without momenta.
    divergent : Tensor (n,) of bool or None
        Where the energy error exceeded :data:`MAX_ENERGY_ERROR`, or had no value: the step is too long for the curvature there.
    saturated : Tensor (n,) of bool or None
        Trajectories cut off by the limit on their length rather than by their end.
    by_kernel : mapping of str to Tensor (n,), or None
        Of a mixture: the acceptance of each kernel that took a turn.
    """

    acceptance: Tensor
    accepted: Tensor
    invalid: Tensor
    n_evaluations: Tensor
    n_gradients: Tensor
    energy_error: Tensor | None = None
    divergent: Tensor | None = None
    saturated: Tensor | None = None
    by_kernel: Mapping[str, Tensor] | None = None


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

    def relocate(self, state: Any, x: Tensor, log_prob: Tensor, target: Target) -> tuple[Any, Tensor]:
        """The state at other points, or under another target, with all that was learned; and the gradients ``(n,)`` this took.

        ``log_prob (n,)`` is the target's at ``x (n, d)``, which the caller knows.
        """
        ...


def as_kernel(kernel: Any) -> Kernel:
    """The kernel itself; ``TypeError`` for a class of kernels, or anything else."""
    if inspect.isclass(kernel):
        raise TypeError(f"Expected a kernel such as {kernel.__name__}(); got the class {kernel.__name__} itself: call it.")
    missing = [name for name in ("init", "step", "adapt") if not callable(getattr(kernel, name, None))]
    if missing:
        raise TypeError(
            f"Expected a kernel such as NUTS() or RandomWalk(); got a {type(kernel).__name__}, which has no {' and no '.join(missing)}."
        )
    return kernel


def metropolis(log_ratio: Tensor, generator: torch.Generator) -> Info:
    """Accept or reject by the log Metropolis-Hastings ratio ``(n,)``; NaN and +inf are rejected and counted.

    Counts one evaluation a chain, without gradient.

    References
    ----------
    Hastings 1970, "Monte Carlo sampling methods using Markov chains and their applications", Biometrika 57.
    """
    invalid = torch.isnan(log_ratio) | (log_ratio == torch.inf)
    acceptance = torch.where(invalid, 0.0, log_ratio.clamp(max=0.0).exp())
    uniform = rand(log_ratio.shape, generator, dtype=log_ratio.dtype, device=log_ratio.device)
    once = torch.ones_like(invalid, dtype=torch.int64)
    return Info(acceptance, uniform < acceptance, invalid, n_evaluations=once, n_gradients=torch.zeros_like(once))
