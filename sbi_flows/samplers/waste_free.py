"""Sequential Monte Carlo whose every move is a particle: from the prior to the posterior without a flow.

At each power of the likelihood, ``m`` starts are drawn from the particles and each is moved ``p`` times by a Markov kernel; all ``m p``
positions are the next particles. Means over them have the variance of ``m`` chains, which their spread measures: one run knows its error.

References
----------
Dau & Chopin 2022, "Waste-free sequential Monte Carlo", J. R. Statist. Soc. B 84; Del Moral, Doucet & Jasra 2006, "Sequential Monte Carlo
samplers", ibid. 68; Olsson & Douc 2019, "Numerically stable online estimation of variance in particle filters", Bernoulli 25 (errors from
families of particles).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows.samplers.kernel import Kernel
from sbi_flows.samplers.random_walk import RandomWalkState
from sbi_flows.samplers.tempered_path import TemperedPath, rise, systematic
from sbi_flows.targets import unconstrained
from sbi_flows.weights import log_mean_error, pareto_k

MAX_TEMPERATURES = 200
FORGOTTEN = 0.2  # correlation with the starts, in the worst parameter, at which moves end
_PROGRESS = 0.02  # that correlation must still fall by over a doubling of the moves: separate modes remember their starts for ever


class Particles(NamedTuple):
    """Rows at one temperature.

    Attributes
    ----------
    x : Tensor (n, d)
        In the user's parameters.
    log_likelihood : Tensor (n,)
    chain, family : Tensor (n,) of int64
        The chain a row belongs to, and the chain of the temperature before from which that one started: chains of one family are not
        independent of each other.
    """

    x: Tensor
    log_likelihood: Tensor
    chain: Tensor
    family: Tensor


class Ascent(NamedTuple):
    """The rise of the power from 0 to 1.

    Attributes
    ----------
    particles : Particles
        At power 1; the last ``n_chains`` of them are the ends of the chains.
    powers, log_ratios, variances, tails, acceptances, remembered : ndarray (n_temperatures,)
        Powers reached; the log of each ratio of normalising constants, its variance, and the Pareto k of its weights; mean acceptance;
        correlation of the worst parameter, or of the likelihood, with the starts when moves ended.
    """

    particles: Particles
    powers: np.ndarray
    log_ratios: np.ndarray
    variances: np.ndarray
    tails: np.ndarray
    acceptances: np.ndarray
    remembered: np.ndarray


@torch.no_grad()
def ascend(
    path: TemperedPath,
    n_chains: int,
    n_first: int,
    kernel: Kernel,
    generator: torch.Generator,
    *,
    ess: float,
    share: float = 0.0,
    least_moves: int,
    most_moves: int,
) -> Ascent:
    """Move particles from the prior to the posterior.

    Parameters
    ----------
    path : TemperedPath
    n_chains : int
        Chains at each temperature.
    n_first : int
        Draws of the prior.
    kernel : Kernel
    generator : torch.Generator
    ess : float
        Effective number of particles that each change of temperature leaves, at least.
    share : float
        The same as a share of the particles.
    least_moves, most_moves : int
        Steps of each chain; within them the chains run until they have forgotten where they started.

    Raises
    ------
    ValueError
        If the likelihood is zero at all draws of the prior, or too steep.
    """
    x, log_likelihood = path.first_draws(n_first, generator)
    particles = Particles(x, log_likelihood, torch.arange(n_first), torch.arange(n_first))
    power, state, record = 0.0, None, []
    for _ in range(MAX_TEMPERATURES):
        step = rise(particles.log_likelihood, 1 - power, max(ess, share * len(particles.x)))
        power = path.power = min(1.0, power + step)
        log_weights = step * particles.log_likelihood
        ratio, variance, tail = _mean_weight(log_weights, particles.family)
        start = systematic(torch.softmax(log_weights, 0), n_chains, generator)
        particles, state, acceptance, remembered = _move(
            path, particles, start, kernel, state, generator, least_moves, most_moves
        )
        record.append((power, ratio, variance, tail, acceptance, remembered))
        if power >= 1:
            return Ascent(particles, *np.array(record).T)
    raise ValueError(
        f"The likelihood is too steep for {n_first} particles: after {MAX_TEMPERATURES} temperatures its power is still {power:.2g}. "
        "Use more particles, or look for a likelihood that jumps."
    )


def _mean_weight(log_weights: Tensor, family: Tensor) -> tuple[float, float, float]:
    """Log of the mean weight, its variance, families taken as independent of each other, and Pareto k."""
    top = log_weights.max()
    weights = (log_weights - top).exp()
    excess = weights / weights.mean() - 1
    _, family = family.unique(return_inverse=True)
    n_families = int(family.max()) + 1
    sums = torch.zeros(n_families, dtype=weights.dtype).index_add_(0, family, excess)
    correction = n_families / max(n_families - 1, 1)
    spread = float(sums.square().sum() / len(weights) ** 2) * correction
    log_w = log_weights.numpy()
    return float(weights.mean().log() + top), max(spread, log_mean_error(log_w) ** 2), pareto_k(log_w)


def _move(path: TemperedPath, before: Particles, start: Tensor, kernel: Kernel, last: Any, generator, least: int, most: int):
    """Chains from the rows ``start`` until they have forgotten them: all their positions, and what the kernel has learned."""
    x = before.x[start]
    space = unconstrained(path, x)
    origin = space.from_user(x)
    state = _carried(kernel.init(origin, space), last)
    then = torch.cat([origin, before.log_likelihood[start][:, None]], dim=1)
    rows, log_likelihood, acceptance, history = [], [], [], [1.0]
    for move in range(1, most + 1):
        state, info = kernel.step(state, space, generator)
        user, log_det = space.to_user(state.position)
        rows.append(user)
        log_likelihood.append(path.recovered(user, state.log_prob - log_det))
        acceptance.append(float(info.acceptance.mean()))
        state = kernel.adapt(state, info, space, move / (most + 1))
        # The likelihood is what ln Z is made of: forgotten places at a radius that is remembered would not do.
        now = torch.cat([state.position, log_likelihood[-1][:, None]], dim=1)
        history.append(_memory(then, now))
        if move >= least and (history[-1] < FORGOTTEN or history[-1] > history[move // 2] - _PROGRESS):
            break
    # Duplicates and siblings among the starts are no independent chains.
    chain, family = torch.arange(len(start)).repeat(len(rows)), before.chain[start].repeat(len(rows))
    return Particles(torch.cat(rows), torch.cat(log_likelihood), chain, family), state, float(np.mean(acceptance)), history[-1]


def _carried(state: Any, last: Any) -> Any:
    """The random walk's scale and its jumps carry over from one temperature to the next."""
    if not isinstance(state, RandomWalkState):
        return state
    state = state._replace(archive=state.position)
    return state if last is None else state._replace(log_scale=last.log_scale)


def _memory(origin: Tensor, now: Tensor) -> float:
    """Largest correlation, over the columns, of where chains are with where they started."""
    a, b = origin - origin.mean(0), now - now.mean(0)
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return float(torch.where(scale > 0, (a * b).sum(0) / scale, 1.0).max())
