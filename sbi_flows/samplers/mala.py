"""The Metropolis-adjusted Langevin algorithm: one leapfrog at a time."""

from __future__ import annotations

import torch

from sbi_flows.samplers.gradients import GradientKernel, GradientState, straight_step
from sbi_flows.samplers.kernel import Info
from sbi_flows.targets import Target


class MALA(GradientKernel):
    """Steps along the gradient with noise: a trajectory of one leapfrog from a fresh momentum is just that proposal.

    Cheap a step, and the way of a random walk; where a gradient costs little more than the density, a flow proposal mixed with it makes
    the large moves (:class:`Mixed`).

    Parameters
    ----------
    step_size : float or "auto"
        Where warm-up starts from, in units of the metric.
    target_acceptance : float
        0.574 is optimal for normal targets of many dimensions.
    metric : {"auto", "dense", "diagonal"}
    check : bool
        Whether the gradient is compared with finite differences before the first step, which costs some ten evaluations a column.

    Examples
    --------
    >>> from sbi_flows.samplers import run_chains
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
    >>> run_chains(MALA(), target, torch.zeros(8, 2), n_steps=50, n_warmup=50, random_state=0).samples.shape
    (8, 50, 2)

    References
    ----------
    Roberts & Rosenthal 1998, "Optimal scaling of discrete approximations to Langevin diffusions", J. R. Statist. Soc. B 60.
    """

    def __init__(
        self, *, step_size: float | str = "auto", target_acceptance: float = 0.574, metric: str = "auto", check: bool = True
    ):
        super().__init__(step_size, target_acceptance, metric, check)

    def step(self, state: GradientState, target: Target, generator: torch.Generator) -> tuple[GradientState, Info]:
        return straight_step(state, target, generator, 1)
