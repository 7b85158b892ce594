"""From rough draws to draws with exact weights: sources by kernels, each pulsar's noise chosen among candidates by its own likelihood.

Given the background, pulsars are nearly independent: what ties them is its correlation, worth a few nats. So each pulsar's noise is
drawn by itself: of K candidates t_k ~ q, one is chosen by w_k = L(t_k) p(t_k) / q(t_k), with L of this pulsar alone. The weight of a draw
is p(source) / q(source) times the product of mean_k w_k, times L of all together over the product of L apart. Its mean is the evidence
for any q, and the more candidates, the less the number of pulsars costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import rand, randn, torch_generator
from sbi_flows._validation import positive
from sbi_flows.physics.pta.timing import OWN
from sbi_flows.physics.pta.timing_cube import Cube, cube_prior
from sbi_flows.results import Reliability, WeightedSamples
from sbi_flows.weights import kish_ess

_FROM_PRIOR = 0.1  # of the proposals, so that no weight is bounded by rough draws alone
_KERNELS = 400
_FREEDOM = 4.0  # of the kernels' t-distribution
_CELLS = (36, 14)  # of a pulsar's log10_A and gamma
_LOW = torch.tensor([low for _, low, _ in OWN], dtype=torch.float64)
_RANGE = torch.tensor([high - low for _, low, high in OWN], dtype=torch.float64)
_WIDTH = _RANGE / torch.tensor(_CELLS)  # of a cell
_EDGE = 1e-15  # of the cube, which the logistic scale does not reach
_AT_ONCE = 500
_FIRST = 2000  # draws of the prior, where there are no others
_MANY = 8  # times as many candidates for them
_LEARNED_FROM = 80  # effective draws
_LAST = 3  # rounds


@dataclass(frozen=True)
class Rounds:
    """How proposals are bettered: rounds of draws from which the next are made, and which have no part in the result.

    Attributes
    ----------
    draws : int
        Of a round.
    most : int
        Rounds, 0 for none.
    enough : float
        Effective share of a round's draws at which no other follows.
    candidates : int
        For each pulsar's noise in each draw, in the result as well.
    """

    draws: int = 1000
    most: int = 10
    enough: float = 0.1
    candidates: int = 8


def refined(
    cube: Cube,
    rows: np.ndarray | Tensor | None = None,
    *,
    n_samples: int = 10_000,
    rounds: Rounds | None = None,
    random_state: int = 0,
    source: Reliability | None = None,
) -> WeightedSamples:
    """Draws weighted by the exact likelihood, proposed from rough draws of its posterior, or from those of the prior.

    Parameters
    ----------
    cube : Cube
        The target, and the scale on which its source's prior is uniform.
    rows : array_like (m, cube.features), optional
        Rough draws, such as those of a network.
    n_samples : int
    rounds : Rounds, optional
    random_state : int
    source : Reliability, optional
        The verdict on the rough draws, which becomes part of the result's.

    Returns
    -------
    WeightedSamples
        In the target's parameters; ``log_z`` is the evidence.

    Raises
    ------
    ValueError
        For rows of another shape, or numbers of draws that are no positive integers.

    Examples
    --------
    >>> from sbi_flows.physics.pta import synthetic_pulsars, timing_likelihood
    >>> cube = Cube(timing_likelihood(synthetic_pulsars(1, random_state=0)), 2)
    >>> refined(cube, n_samples=200).samples.shape
    (200, 4)

    References
    ----------
    Andrieu & Roberts 2009, "The pseudo-marginal approach for efficient Monte Carlo computations", arXiv:0903.5480 (weights that are
    unbiased estimates); Hourihane et al. 2023, "Accurate characterization of the stochastic gravitational-wave background with pulsar
    timing arrays by likelihood reweighting", arXiv:2212.06276.
    """
    rounds = rounds or Rounds()
    for n in (n_samples, rounds.candidates, rounds.draws):
        positive("numbers of draws and candidates", n, integer=True)
    generator = torch_generator(random_state)
    if rows is None:
        rows = _first(cube, rounds, generator)
    rows = torch.as_tensor(rows, dtype=torch.float64)
    if rows.ndim != 2 or rows.shape[1] != cube.features or not len(rows):
        raise ValueError(f"Expected rough draws of shape (m, {cube.features}); got {tuple(rows.shape)}.")
    shares = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    learned: list[tuple[Tensor, Tensor]] = []
    for _ in range(rounds.most):
        learned.append(_drawn(cube, rows, shares, rounds.draws, rounds.candidates, generator))
        # Weights of all rounds are on one scale; early ones, of poor proposals, are few and large and would stay.
        rows = torch.cat([drawn for drawn, _ in learned[-_LAST:]])
        shares = _softened(torch.cat([log_weights for _, log_weights in learned[-_LAST:]]))
        if kish_ess(learned[-1][1].numpy()) >= rounds.enough * rounds.draws:
            break
    rows, log_weights = _drawn(cube, rows, shares, n_samples, rounds.candidates, generator)
    return WeightedSamples(cube.to_user(rows).numpy(), log_weights.numpy(), cube.target.names, source)


def _first(cube: Cube, rounds: Rounds, generator: torch.Generator) -> Tensor:
    """Rows to begin with: few draws of the prior, but many candidates, as most of these say nothing of what a source is worth."""
    rows = cube_prior(cube.width, cube.target.n_pulsars).sample(_FIRST, generator)
    shares = torch.full((_FIRST,), 1 / _FIRST, dtype=torch.float64)
    candidates = _MANY * rounds.candidates
    rows, log_weights = _drawn(cube, rows, shares, max(1, 3 * rounds.draws // _MANY), candidates, generator)
    return rows[torch.multinomial(_softened(log_weights), _FIRST, replacement=True, generator=generator)]


def _softened(log_weights: Tensor) -> Tensor:
    """Weights to learn from: to a power below one where few draws would carry all."""
    if not bool(torch.isfinite(log_weights).any()):
        return torch.full_like(log_weights, 1 / len(log_weights))
    power = 1.0
    while True:
        shares = torch.softmax(power * log_weights, 0)
        if 1 / float(shares.square().sum()) >= min(_LEARNED_FROM, len(shares) / 4):
            return shares
        power *= 0.8


def _drawn(
    cube: Cube, rows: Tensor, shares: Tensor, n_samples: int, candidates: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws ``(n, cube.features)`` and their log-weights, from proposals made of weighted rows."""
    kernels = _Kernels.fitted(rows[:, : cube.used], shares, generator)
    noise = _Noise.fitted(rows[:, cube.width :].unflatten(1, (-1, 2)), shares)
    sizes = torch.full((n_samples,), 1).split(_AT_ONCE)
    blocks = [_block(cube, kernels, noise, len(size), candidates, generator) for size in sizes]
    return torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks])


