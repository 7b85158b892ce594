"""The local kernel in the latent space of a flow that straightens the density, flow and chains taking turns to improve each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.bijections.affine import Affine
from sbi_flows.bijections.base import Chain
from sbi_flows.bijections.coupling import Coupling
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import StandardNormal
from sbi_flows.flow_sampling.counting import CountedTarget
from sbi_flows.flow_sampling.fitting import ProposalFit
from sbi_flows.flow_sampling.walk import Walk
from sbi_flows.flow_sampling.worth import effective_size
from sbi_flows.flows import Flow
from sbi_flows.samplers import Kernel
from sbi_flows.targets import pulled_back

_ROUNDS = 6
_TRAINING = 400  # optimiser steps of each round
_WARMUP, _WATCHED = 80, 60  # steps of the kernel a round
_GAIN = 1.1  # factor by which a round must raise draws an evaluation for another to follow
_WORTHWHILE = 0.05  # nats a row, beyond a normal, that leaders must bring
_BINS = 8
_SHARE = 0.5  # of the best leader's information that makes another column a leader
_NARROW = 40  # draws a slice within which a leader is taken to be constant
_HIDDEN = (32, 32)


class Straightened(NamedTuple):
    """Chains in the latent space, and what a step there is worth.

    Attributes
    ----------
    walk : Walk
    ess_a_step, rows_a_step, seconds_a_step : float
        Independent draws, evaluations and seconds, all chains together.
    training_steps : int
    rounds : int
        Turns of training and walking there were.
    led_by : tuple of int
        Columns that the flow transforms the others by; empty for a flow of the general kind.
    """

    walk: Walk
    ess_a_step: float
    rows_a_step: float
    seconds_a_step: float
    training_steps: int
    rounds: int
    led_by: tuple[int, ...]

    @property
    def worth(self) -> float:
        """Independent draws an evaluation."""
        return self.ess_a_step / self.rows_a_step


def straightened(
    target: CountedTarget, kernel: Kernel, draws: Tensor, position: Tensor, generator: torch.Generator, n_rounds: int | None = None
) -> Straightened:
    """Train a flow on draws, walk in its latent space, train it on what the walk drew, until draws an evaluation hardly rise.

    Parameters
    ----------
    target : CountedTarget
    kernel : Kernel
        One that follows gradients.
    draws : Tensor (chain, draw, d)
        In the user's parameters, of a kernel that may have been slow: the next round's are better.
    position : Tensor (n, d)
        Where chains go on.
    generator : torch.Generator
    n_rounds : int, optional
        Exactly so many, whatever they bring; else as many as pay.
    """
    fit, led_by = _fit(draws, target, generator)
    best, draws = _turn(target, kernel, fit, position, generator, led_by)
    for turn in range(1, n_rounds or _ROUNDS):
        fit, led_by = _better_fit(fit, led_by, draws, target, generator)
        now, draws = _turn(target, kernel, fit, best.walk.position, generator, led_by)
        gained = now.worth > _GAIN * best.worth
        best = (now if now.worth > best.worth else best)._replace(rounds=turn + 1, training_steps=fit.n_steps)
        if not gained and n_rounds is None:
            break
    return best


def _turn(
    target: CountedTarget, kernel: Kernel, fit: ProposalFit, position: Tensor, generator: torch.Generator, led_by: tuple[int, ...]
) -> tuple[Straightened, Tensor]:
    """Chains warmed up behind the flow as it is, and the draws they made, in the user's parameters."""
    walk = Walk(kernel, pulled_back(target, fit.proposal.flows[0]), position, generator)
    walk.warm_up(_WARMUP)
    before = target.ledger.n_evaluations
    drawn = walk.draw(_WATCHED)
    rows = (target.ledger.n_evaluations - before) / _WATCHED
    found = Straightened(walk, effective_size(drawn.position) / _WATCHED, rows, drawn.seconds_a_step, fit.n_steps, 1, led_by)
    return found, walk.to_user(drawn.position)[0]


