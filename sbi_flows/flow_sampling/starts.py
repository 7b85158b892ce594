"""Where chains start: from the prior by annealing or by flows, from given points, and from what heated chains find beyond them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows._threads import one_thread
from sbi_flows.flows import Flow
from sbi_flows.samplers import Kernel, RandomWalk, anneal
from sbi_flows.samplers.flow_smc import ascend_by_flows
from sbi_flows.samplers.smc import ascending_flow
from sbi_flows.samplers.tempered_path import TemperedPath, systematic
from sbi_flows.samplers.waste_free import ascend
from sbi_flows.targets import Target, tempered, unconstrained

PRIOR_DRAWS = 20_000
_PARTICLES = 1000
_TRAJECTORIES = (3, 10)  # least and most at each power of the likelihood
_FLOW_DRAWS, _ASCENDED = 2000, 4000  # at each power, and of the posterior
_TEMPERATURES = (8.0, 64.0, 8.0, 1.0)  # up and down again: at 64 a mode is eight times as wide
_HOT, _HOT_STEPS = 3.0, 80  # temperature and steps, half of them warm-up, of draws that a flow is made wider by
_HEATED_STEPS = 8  # at each
_LOST, _FEW = 30.0, 8  # nats by which the density where a cooled chain is may be below that of the starts, in so few columns
_ALONE = 4  # one chain in so many comes from the prior by itself
_OF_PRIOR = 10  # draws of the prior for each: the likelihood may be zero at most of them
_TRIES = 20  # batches of points among which ones of finite density are looked for


def from_prior(target: Target, n_chains: int, generator: torch.Generator, kernel: Kernel) -> Tensor:
    """Nearly posterior draws ``(n_chains, d)``, in every mode that draws of the prior have found.

    A kernel that follows gradients moves the particles in many dimensions, where a random walk would need too many steps.
    """
    if isinstance(kernel, RandomWalk):
        return anneal(target, searchers(kernel, n_chains), generator, n_prior=PRIOR_DRAWS)[:n_chains]
    least, most = _TRAJECTORIES
    path = TemperedPath(target)
    ascent = ascend(path, n_chains, PRIOR_DRAWS, kernel, generator, ess=0.5 * n_chains, least_moves=least, most_moves=most)
    alone = _alone(path, ascent.powers, kernel, n_chains // _ALONE, generator)
    return torch.cat([alone, ascent.particles.x[-n_chains:]])[:n_chains]


@torch.no_grad()
def _alone(path: TemperedPath, powers: np.ndarray, kernel: Kernel, n: int, generator: torch.Generator) -> Tensor:
    """Where chains come from the prior that go through the powers of an ascent by themselves, ``(at most n, d)``.

    Particles that are drawn anew by their weights at every power may all end in one mode by chance: of 64 in 30 columns, between a mode of
    .9 and one of .1, in three runs of seven. A chain by itself stays in the part of the prior it began in, whatever there is; how much that
    is, later proposals tell.
    """
    x, log_likelihood = path.first_draws(_OF_PRIOR * n, generator)
    x = x[log_likelihood.isfinite()][:n]
    for power in powers:
        path.power = float(power)
        space = unconstrained(path, x)
        x = space.to_user(_settled(kernel, space, space.from_user(x), generator).position)[0]
    return x


def searchers(kernel: Kernel, n_chains: int) -> int:
    """How many chains :func:`from_prior` brings from the prior to where ``n_chains`` start."""
    return max(_PARTICLES, n_chains) if isinstance(kernel, RandomWalk) else n_chains


def _settled(kernel: Kernel, space: Target, x: Tensor, generator: torch.Generator) -> Any:
    """The kernel's state after a few steps, from which it learns."""
    state = kernel.init(x, space)
    for step in range(_HEATED_STEPS):
        state, info = kernel.step(state, space, generator)
        state = kernel.adapt(state, info, space, (step + 1) / (_HEATED_STEPS + 1))
    return state


class Ascended(NamedTuple):
    """What came of following the posterior from the prior by flows.

    Attributes
    ----------
    draws : Tensor (n, d)
        Nearly independent draws of the posterior, in random order.
    flow : Flow
        That proposed them.
    against : list of str
        What may be missing.
    """

    draws: Tensor
    flow: Flow
    against: list[str]