@torch.no_grad()
def _block(
    cube: Cube, kernels: _Kernels, noise: _Noise, n: int, candidates: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    target, p = cube.target, cube.target.n_pulsars
    u = kernels.sample(n, generator)
    own, log_q = noise.sample(n * candidates, generator)
    unused = u.new_full((n, cube.width - cube.used), 0.5)
    shared = torch.cat([u, unused], dim=1)
    repeated = torch.cat([shared.repeat_interleave(candidates, 0), own.flatten(1)], dim=1)
    apart = target.log_likelihood_apart(cube.to_user(repeated)).unflatten(0, (n, candidates))
    log_w = apart - float(_RANGE.log().sum()) - log_q.unflatten(0, (n, candidates))  # (n, K, p)
    log_mean = log_w.logsumexp(1) - math.log(candidates)
    lost = ~torch.isfinite(log_mean).all(1)
    shares = torch.softmax(torch.where(lost[:, None, None], 0.0, log_w), dim=1)
    picked = (shares.cumsum(1) < rand((n, 1, p), generator, dtype=torch.float64)).sum(1).clamp(max=candidates - 1)
    own = own.unflatten(0, (n, candidates)).gather(1, picked[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]
    rows = torch.cat([shared, own.flatten(1)], dim=1)
    tied = target.log_likelihood(cube.to_user(rows)) - apart.gather(1, picked[:, None])[:, 0].sum(-1)
    log_weight = log_mean.sum(-1) + tied - kernels.log_prob(u)
    return rows, torch.where(lost, -math.inf, log_weight)


@dataclass(frozen=True)
class _Kernels:
    """A density on the cube: t-distributions round some draws, on the logistic scale, beside the prior."""

    centres: Tensor
    cholesky: Tensor

    @classmethod
    def fitted(cls, u: Tensor, shares: Tensor, generator: torch.Generator) -> _Kernels:
        y = torch.logit(u.clamp(_EDGE, 1 - _EDGE))
        picked = torch.multinomial(shares, _KERNELS, replacement=True, generator=generator)
        mean = shares @ y
        covariance = (y - mean).mT @ ((y - mean) * shares[:, None])
        d = u.shape[1]
        # Scott's rule for the number of draws that the weights leave.
        effective = min(_KERNELS, 1 / float(shares.square().sum()))
        width = effective ** (-1 / (d + 4))
        floor = 1e-6 * torch.eye(d, dtype=torch.float64)
        return cls(y[picked], width * torch.linalg.cholesky(covariance + floor))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        d = self.centres.shape[1]
        which = torch.randint(len(self.centres), (n,), generator=generator)
        chi = randn((n, int(_FREEDOM)), generator, dtype=torch.float64).square().sum(1) / _FREEDOM
        y = self.centres[which] + (randn((n, d), generator, dtype=torch.float64) @ self.cholesky.T) / chi.sqrt()[:, None]
        prior = rand((n, d), generator, dtype=torch.float64)
        from_prior = rand((n, 1), generator, dtype=torch.float64) < _FROM_PRIOR
        return torch.where(from_prior, prior, torch.sigmoid(y)).clamp(_EDGE, 1 - _EDGE)

    def log_prob(self, u: Tensor) -> Tensor:
        d = u.shape[1]
        y = torch.logit(u)
        z = torch.linalg.solve_triangular(self.cholesky, (y[:, None] - self.centres).flatten(0, 1).T, upper=False)
        squared = z.square().sum(0).unflatten(0, (len(u), -1))
        log_norm = math.lgamma((_FREEDOM + d) / 2) - math.lgamma(_FREEDOM / 2) - d / 2 * math.log(_FREEDOM * math.pi)
        log_norm -= float(self.cholesky.diagonal().log().sum()) + math.log(len(self.centres))
        kernel = torch.logsumexp(-(_FREEDOM + d) / 2 * torch.log1p(squared / _FREEDOM), dim=1) + log_norm
        kernel = kernel - torch.log(u * (1 - u)).sum(1)
        return torch.logaddexp(kernel + math.log1p(-_FROM_PRIOR), torch.full_like(kernel, math.log(_FROM_PRIOR)))


@dataclass(frozen=True)
class _Noise:
    """A histogram of each pulsar's (log10_A, gamma), beside the prior: probabilities ``(p, cells)``."""

    probability: Tensor

    @classmethod
    def fitted(cls, own: Tensor, shares: Tensor) -> _Noise:
        cells = torch.tensor(_CELLS)
        place = ((own - _LOW) / _WIDTH).long().clamp(min=torch.zeros(2, dtype=torch.int64), max=cells - 1)
        p, n_cells = own.shape[1], math.prod(_CELLS)
        counts = own.new_zeros(p, n_cells).scatter_add(1, (place[..., 0] * _CELLS[1] + place[..., 1]).T, shares.expand(p, -1).contiguous())
        around = torch.nn.functional.avg_pool2d(counts.unflatten(1, _CELLS)[:, None], 3, 1, 1).flatten(1)
        blurred = counts + around
        return cls((1 - _FROM_PRIOR) * blurred / blurred.sum(1, keepdim=True) + _FROM_PRIOR / n_cells)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``(n, p, 2)`` and the log-density of each ``(n, p)``."""
        cell = torch.multinomial(self.probability, n, replacement=True, generator=generator).T
        corner = torch.stack([cell // _CELLS[1], cell % _CELLS[1]], dim=-1)
        own = _LOW + _WIDTH * (corner + rand((*cell.shape, 2), generator, dtype=torch.float64))
        return own, self.probability.log().T.gather(0, cell) - float(_WIDTH.log().sum())
