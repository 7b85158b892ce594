"""Sequential Monte Carlo by flows: each temperature's flow proposes, what it proposed trains the next one's, and the last gives ln Z.

At each power of the likelihood a flow is fitted to all points so far, weighted for that power. Its draws are importance samples, which stay
in one weighted :class:`~sbi_flows.samplers.pool.Pool`. Where their weights were poor, random walks in the flow's latent space first spread
the few heavy points, and train the next flow; they carry no weight, as chains that miss a mode would claim that it is not there. At power
1 the flows are frozen, and ln Z is that of fresh draws, whose weights know nothing of the training: the estimate is unbiased however the
flows came about, and its error is that of independent draws.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.losses import known_density
from sbi_flows.samplers.pool import Pool, ess, log_mean
from sbi_flows.samplers.random_walk import RandomWalk
from sbi_flows.samplers.tempered_path import TemperedPath, systematic
from sbi_flows.targets import pulled_back
from sbi_flows.training import ArraySource, train

MAX_TEMPERATURES = 200
GOOD = 0.3  # effective share of a flow's draws from which on no walks are needed, and no more rounds at power 1
MOVES = 4  # latent steps of a quarter as many chains as there are draws: they cost as much as the draws
KEEP = 16  # components of the pool: older ones are so much hotter that their points weigh nothing
FLATTER = 0.5  # half the training rows are from this fraction of the power: what matters next may be rare now
ROUNDS = 6  # at power 1, at most
DEFENSIVE = 0.2  # of the last draws come from the flows before the last: where it is too thin, they are not
WANTED_ERROR = 0.02
LEAST_DRAWS = 2000  # of the last sample: fewer may all miss a corner of a percent of the mass where the flow is thin, and not know it
MOST_DRAWS = 20  # times n_draws, for the last importance sample
ENOUGH = 0.25  # misfit in nats below which training has nothing to gain: the flow of the last power, rescaled, will do
_STAY = 3  # times at one power while its weights are too poor to go on
_BATCH, _STEPS, _RATE, _HELD_OUT = 256, 250, 5e-3, 0.15


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
    """

    x: Tensor
    log_weights: Tensor
    pool: Pool
    powers: np.ndarray
    efficiencies: np.ndarray
    thin: float


class Known(NamedTuple):
    """Points near the tempered posterior, and its log-density there.

    Attributes
    ----------
    x : Tensor (n, d)
    log_prob : Tensor (n,)
    """

    x: Tensor
    log_prob: Tensor


