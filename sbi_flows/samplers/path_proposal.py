"""``PathProposal``: ends of a path sampler's paths as proposals of a Markov chain."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows.samplers.kernel import Info, metropolis
from sbi_flows.samplers.path_sampler import PathSampler
from sbi_flows.targets import Target


class PathState(NamedTuple):
    """Positions and their log-density.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob : Tensor (n,)
    """

    position: Tensor
    log_prob: Tensor


class PathProposal:
    """Independent Metropolis with proposals from paths: a fresh path against one run back from where the chain is.

    Path and point together follow the target times the backward transitions; running a path back draws the path given the point, and
    accepting by the ratio of weights leaves both as they are. So the point's distribution is the target's exactly, and the kernel
    mixes with any other (:class:`sbi_flows.samplers.Mixed`). A step costs two paths; ``Info`` counts their evaluations.

    Parameters
    ----------
    sampler : PathSampler
        Trained on the very target that the chains follow.

    Examples
    --------
    >>> from sbi_flows.samplers import run_chains
    >>> from sbi_flows.samplers.stochastic_flow import stochastic_flow
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * (x - 1).square().sum(-1), 1)
    >>> sampler = stochastic_flow(target, n_blocks=2, n_steps=0, scale=1.0, random_state=0)
    >>> run_chains(PathProposal(sampler), target, torch.zeros(4, 1), n_steps=10, n_warmup=0, random_state=0).samples.shape
    (4, 10, 1)

    References
    ----------
    Andrieu, Doucet & Holenstein 2010, "Particle Markov chain Monte Carlo methods", J. R. Statist. Soc. B 72;
    Nilmeier et al. 2011, PNAS 108.
    """

    def __init__(self, sampler: PathSampler):
        self.sampler = sampler

    def init(self, x: Tensor, target: Target) -> PathState:
        return PathState(x, target.log_prob(x))

    @torch.no_grad()
    def step(self, state: PathState, target: Target, generator: torch.Generator) -> tuple[PathState, Info]:
        path, n = self.sampler.path, len(state.position)
        before = path.n_evaluations, path.n_gradients
        here = path.from_user(target.to_user(state.position)[0])
        back = self.sampler.backward_from(here, generator).log_weights
        ends = self.sampler.forward_from(randn(here.shape, generator, dtype=here.dtype), generator)
        position = target.from_user(path.to_user(ends.y)[0])
        info = metropolis(ends.log_weights - back, generator)
        accepted = info.accepted
        # Densities of the ends are those of the chains' own target, known from the weights only up to the paths.
        log_prob = torch.where(accepted, target.log_prob(position), state.log_prob)
        each = torch.ones_like(info.n_evaluations)
        info = info._replace(
            n_evaluations=each * (1 + (path.n_evaluations - before[0]) // n),
            n_gradients=each * ((path.n_gradients - before[1]) // n),
        )
        return PathState(torch.where(accepted[:, None], position, state.position), log_prob), info

    def adapt(self, state: PathState, info: Info, target: Target, done: float) -> PathState:
        return state

    def relocate(self, state: PathState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[PathState, Tensor]:
        return PathState(x, log_prob), torch.zeros(len(x), dtype=torch.int64, device=x.device)
