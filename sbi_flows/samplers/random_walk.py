"""The adaptive random walk: needs nothing but the log-density."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows.samplers.kernel import Info, metropolis
from sbi_flows.targets import Target, circular_columns, wrap_angles

_LEARNING_DECAY = 0.6  # Robbins-Monro steps t^-0.6: their sum diverges, that of their squares converges
_PSEUDO_DRAWS = 10  # a column: how many draws the first covariance counts for, so that one chain does not collapse it
_JUMP_NOISE = 1e-2  # of the covariance's scale: without it differences of an archive reach only finitely many points


class RandomWalkState(NamedTuple):
    """Positions and what warm-up has learned; all chains share one proposal.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob : Tensor (n,)
    mean : Tensor (d,)
    covariance : Tensor (d, d)
    factor : Tensor (d, d)
        Cholesky factor of the covariance.
    log_scale : Tensor ()
        Log of the step relative to the covariance.
    weight : Tensor ()
        Draws behind the covariance.
    n_adaptations : Tensor ()
    archive : Tensor (m, d)
        Points whose differences are proposed as jumps; two equal points until warm-up has ended.
    """

    position: Tensor
    log_prob: Tensor
    mean: Tensor
    covariance: Tensor
    factor: Tensor
    log_scale: Tensor
    weight: Tensor
    n_adaptations: Tensor
    archive: Tensor


class RandomWalk:
    """Metropolis steps from a normal proposal whose covariance and scale are learned in warm-up from all chains together.

    A share of the proposals moves a chain by the difference of two positions that chains held at the end of warm-up. Where modes are
    separated such a difference leads from one to another; it is as likely as its opposite, so the acceptance rule stays the same.
    After warm-up nothing changes any more and the chains are independent of each other.

    Parameters
    ----------
    jumps : float
        Share of the proposals, in [0, 1), that are differences of positions; they need at least ten chains. Half of them halve the speed
        at worst; on the two-moons and SLCP benchmarks they gave 4 and 1.5 times the effective draws that a tenth of them gave.
    target_acceptance : float or "auto"
        The mean acceptance that warm-up aims at for the other proposals; "auto" is 0.44 in one dimension and 0.234 beyond four.

    Examples
    --------
    >>> from sbi_flows.samplers import run_chains
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
    >>> run_chains(RandomWalk(), target, torch.zeros(8, 2), n_steps=50, n_warmup=50, random_state=0).samples.shape
    (8, 50, 2)

    References
    ----------
    Andrieu & Thoms 2008, "A tutorial on adaptive MCMC", Statistics and Computing 18; ter Braak & Vrugt 2008, "Differential evolution
    Markov chain with snooker updater and fewer chains", Statistics and Computing 18 (jumps by differences of past positions).
    """

    def __init__(self, *, jumps: float = 0.5, target_acceptance: float | str = "auto"):
        if not 0 <= jumps < 1:
            raise ValueError(f"Expected jumps in [0, 1), a share of the proposals; got {jumps!r}.")
        if target_acceptance != "auto" and not (isinstance(target_acceptance, float) and 0 < target_acceptance < 1):
            raise ValueError(f"Expected target_acceptance in (0, 1) or 'auto'; got {target_acceptance!r}.")
        self.jumps = jumps
        self.target_acceptance = target_acceptance

    def init(self, x: Tensor, target: Target) -> RandomWalkState:
        d = target.features
        mean, covariance = _moments(x, x[0], circular_columns(target))
        if len(x) <= 2 * d or not bool((covariance.diagonal() > 0).all()):
            # Too few chains to say: their spread a column where there is any, else one.
            spread = covariance.diagonal()
            covariance = torch.diag(torch.where(spread > 0, spread, 1.0))
        return RandomWalkState(
            position=x,
            log_prob=target.log_prob(x),
            mean=mean,
            covariance=covariance,
            factor=_cholesky(covariance),
            log_scale=torch.tensor(math.log(2.38 / math.sqrt(d)), dtype=torch.float64),
            weight=torch.tensor(float(_PSEUDO_DRAWS * d), dtype=torch.float64),
            n_adaptations=torch.tensor(0.0, dtype=torch.float64),
            archive=x[:1].expand(2, d).clone(),
        )

    def step(self, state: RandomWalkState, target: Target, generator: torch.Generator) -> tuple[RandomWalkState, Info]:
        x = state.position
        circular = circular_columns(target)
        noise = randn(x.shape, generator, dtype=x.dtype) @ state.factor.T
        move = state.log_scale.exp() * noise
        if self.jumps and len(state.archive) > 2:
            pairs = torch.randint(len(state.archive), (2, len(x)), generator=generator)
            jump = state.archive[pairs[0]] - state.archive[pairs[1]] + _JUMP_NOISE * noise
            chosen = torch.rand(len(x), generator=generator) < self.jumps
            move = torch.where(chosen[:, None], jump, move)
        proposal = wrap_angles(x + move, circular)
        log_prob = target.log_prob(proposal)
        info = metropolis(log_prob - state.log_prob, generator)
        return state._replace(
            position=torch.where(info.accepted[:, None], proposal, x),
            log_prob=torch.where(info.accepted, log_prob, state.log_prob),
        ), info

    def adapt(self, state: RandomWalkState, info: Info, target: Target, done: float) -> RandomWalkState:
        n, d = state.position.shape
        t = state.n_adaptations + 1
        log_scale = state.log_scale + t**-_LEARNING_DECAY * (info.acceptance.mean() - self._wanted(d))
        mean, covariance = _moments(state.position, state.mean, circular_columns(target))
        # Four times the share of the new draws: weights then grow as time cubed, and the way in is forgotten.
        gain = min(1.0, 4 * n / (float(state.weight) + n))
        shift = wrap_angles((mean - state.mean)[None], circular_columns(target))[0]
        covariance = (1 - gain) * (state.covariance + gain * torch.outer(shift, shift)) + gain * covariance
        last = done >= 1 and self.jumps > 0 and n >= 10
        return state._replace(
            mean=state.mean + gain * shift,
            covariance=covariance,
            factor=_cholesky(covariance),
            log_scale=log_scale,
            weight=state.weight + n,
            n_adaptations=t,
            archive=state.position.clone() if last else state.archive,
        )

    def relocate(self, state: RandomWalkState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[RandomWalkState, Tensor]:
        return state._replace(position=x, log_prob=log_prob), torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def _wanted(self, d: int) -> float:
        if isinstance(self.target_acceptance, float):
            return self.target_acceptance
        # Optimal for normals: 0.44 for d = 1, falling to its limit (Gelman, Roberts & Gilks 1996).
        return {1: 0.44, 2: 0.35, 3: 0.3, 4: 0.27}.get(d, 0.234)


def _moments(x: Tensor, centre: Tensor, circular: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(d,)`` and covariance ``(d, d)`` of rows; angles are measured from ``centre``, so that the seam is far away."""
    away = wrap_angles(x - centre, circular)
    mean = away.mean(0)
    return centre + mean, (away - mean).T @ (away - mean) / len(x)


def _cholesky(covariance: Tensor) -> Tensor:
    """Its factor, after a part in 1e8 of its diagonal is added; where that is not enough, the factor of the diagonal."""
    diagonal = covariance.diagonal()
    floor = diagonal.clamp(min=1e-12 * max(float(diagonal.max()), 1e-300))
    factor, failed = torch.linalg.cholesky_ex(covariance + torch.diag(1e-8 * floor))
    # As rows: a file gives them back so, and products of columns round otherwise.
    return torch.diag(floor.sqrt()) if int(failed) else factor.contiguous()
