"""Whether the weights of paths know of all the mass near what was drawn: the target's own moves, and paths run back from them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows.samplers.kernel import metropolis
from sbi_flows.samplers.missed_mass import missed_mass
from sbi_flows.samplers.normal_path import NormalPath
from sbi_flows.samplers.pool import log_mean
from sbi_flows.samplers.tempered_path import systematic
from sbi_flows.samplers.unseen import heavy_tails
from sbi_flows.weights import kish_ess, log_mean_error

_WALKERS, _STEPS = 500, 20
_FEWEST = 100  # paths that can be checked: of fewer, the effective size speaks
_SHORTEST, _LONGEST = 1e-2, 30.0  # of the steps, in standard deviations of the draws: narrow branches and tails
_MATTERS = 0.01  # of the mass
_LEAST_SHARE, _LARGEST_GAP = 1 / 20, 2.0  # effective share of the paths; nats between ln Z and the mean log-weight
# Mass far out: normals miss much more of such a tail nearer by. Student's t with two degrees of freedom has 7e-4 there.
_TAIL_MATTERS = 1e-4
_REMEDY = "Train longer (n_steps=), begin wider (start= or scale=), or use smc"
_TAILS = "without a variance, and paths come there so seldom that their weights do not tell what is missing"

Backward = Callable[[Tensor, torch.Generator], Tensor]


@torch.no_grad()
def against_paths(path: NormalPath, ends: Tensor, log_weights: Tensor, backward: Backward, generator: torch.Generator) -> list[str]:
    """Reasons against weighted ends of paths ``(n, d)``: tails of the density, mass that few paths reach, weights too uneven.

    Training by the reverse divergence drops what is far. Where paths come a hundred times too rarely, none of theirs may have come, and
    the weights at hand look light. Points that walked there by steps that leave the target as it is know better: the weights of paths run
    back from them are those that the target itself would give.

    Parameters
    ----------
    path : NormalPath
    ends, log_weights : Tensor (n, d), (n,)
    backward : callable
        Log-weights ``(m,)`` of paths run back from points ``(m, d)``.
    generator : torch.Generator

    References
    ----------
    Blessing, Jia, Esslinger, Vargas & Neumann 2024, "Beyond ELBOs: a large-scale evaluation of variational methods for sampling",
    arXiv:2406.07423 (forward effective sizes).
    """
    if len(ends) < _FEWEST:
        return []
    first = ends[systematic(torch.softmax(log_weights, 0), min(_WALKERS, len(ends) // 2), generator)]
    tails, _ = heavy_tails(first[None], path, _TAILS, _TAIL_MATTERS)
    walked = backward(_walked(path, first, generator), generator)
    return [*tails, *_unseen(log_weights, walked), *_uneven(log_weights)]


def _walked(path: NormalPath, x: Tensor, generator: torch.Generator) -> Tensor:
    """Points ``(m, d)`` after a random walk with steps of all lengths, of which one fits wherever a point is."""
    spread = x.std(0, correction=0).clamp(min=1e-12) / math.sqrt(x.shape[1])
    span = math.log(_LONGEST / _SHORTEST)
    log_prob = path.log_prob(x)
    for _ in range(_STEPS):
        length = _SHORTEST * torch.exp(span * rand((len(x), 1), generator, dtype=x.dtype))
        proposal = x + length * spread * randn(x.shape, generator, dtype=x.dtype)
        proposed = path.log_prob(proposal)
        accepted = metropolis(proposed - log_prob, generator).accepted
        x, log_prob = torch.where(accepted[:, None], proposal, x), torch.where(accepted, proposed, log_prob)
    return x


def _unseen(log_weights: Tensor, walked: Tensor) -> list[str]:
    """A reason where points that walked have heavier weights than the error of ln Z allows for."""
    # With the true weights' distribution, the mass beyond the largest drawn is a part of the error: .7 % of runs come to twice of it.
    beyond = float((walked > log_weights.max()).double().mean())
    surely = beyond - 2 * math.sqrt(beyond * (1 - beyond) / len(walked))
    if surely > max(2 * log_mean_error(log_weights.numpy()), _MATTERS):
        return [
            f"{beyond:.0%} of the points that walked on from the draws lie where paths come more rarely than where any was drawn: ln Z "
            f"is too low by more than its error. {_REMEDY}"
        ]
    missed = missed_mass(log_weights, walked[:, None])
    if missed.real:
        return [
            f"ln Z by points that walked on from the draws differs by {missed.log_ratio:+.2g} +- {missed.error:.1g}: paths come too rarely "
            f"to a part of the target. {_REMEDY}"
        ]
    return []


def _uneven(log_weights: Tensor) -> list[str]:
    """A reason where the weights differ so much that their own error is not to be believed."""
    there = log_weights[log_weights > -torch.inf]  # a support with ends costs paths, but is no unevenness of theirs
    share, gap = kish_ess(log_weights.numpy()) / len(log_weights), float(log_mean(there) - there.mean())
    if share >= _LEAST_SHARE and gap <= _LARGEST_GAP:
        return []
    return [
        f"the weights are worth {share:.1%} of the draws, and ln Z lies {gap:.2g} nats above its lower bound: the sampler is far from the "
        f"target, and what it seldom reaches may be missing. {_REMEDY}"
    ]

