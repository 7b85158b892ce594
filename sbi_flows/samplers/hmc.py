"""Hamiltonian Monte Carlo: trajectories of a chosen length."""

from __future__ import annotations

import math

import torch

from sbi_flows._random import rand
from sbi_flows._validation import positive
from sbi_flows.samplers.gradients import GradientKernel, GradientState, straight_step
from sbi_flows.samplers.kernel import Info
from sbi_flows.targets import Target

_JITTER = 0.5  # of the length, either way: no direction can be in step with all of them


class HMC(GradientKernel):
    """Trajectories of random length, with step size and metric learned in warm-up from all chains together.

    In the learned metric a normal target has unit covariance, and a quarter of its period, the default length, makes draws independent of
    where they came from. All chains take the same number of steps, drawn anew each time within half of its mean either way.

    Parameters
    ----------
    n_steps : int, optional
        Mean number of leapfrogs, in place of a length: what to fix where a step's cost is what counts.
    trajectory : float
        Mean length of trajectories in units of the metric.
    step_size : float or "auto"
        Where warm-up starts from; what it stays at with ``n_warmup=0``. "auto" finds it by a few trial steps.
    target_acceptance : float
        Mean acceptance that warm-up tunes the step size to.
    metric : {"auto", "dense", "diagonal"}
        Whether correlations are learned: "auto" where there are draws enough for it.
    max_steps : int
        Most leapfrogs a trajectory, however short the step; ``Info.saturated`` says where it was met.
    check : bool
        Whether the gradient is compared with finite differences before the first step, which costs some ten evaluations a column.

    Examples
    --------
    >>> from sbi_flows.samplers import run_chains
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
    >>> chains = run_chains(HMC(), target, torch.randn(8, 2), n_steps=100, n_warmup=100, random_state=0)
    >>> chains.samples.shape, bool(chains.stats["divergent"].any())
    ((8, 100, 2), False)

    References
    ----------
    Duane, Kennedy, Pendleton & Roweth 1987, "Hybrid Monte Carlo", Physics Letters B 195; Neal 2011, arXiv:1206.1901.
    """

    def __init__(
        self,
        *,
        n_steps: int | None = None,
        trajectory: float = math.pi / 2,
        step_size: float | str = "auto",
        target_acceptance: float = 0.8,
        metric: str = "auto",
        max_steps: int = 1000,
        check: bool = True,
    ):
        super().__init__(step_size, target_acceptance, metric, check)
        self.n_steps = n_steps if n_steps is None else positive("n_steps", n_steps, integer=True)
        self.trajectory = positive("trajectory", trajectory)
        self.max_steps = positive("max_steps", max_steps, integer=True)

    def step(self, state: GradientState, target: Target, generator: torch.Generator) -> tuple[GradientState, Info]:
        mean = self.n_steps if self.n_steps is not None else self.trajectory / float(state.learned.step_size)
        stretch = 1 + _JITTER * (2 * float(rand((), generator)) - 1)
        wanted = max(1, round(min(stretch * mean, 2.0 * self.max_steps)))
        state, info = straight_step(state, target, generator, min(wanted, self.max_steps))
        return state, info._replace(saturated=torch.full_like(info.accepted, wanted > self.max_steps))