@torch.no_grad()
def ascend_by_flows(path: TemperedPath, n_draws: int, n_first: int, flow: Flow, generator: torch.Generator) -> FlowAscent:
    """Draw ``n_draws`` points at each temperature; ``flow`` is trained in place.

    Raises
    ------
    ValueError
        If the likelihood is zero at all draws of the prior, or too steep.
    """
    x, log_likelihood = path.first_draws(n_first, generator)
    pool = Pool(x, path.log_prior(x), log_likelihood, lambda x, log_prior, log_likelihood: log_prior)
    power, stayed, efficiency, frozen = 0.0, 0, 1.0, None
    flows, record = [], []
    for _ in range(MAX_TEMPERATURES):
        power, stayed = _next_power(pool, power, n_draws, stayed)
        path.power = power
        walked = None
        if frozen is not None and efficiency < GOOD:
            walked = _walk(path, pool, frozen, n_draws // MOVES, generator)
        _fit(flow, pool, power, walked, n_draws, generator)
        frozen = copy.deepcopy(flow).eval()
        efficiency = _propose(path, pool, frozen, n_draws, generator)
        pool.forget(KEEP)
        record.append((power, efficiency))
        if power < 1:
            continue
        flows.append(frozen)
        if efficiency >= GOOD or len(flows) == ROUNDS:
            order = np.argsort([share for _, share in record[-len(flows) :]])
            log_weights, drawn, thin = _last_sample(path, pool, [flows[i] for i in order[-3:]], n_draws, generator)
            powers, efficiencies = np.array(record).T
            return FlowAscent(drawn, log_weights, pool, powers, efficiencies, thin)
    raise ValueError(
        f"The likelihood is too steep for {n_first} particles: after {MAX_TEMPERATURES} temperatures its power is still {power:.2g}. "
        "Use more particles, or look for a likelihood that jumps."
    )


def _next_power(pool: Pool, power: float, wanted: float, stayed: int) -> tuple[float, int]:
    """The power to go on to, at which the pool is still worth ``wanted`` points, and for how many stages it has been the same."""
    possible = 0.5 * float((pool.log_likelihood > -math.inf).sum())
    wanted = min(wanted, possible)
    if pool.ess(1.0) >= wanted:
        return 1.0, 0
    if power > 0 and pool.ess(power) < 0.5 * wanted and stayed < _STAY:
        return power, stayed + 1
    # In logarithms: the first power may be 1e-8 and the last rise a factor of two.
    low, high = math.log(power) if power else -700.0, 0.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if pool.ess(math.exp(middle)) >= wanted else (low, middle)
    return min(1.0, max(math.exp(low), 1.02 * power)), 0


def _fit(flow: Flow, pool: Pool, power: float, walked: Known | None, n_draws: int, generator: torch.Generator) -> None:
    """Train on the pool's points, weighted for the power, half of them more flatly; and as many that have walked."""
    weights = torch.softmax(pool.log_weights(power), 0)
    flow.train().fit_scaling(pool.x, weights=weights)
    if walked is None and _misfit(flow, pool, power, weights) < ENOUGH:
        return
    rows_from = 0.5 * (weights + torch.softmax(pool.log_weights(FLATTER * power), 0))
    x, chance = pool.x, rows_from
    known = torch.stack([power * pool.log_likelihood + pool.log_prior, weights / rows_from], 1)
    held_out = torch.rand(len(x), generator=generator) < _HELD_OUT
    if walked is not None:
        n = len(walked.x)
        x = torch.cat([x, walked.x])
        chance = torch.cat([0.5 * chance, torch.full((n,), 0.5 / n, dtype=chance.dtype)])
        known = torch.cat([known, torch.stack([walked.log_prob, torch.ones(n, dtype=known.dtype)], 1)])
        chains = torch.rand(n // MOVES, generator=generator) < _HELD_OUT  # a chain's positions are alike: all or none
        held_out = torch.cat([held_out, chains.repeat(MOVES)])
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


def _propose(path: TemperedPath, pool: Pool, flow: Flow, n: int, generator: torch.Generator) -> float:
    """Add draws of the flow to the pool; the effective share of their own weights."""
    x = flow.sample(n, generator=generator, dtype=torch.float64)
    log_prior, log_likelihood = path.evaluate(x)
    pool.add(x, log_prior, log_likelihood, lambda x, log_prior, log_likelihood: flow.log_prob(x).double())
    return ess(log_prior + path.power * log_likelihood - flow.log_prob(x).double()) / n


def _walk(path: TemperedPath, pool: Pool, flow: Flow, n_chains: int, generator: torch.Generator) -> Known:
    """Random walks in the flow's latent space, from points drawn by weight: all their positions."""
    start = pool.x[systematic(torch.softmax(pool.log_weights(path.power), 0), n_chains, generator)]
    space, kernel = pulled_back(path, flow), RandomWalk()
    state = kernel.init(space.from_user(start), space)
    state = state._replace(archive=state.position)
    rows, values = [], []
    for move in range(MOVES):
        state, info = kernel.step(state, space, generator)
        state = kernel.adapt(state, info, space, move / MOVES)
        user, log_det = space.to_user(state.position)
        rows.append(user)
        values.append(state.log_prob - log_det)
    return Known(torch.cat(rows), torch.cat(values))


def _last_sample(path: TemperedPath, pool: Pool, flows: list[Flow], n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Log-weights and draws of frozen flows, the best of them last, until ln Z is as precise as wanted; and the mass they miss."""
    others = len(flows) - 1
    shares = torch.tensor([DEFENSIVE / others] * others + [1 - DEFENSIVE] if others else [1.0], dtype=torch.float64)

    def mixture(x: Tensor) -> Tensor:
        return torch.logsumexp(torch.stack([flow.log_prob(x).double() for flow in flows]) + shares.log()[:, None], 0)

    rows, log_weights, wanted = [], [], max(n, LEAST_DRAWS)
    while wanted > 0:
        which = torch.multinomial(shares, wanted, replacement=True, generator=generator).bincount(minlength=len(flows))
        x = torch.cat([flow.sample(int(k), generator=generator, dtype=torch.float64) for flow, k in zip(flows, which, strict=True) if k])
        rows.append(x)
        log_weights.append(sum(path.evaluate(x)) - mixture(x))
        seen = torch.cat(log_weights)
        share = max(ess(seen) / len(seen), 1e-6)
        wanted = min(math.ceil((1 / share - 1) / WANTED_ERROR**2), MOST_DRAWS * n) - len(seen)
        # No larger a step than what was seen: the share is itself uncertain.
        wanted = min(wanted, len(seen)) if wanted > 0.05 * len(seen) else 0
    own = torch.softmax(pool.log_weights(1.0), 0)
    log_ratio = mixture(pool.x) - (pool.log_prior + pool.log_likelihood - log_mean(seen))
    thin = float(own[log_ratio < math.log(0.01)].sum())
    return seen, torch.cat(rows), thin
