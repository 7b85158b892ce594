"""A Markov kernel for the timing likelihood: sweeps over sources and pulsars, one at a time, under the likelihood without correlations.

Given the source, pulsars without correlations are independent, so each one's noise is moved and accepted by itself, all at once. What the
correlations change is accepted or not at the end of some sweeps, by the ratio of the two likelihoods.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows._validation import positive
from sbi_flows.physics.pta.timing import OWN, TimingTarget
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.samplers.kernel import Info, metropolis
from sbi_flows.targets import Target, unconstrained

_FRESH = 0.2  # of a pulsar's moves are draws of the prior, which cross the plateau of noise too faint to matter
_WIDE, _WIDER = 0.2, 5.0  # share of a source's moves that are wider, and by how much
_WANTED = 0.35  # acceptance of a pulsar's local moves
_GAIN = 0.2
_FIRST = 0.15  # of the prior's range, before anything is learned
_EDGE = 1e-12


class Moves:
    """Random walks under the likelihood without correlations to some power, on rows ``x (n, w + 2 p)`` that are uniform under the prior.

    Parameters
    ----------
    target : TimingTarget
    """

    def __init__(self, target: TimingTarget):
        self.target = target
        self.width = target.model.prior.features
        self.features = target.features
        self._cube = Cube(target, self.width)
        self._low, high = (torch.tensor([entry[side] for entry in OWN] * target.n_pulsars, dtype=torch.float64) for side in (1, 2))
        self._span = high - self._low

    def theta(self, x: Tensor) -> Tensor:
        """``x (n, d)`` to the target's parameters."""
        return self._cube.to_user(torch.cat([x[:, : self.width], self._low + self._span * x[:, self.width :]], dim=1))

    def unit(self, theta: Tensor) -> Tensor:
        """The inverse of :meth:`theta`, kept off the edges."""
        rows = self._cube.from_user(theta)
        return torch.cat([rows[:, : self.width], (rows[:, self.width :] - self._low) / self._span], dim=1).clamp(_EDGE, 1 - _EDGE)

    def apart(self, x: Tensor) -> Tensor:
        """ln L of each pulsar without correlations, ``(n, p)``."""
        with torch.no_grad():
            return self.target.log_likelihood_apart(self.theta(x))

    def own(self, x: Tensor, apart: Tensor, step: Tensor, generator: torch.Generator, power: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Every pulsar's noise moved once with steps ``(p,)``: ``x``, its ``apart``, and the share of local moves accepted ``(p,)``."""
        n, p, width = len(x), self.target.n_pulsars, self.width
        old = x[:, width:].unflatten(1, (p, 2))
        near = old + step[:, None] * randn((n, p, 2), generator, dtype=torch.float64)
        fresh = rand((n, p), generator, dtype=torch.float64) < _FRESH
        proposed = torch.where(fresh[..., None], rand((n, p, 2), generator, dtype=torch.float64), near)
        inside = ((proposed > 0) & (proposed < 1)).all(-1)
        values = self.apart(torch.cat([x[:, :width], torch.where(inside[..., None], proposed, old).flatten(1)], dim=1))
        taken = inside & (rand((n, p), generator, dtype=torch.float64).log() < power * (values - apart))
        share = (taken & ~fresh).sum(0) / (~fresh).sum(0).clamp(min=1)
        own = torch.where(taken[..., None], proposed, old)
        return torch.cat([x[:, :width], own.flatten(1)], dim=1), torch.where(taken, values, apart), share

    def source(self, x: Tensor, apart: Tensor, factor: Tensor, generator: torch.Generator, power: float = 1.0) -> tuple[Tensor, Tensor]:
        """The source's parameters moved once, together, by steps of covariance ``factor factor'``: ``x`` and its ``apart``."""
        n, width = len(x), self.width
        wide = 1 + (_WIDER - 1) * (rand((n, 1), generator, dtype=torch.float64) < _WIDE)
        proposed = x[:, :width] + wide * (randn((n, width), generator, dtype=torch.float64) @ factor.mT)
        inside = ((proposed > 0) & (proposed < 1)).all(-1)
        moved = torch.cat([torch.where(inside[:, None], proposed, x[:, :width]), x[:, width:]], dim=1)
        values = self.apart(moved)
        taken = inside & (rand((n,), generator, dtype=torch.float64).log() < power * (values - apart).sum(1))
        return torch.where(taken[:, None], moved, x), torch.where(taken[:, None], values, apart)

    def first_steps(self) -> Tensor:
        """For pulsars of which nothing is known, ``(p,)``."""
        return torch.full((self.target.n_pulsars,), _FIRST, dtype=torch.float64)

    def factor(self, x: Tensor) -> Tensor:
        """Steps of the source from the spread of rows, ``(w, w)``."""
        centred = x[:, : self.width] - x[:, : self.width].mean(0)
        covariance = centred.mT @ centred / len(centred) + 1e-8 * torch.eye(self.width, dtype=torch.float64)
        return 1.2 / math.sqrt(self.width) * torch.linalg.cholesky(covariance)


def better_steps(step: Tensor, share: Tensor) -> Tensor:
    """Longer where more than :data:`_WANTED` of the local moves are accepted, shorter where fewer are."""
    return (step * torch.exp(_GAIN * (share - _WANTED))).clamp(max=1.0)


class SweepState(NamedTuple):
    """Positions and what warm-up has learned.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob : Tensor (n,)
    step, share : Tensor (p,)
        Of each pulsar's moves, and how many of them were accepted lately.
    factor : Tensor (w, w)
        Of the source's.
    """

    position: Tensor
    log_prob: Tensor
    step: Tensor
    share: Tensor
    factor: Tensor


class PulsarSweeps:
    """A kernel for :class:`TimingTarget`: sweeps without correlations, whose ends are accepted by the whole likelihood.

    A step costs one evaluation of the likelihood, and 2 ``sweeps + 2`` of that without correlations, a quarter as dear each, which are not
    counted as evaluations. It leaves any density of the target's parameters invariant, also a tempered one, and is at its best for its own.

    Parameters
    ----------
    target : TimingTarget
    sweeps : int

    Examples
    --------
    >>> from sbi_flows.physics.pta import synthetic_pulsars, timing_likelihood
    >>> from sbi_flows.samplers import run_chains
    >>> target = timing_likelihood(synthetic_pulsars(2, random_state=0))
    >>> start = target.prior.sample(16, torch.Generator().manual_seed(0))
    >>> run_chains(PulsarSweeps(target), target, start, n_steps=20, n_warmup=20, random_state=0).samples.shape
    (16, 20, 6)

    References
    ----------
    Liu 2001, "Monte Carlo Strategies in Scientific Computing", section 9.4.3 (surrogate transitions); Christen & Fox 2005, "Markov chain
    Monte Carlo using an approximation", J. Comput. Graph. Statist. 14.
    """

    def __init__(self, target: TimingTarget, *, sweeps: int = 5):
        if not isinstance(target, TimingTarget):
            raise TypeError(f"Expected a target that timing_likelihood made; got a {type(target).__name__}.")
        self.sweeps = int(positive("sweeps", sweeps, integer=True))
        self._moves, self._prior, self._space = Moves(target), target.prior, unconstrained(target)

    def init(self, x: Tensor, target: Target) -> SweepState:
        unit = self._moves.unit(self._space.to_user(x)[0])
        step = self._moves.first_steps()
        return SweepState(x, target.log_prob(x), step, torch.full_like(step, _WANTED), self._moves.factor(unit))

    def step(self, state: SweepState, target: Target, generator: torch.Generator) -> tuple[SweepState, Info]:
        moves = self._moves
        theta, log_det = self._space.to_user(state.position)
        x = moves.unit(theta)
        before = apart = moves.apart(x)
        x, apart, share = moves.own(x, apart, state.step, generator)
        for _ in range(self.sweeps):  # the same forward and back, as a surrogate must be
            x, apart = moves.source(x, apart, state.factor, generator)
            x, apart, share = moves.own(x, apart, state.step, generator)
        proposed = moves.theta(x)
        position = self._space.from_user(proposed)
        log_prob = target.log_prob(position)
        easier = apart.sum(1) + self._prior.log_prob(proposed) + self._space.to_user(position)[1]
        harder = before.sum(1) + self._prior.log_prob(theta) + log_det
        info = metropolis((log_prob - easier) - (state.log_prob - harder), generator)
        return state._replace(
            position=torch.where(info.accepted[:, None], position, state.position),
            log_prob=torch.where(info.accepted, log_prob, state.log_prob),
            share=share,
        ), info

    def adapt(self, state: SweepState, info: Info, target: Target, done: float) -> SweepState:
        now = self._moves.factor(self._moves.unit(self._space.to_user(state.position)[0]))
        factor = torch.lerp(state.factor, now, _GAIN) if bool(torch.isfinite(now).all()) else state.factor
        return state._replace(step=better_steps(state.step, state.share), factor=factor)

    def relocate(self, state: SweepState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[SweepState, Tensor]:
        return state._replace(position=x, log_prob=log_prob), torch.zeros(len(x), dtype=torch.int64)
