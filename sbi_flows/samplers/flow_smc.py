"""Sequential Monte Carlo by flows: each temperature's flow proposes, what it proposed trains the next one's, and the last gives ln Z.

At each power of the likelihood a flow is fitted to all points so far, weighted for that power. Its draws are importance samples, which stay
in one weighted :class:`~sbi_flows.samplers.pool.Pool`. Where their weights were poor, random walks in the flow's latent space first spread
the few heavy points, and train the next flow; they carry no weight, as chains that miss a mode would claim that it is not there. At power
1 the flows are frozen, and ln Z is that of fresh draws, whose weights know nothing of the training: the estimate is unbiased however the
flows came about, and its error is that of independent draws. What no draw reached has no say in that error: chains from the last draws look
for it (:mod:`sbi_flows.samplers.missed_mass`), and others climb the weights (:mod:`sbi_flows.samplers.thin_places`); where they find some
the flows learn from them and draw again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.losses import known_density
from sbi_flows.samplers.flow_mixture import FlowMixture, frozen
from sbi_flows.samplers.latent_walk import latent_walk
from sbi_flows.samplers.missed_mass import Missed, annealed, missed_mass
from sbi_flows.samplers.pool import Part, Pool, ess, log_mean
from sbi_flows.samplers.tempered_path import TemperedPath, systematic
from sbi_flows.samplers.thin_places import Climbed, climb
from sbi_flows.training import ArraySource, train
from sbi_flows.weights import largest_pareto_k, pareto_k

MAX_TEMPERATURES = 200
GOOD = 0.3  # effective share of a flow's draws from which on no walks are needed, and no more rounds at power 1
MOVES = 4  # latent steps of a quarter as many chains as there are draws: they cost as much as the draws
KEEP = 16  # parts of the pool: older ones are so much hotter that their points weigh nothing
TOGETHER = 4  # flows, the last ones, that propose together
# Times the power, a share of the training rows for each: what matters next may be rare now. A branch of Rosenbrock-10 holds .8 % of the
# mass at power .1 and 15 % at power 1.
POWERS = (1.0, 0.5, 1.5, 3.0)
ENOUGH_POINTS = 0.5  # times n_draws: effective number of the pool's points, at least, for the next power
ROUNDS = 6  # at power 1, at most
CLIMBS = 10  # besides, in which the flows learn of places where they were too thin
DEFENSIVE = 0.3  # of the draws come from flows before the last: where it is too thin, they are not
WANTED_ERROR = 0.02
LEAST_DRAWS = 2000  # of the last sample: fewer may all miss a corner of a percent of the mass where the flow is thin, and not know it
CHECKS, CHECK_MOVES = 200, 20  # chains from the last sample and from the prior, and their latent steps: do they find what it missed?
WALKERS = 250  # from the prior
MOST_DRAWS = 20  # times n_draws, for the last importance sample
ENOUGH = 0.25  # misfit in nats below which training has nothing to gain: the flow of the last power, rescaled, will do
LEARNED = 0.5  # effective share of a flow's draws from which on it needs no more rounds before the power rises
_LEAST_RISE, _RISE = 1.02, 1.15  # of the power, at least; the latter where the flow has learned
_STAY = 3  # times at one power while its weights are too poor to go on
_BATCH, _STEPS, _RATE, _HELD_OUT = 256, 250, 1e-2, 0.15


class FlowAscent(NamedTuple):
    """The rise of the power, and the importance sample at its end.

    Attributes
    ----------
    x : Tensor (n, d)
        Draws of the frozen flows.
    log_weights : Tensor (n,)
    pool : Pool
        All points of the last temperatures.
    powers, efficiencies : ndarray (n_stages,)
        Power of each stage, and the effective share of its flow's draws.
    thin : float
        Posterior mass, judged by the pool, where the frozen flows have less than a hundredth of the posterior's density.
    missed : Missed
        What chains from the draws say about ln Z.
    climbed : Climbed
        Where chains that climb the weights have come.
    """

    x: Tensor
    log_weights: Tensor
    pool: Pool
    powers: np.ndarray
    efficiencies: np.ndarray
    thin: float
    missed: Missed
    climbed: Climbed


class Known(NamedTuple):
    """Points near the tempered posterior, and its log-density there.

    Attributes
    ----------
    x : Tensor (n, d)
    log_prob : Tensor (n,)
    share : Tensor (n,)
        Its density over that of the rows, of mean one.
    n_chains : int
        Row ``i`` belongs to chain ``i % n_chains``.
    """

    x: Tensor
    log_prob: Tensor
    share: Tensor
    n_chains: int


@torch.no_grad()
def ascend_by_flows(path: TemperedPath, n_draws: int, n_first: int, flow: Flow, generator: torch.Generator) -> FlowAscent:
    """Draw ``n_draws`` points at each temperature; ``flow`` is trained in place.

    Raises
    ------
    ValueError
        If the likelihood is zero at all draws of the prior, or too steep.
    """
    x, log_likelihood = path.first_draws(n_first, generator)
    log_prior = path.log_prior(x)
    # A prior whose density is infinite at an end has draws that are rounded to it: such a point has no weight that could be told.
    inside = torch.isfinite(log_prior)
    x, log_likelihood, log_prior = x[inside], log_likelihood[inside], log_prior[inside]
    first = Part(x, log_prior, log_likelihood, log_prior, 0.0)
    pool = Pool([first])
    power, stayed, efficiency, rounds, climbs = 0.0, 0, 1.0, 0, 0
    climbed: Climbed | None = None
    flows: list[Flow] = []
    passed: dict[float, Flow] = {}
    came: Tensor | None = None
    record: list[tuple[float, float]] = []
    walked: Known | None = None
    for _ in range(MAX_TEMPERATURES):
        power, stayed = _next_power(pool, power, ENOUGH_POINTS * n_draws, stayed, efficiency)
        path.power = power
        if walked is None and flows and efficiency < GOOD:
            start = pool.x[systematic(torch.softmax(pool.log_weights(power), 0), n_draws // MOVES, generator)]
            walked = _walk(path, flows[-1], start, MOVES, generator)
        _fit(flow, pool, power, walked, n_draws, generator)
        walked = None
        flows = [*flows, frozen(flow)][-TOGETHER:]
        passed[power] = flows[-1]
        efficiency = _propose(path, pool, FlowMixture(flows, DEFENSIVE), n_draws, generator)
        record.append((power, efficiency))
        if power < 1:
            continue
        rounds += 1
        if efficiency < GOOD and rounds < ROUNDS:
            continue
        proposal = FlowMixture(flows, DEFENSIVE)
        climbed = climb(path, proposal, pool.parts[-1], climbed, generator)
        if climbed.thin and climbs < CLIMBS:
            rounds, climbs = rounds - 1, climbs + 1
            walked = Known(climbed.x, climbed.log_prob, climbed.share, climbed.n_chains)
            continue
        last = _last_sample(path, proposal, n_draws, generator)
        log_weights = last.log_prior + last.log_likelihood - last.log_proposal
        if came is None:
            came = annealed(path, first, passed, WALKERS, generator)
        start = torch.cat([last.x[systematic(torch.softmax(log_weights, 0), CHECKS, generator)], came])
        walked = _walk(path, flows[-1], start, CHECK_MOVES, generator)
        settled = slice(len(walked.x) // 2, None)
        ratios = (walked.log_prob[settled] - proposal.log_prob(walked.x[settled])).view(-1, len(start)).T
        missed = missed_mass(log_weights, ratios[:CHECKS])
        # Walkers from the prior may not be in equilibrium yet: that they find little where the flows have much means nothing.
        beyond = missed_mass(log_weights, ratios[CHECKS:])
        missed = beyond if beyond.real and beyond.log_ratio > 0 else missed
        heavy = pareto_k(log_weights.numpy()) > largest_pareto_k(len(log_weights))
        if (missed.real or heavy) and rounds < ROUNDS:
            pool.add(last, KEEP)
            continue
        own = torch.softmax(pool.log_weights(1.0), 0)
        log_ratio = proposal.log_prob(pool.x) - (pool.log_prior + pool.log_likelihood - log_mean(log_weights))
        thin = float(own[log_ratio < math.log(0.01)].sum())
        powers, efficiencies = np.array(record).T
        return FlowAscent(last.x, log_weights, pool, powers, efficiencies, thin, missed, climbed)
    raise ValueError(
        f"The likelihood is too steep for {n_first} particles: after {MAX_TEMPERATURES} temperatures its power is still {power:.2g}. "
        "Use more particles, or look for a likelihood that jumps."
    )


def _next_power(pool: Pool, power: float, wanted: float, stayed: int, efficiency: float) -> tuple[float, int]:
    """The power to go on to, at which the pool is still worth ``wanted`` points, and for how many stages it has been the same."""
    possible = 0.5 * float((pool.log_likelihood > -math.inf).sum())
    wanted = min(wanted, possible)
    if pool.ess(1.0) >= wanted:
        return 1.0, 0
    # One heavy point of an earlier temperature can hold down the pool's worth long after the flows have learned from it.
    learned = efficiency >= LEARNED
    if power > 0 and not learned and pool.ess(power) < wanted and stayed < _STAY:
        return power, stayed + 1
    # In logarithms: the first power may be 1e-8 and the last rise a factor of two.
    low, high = math.log(power) if power else -700.0, 0.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if pool.ess(math.exp(middle)) >= wanted else (low, middle)
    return min(1.0, max(math.exp(low), (_RISE if learned else _LEAST_RISE) * power)), 0


def _fit(flow: Flow, pool: Pool, power: float, walked: Known | None, n_draws: int, generator: torch.Generator) -> None:
    """Train on the pool's points, weighted for the power and for others near it; and as many that have walked."""
    weights = torch.softmax(pool.log_weights(power), 0)
    flow.train().fit_scaling(pool.x, weights=weights)
    if walked is None and _misfit(flow, pool, power, weights) < ENOUGH:
        return
    rows_from = torch.stack([torch.softmax(pool.log_weights(min(1.0, factor * power)), 0) for factor in POWERS]).mean(0)
    x, chance = pool.x, rows_from
    known = torch.stack([power * pool.log_likelihood + pool.log_prior, weights / rows_from], 1)
    held_out = torch.rand(len(x), generator=generator) < _HELD_OUT
    if walked is not None:
        n = len(walked.x)
        x = torch.cat([x, walked.x])
        chance = torch.cat([0.5 * chance, torch.full((n,), 0.5 / n, dtype=chance.dtype)])
        known = torch.cat([known, torch.stack([walked.log_prob, walked.share], 1)])
        chains = torch.rand(walked.n_chains, generator=generator) < _HELD_OUT  # a chain's positions are alike: all or none
        held_out = torch.cat([held_out, chains.repeat(n // walked.n_chains)])
    n_rows = min(4 * n_draws, 8000)
    chosen = [systematic(torch.where(side, chance, 0.0), n, generator) for side, n in ((~held_out, n_rows), (held_out, n_rows // 5))]
    rows, place = torch.cat(chosen).unique(return_inverse=True)
    epochs = max(5, _STEPS // max(1, round(n_rows / _BATCH)))
    with torch.enable_grad():
        train(
            flow,
            ArraySource(x[rows], known[rows], train_rows=place[:n_rows], validation_rows=place[n_rows:]),
            loss=known_density,
            batch_size=_BATCH,
            max_epochs=epochs,
            learning_rate=_RATE,
            patience=epochs,
            random_state=generator,
        )


def _misfit(flow: Flow, pool: Pool, power: float, weights: Tensor) -> float:
    """Standard deviation, over the weighted points, of the flow's log-density about the tempered posterior's."""
    rows = weights > 0
    misfit = flow.log_prob(pool.x[rows]).double() - power * pool.log_likelihood[rows] - pool.log_prior[rows]
    mean = (weights[rows] * misfit).sum()
    return float((weights[rows] * (misfit - mean).square()).sum().sqrt())


def _propose(path: TemperedPath, pool: Pool, proposal: FlowMixture, n: int, generator: torch.Generator) -> float:
    """Add draws to the pool; the effective share of their own weights."""
    x = proposal.sample(n, generator)
    part = Part(x, *path.evaluate(x), proposal.log_prob(x), path.power)
    pool.add(part, KEEP)
    return ess(part.log_prior + path.power * part.log_likelihood - part.log_proposal) / n


def _walk(path: TemperedPath, flow: Flow, start: Tensor, moves: int, generator: torch.Generator) -> Known:
    """Random walks in the flow's latent space: all their positions, move by move."""
    x, log_prob = latent_walk(path, flow, start, moves, generator)
    return Known(x, log_prob, torch.ones_like(log_prob), len(start))


def _last_sample(path: TemperedPath, proposal: FlowMixture, n: int, generator: torch.Generator) -> Part:
    """Draws of frozen flows, until ln Z is as precise as wanted."""
    parts, wanted = [], max(n, LEAST_DRAWS)
    while wanted > 0:
        x = proposal.sample(wanted, generator)
        parts.append(Part(x, *path.evaluate(x), proposal.log_prob(x), 1.0))
        seen = torch.cat([part.log_prior + part.log_likelihood - part.log_proposal for part in parts])
        share = max(ess(seen) / len(seen), 1e-6)
        wanted = min(math.ceil((1 / share - 1) / WANTED_ERROR**2), MOST_DRAWS * n) - len(seen)
        # No larger a step than what was seen: the share is itself uncertain.
        wanted = min(wanted, len(seen)) if wanted > 0.05 * len(seen) else 0
    joined = Pool(parts)
    return Part(joined.x, joined.log_prior, joined.log_likelihood, torch.cat([part.log_proposal for part in parts]), 1.0)