def _better_fit(
    fit: ProposalFit, led_by: tuple[int, ...], draws: Tensor, target: CountedTarget, generator: torch.Generator
) -> tuple[ProposalFit, tuple[int, ...]]:
    """A flow made for these draws, or the one before trained further on them, whichever starts out better on those held out.

    A flow's scaling is that of the draws it was made for, and the first ones may have come from far away.
    """
    afresh, leads = _fit(draws, target, generator)
    held_out = afresh.held_out
    if float(afresh.proposal.log_prob(held_out).mean()) > float(fit.proposal.log_prob(held_out).mean()):
        afresh.n_steps += fit.n_steps
        return afresh, leads
    fit.train(_TRAINING, [draws])
    return fit, led_by


def _fit(draws: Tensor, target: CountedTarget, generator: torch.Generator) -> tuple[ProposalFit, tuple[int, ...]]:
    """A flow of leaders where they bring something, else one of the general kind; trained once."""
    columns = leaders(draws.flatten(0, 1), target.support)
    if columns:
        flow = led_flow(draws.flatten(0, 1), target.support, columns, generator)
        fit = ProposalFit([draws], target.support, generator, flows=[flow])
        if fit.train(_TRAINING) > _WORTHWHILE:
            return fit, tuple(columns)
    fit = ProposalFit([draws], target.support, generator)
    fit.train(_TRAINING)
    return fit, ()


def leaders(x: Tensor, support) -> list[int]:
    """Columns that tell most of the mean and the spread of the others; none among angles.

    What column j tells of column i is the mutual information they would have if i were normal within each of eight slices of j: half the
    log of i's variance less the mean of that in the slices. In a hierarchical density the parameters of the upper level lead. A column
    joins them by what it tells beyond those that lead already: each of those that are led tells of its leader, and so of all the others.

    Parameters
    ----------
    x : Tensor (n, d)
    support : list
        As for :class:`sbi_flows.FlowDensity`.

    Examples
    --------
    >>> x = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)).double()
    >>> x[:, [0, 1, 2, 4]] *= (x[:, 3:4] / 2).exp()
    >>> leaders(x, None)
    [3]
    """
    d = x.shape[1]
    if d < 2 or any(column.kind == "circular" for column in parse_support(support, d)):
        return []
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-300)
    found: list[int] = []
    enough = 0.0
    while len(found) < max(1, d // 2):
        told = _told(x, found)
        best = int(told.argmax())
        if told[best] <= enough:
            break
        found.append(best)
        enough = max(enough, _SHARE * float(told[best]))
        x = _without(x, best)
    return sorted(found)


def _told(x: Tensor, found: list[int]) -> Tensor:
    """What each column tells of the others in nats, ``(d,)``; those found already neither tell nor are told of."""
    n, d = x.shape
    told = torch.full((d,), -torch.inf, dtype=x.dtype)
    slices = torch.arange(n) * _BINS // n
    for j in set(range(d)) - set(found):
        ordered = x[x[:, j].argsort()]
        inside = torch.stack([ordered[slices == b].var(0, correction=0) for b in range(_BINS)])
        gain = 0.5 * x.var(0, correction=0).log() - 0.5 * inside.clamp(min=1e-12).log().mean(0)
        gain[[j, *found]] = 0.0
        told[j] = gain.sum()
    return told


def _without(x: Tensor, j: int) -> Tensor:
    """``x`` with the other columns standardised within narrow slices of column j, so that j tells nothing of them any more."""
    n = len(x)
    order = x[:, j].argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(n)
    slices = place // _NARROW
    count = torch.bincount(slices).to(x.dtype)[:, None]
    mean = torch.zeros(len(count), x.shape[1], dtype=x.dtype).index_add_(0, slices, x) / count
    centred = x - mean[slices]
    variance = torch.zeros_like(mean).index_add_(0, slices, centred.square()) / count
    rest = centred / variance.clamp(min=1e-24).sqrt()[slices]
    rest[:, j] = x[:, j]
    return rest


@torch.no_grad()
def led_flow(x: Tensor, support, columns: list[int], generator: torch.Generator) -> Flow:
    """Shift and scale of all other columns as functions of the leading ``columns``: exact for a funnel, as quick backward as forward."""
    d = x.shape[1]
    others = [j for j in range(d) if j not in columns]
    coupling = Coupling(Affine(), d, active=others, hidden=_HIDDEN, generator=generator)
    return Flow(parse_support(support, d), Chain([coupling]), StandardNormal(d), scaling="standard").fit_scaling(x)