def by_flows(target: Target, generator: torch.Generator) -> Ascended:
    """Draws of the posterior by sequential Monte Carlo whose proposals are flows, as :func:`sbi_flows.samplers.smc` makes them.

    Random walks from the prior lose what is rare on the way: a ridge that narrows towards an end of a parameter held 3 % of a posterior,
    and hardly a chain came there.

    Raises
    ------
    ValueError
        If the likelihood is zero at all draws of the prior, or too steep.
    """
    flow = ascending_flow(target, generator)
    with one_thread():
        found = ascend_by_flows(TemperedPath(target), _FLOW_DRAWS, PRIOR_DRAWS, flow, generator)
    rows = systematic(torch.softmax(found.log_weights, 0), _ASCENDED, generator)
    return Ascended(found.x[rows], flow.eval(), found.climbed.reasons())


def without_prior(target: Target, n_chains: int, generator: torch.Generator) -> Tensor:
    """Points of finite density for a target of which nothing else is known: from [-2, 2] in every column of the real line.

    Raises
    ------
    ValueError
        If none is found.
    """
    space = unconstrained(target)
    found: list[Tensor] = []
    for _ in range(_TRIES):
        x = 4 * rand((n_chains, target.features), generator, dtype=torch.float64) - 2
        found.append(x[torch.isfinite(space.log_prob(x))])
        if sum(map(len, found)) >= n_chains:
            return space.to_user(torch.cat(found)[:n_chains])[0]
    raise ValueError(
        f"Expected points where the density is finite; among {_TRIES * n_chains} near the origin there are only {sum(map(len, found))}. "
        "Pass some as fit(start=...), or give a prior."
    )


def spread_out(target: Target, start: Tensor, n_chains: int, generator: torch.Generator) -> Tensor:
    """``(n_chains, d)`` from the given rows: some of them, or each several times.

    Raises
    ------
    ValueError
        If the density is not finite at a row.
    """
    values = target.log_prob(start)
    bad = ~torch.isfinite(values)
    if bool(bad.all()):
        raise ValueError(
            f"Expected starts where the density is finite; it is at none of the {len(bad)} (row 0: {float(values[0])}). Are they inside "
            "the support, and in the order of the columns?"
        )
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"Expected starts where the density is finite; it is not at {int(bad.sum())} of {len(bad)}, first row {row} "
            f"({float(values[row])}). Leave them out, or look whether they are inside the support."
        )
    order = torch.randperm(len(start), generator=generator)
    return start[order.repeat(-(-n_chains // len(start)))[:n_chains]]


@torch.no_grad()
def heated(kernel: Kernel, space: Target, start: Tensor, generator: torch.Generator) -> Tensor:
    """Where chains come down again that were heated up from ``start (n, d)`` on the real line.

    A density to the power 1/64 has modes eight times as wide: chains cross what is empty space at temperature one, and cool into modes
    nobody started from. Their number in each says nothing of its mass.
    """
    x = start
    for temperature in _TEMPERATURES:
        hot = tempered(space, 1 / temperature)
        x = x + 1e-3 * randn(x.shape, generator, dtype=x.dtype) * x.std(0, correction=0)
        x = torch.where(torch.isfinite(hot.log_prob(x))[:, None], x, start)
        x = _settled(kernel, hot, x, generator).position
    came, left = space.log_prob(x), space.log_prob(start)
    lost = ~torch.isfinite(came)
    if x.shape[1] <= _FEW:
        # Without an end to a tail, as of Student's t, a density to the power 1/64 has none either: chains leave for good. In many columns
        # chains that come down a funnel are as far below, and on their way.
        lost |= came <= left[torch.isfinite(left)].median() - _LOST
    return torch.where(lost[:, None], start, x)


@torch.no_grad()
def hot_draws(kernel: Kernel, space: Target, start: Tensor, generator: torch.Generator) -> Tensor:
    """Draws ``(n, d)`` of the density to the power 1/3, all on the real line.

    The draws of a brief look come rarely to the corners of a mode, where a flow fitted to them alone is hundreds of times too thin: a chain
    that is there waits as long. Hot chains come there often.
    """
    hot = tempered(space, 1 / _HOT)
    state = kernel.init(start, hot)
    drawn = []
    for step in range(_HOT_STEPS):
        state, info = kernel.step(state, hot, generator)
        if step < _HOT_STEPS // 2:
            state = kernel.adapt(state, info, hot, (step + 1) / (_HOT_STEPS // 2))
        else:
            drawn.append(state.position)
    return torch.cat(drawn)


def smallest_mass(n: float) -> float:
    """The mass that n independent draws miss one time in twenty."""
    return -math.log(0.05) / max(n, 1.0)
