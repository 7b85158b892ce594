"""The fit of the density that proposes: one flow a separated mode, each starting as a normal or a mixture fitted to its draws."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, seed_from, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows.bijections.base import Bijection, Chain
from sbi_flows.bijections.elementwise import Elementwise
from sbi_flows.bijections.linear import LULinear
from sbi_flows.bijections.spline import CircularSpline, Spline
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import NormalMixture
from sbi_flows.flow_sampling.proposal import FlowProposal
from sbi_flows.flows import Flow, nsf
from sbi_flows.training import ArraySource, train

AUTOREGRESSIVE = 8  # columns up to which layers are autoregressive; beyond, couplings are as quick backward as forward
_COMPONENTS = (1, 4, 16)
_MARGINAL_BINS = 16
_BOUND, _MARGIN = 5.0, 1.2  # of their splines: standard deviations at least, and times the farthest draw
_ROWS_A_NUMBER = 20  # draws for each component and column, at least
_WORTHWHILE = 0.02  # nats a row by which a larger start must be better
_HELD_OUT = 8  # one chain in so many judges
_HOT = 0.25  # rows of the tempered density for each that the flow is fitted to
_BATCH = 512
_PEAK = 4e-3
_RAREST = 0.02  # acceptance that a point is given at least: a single one of 500 would decide for all


class Measured(NamedTuple):
    """What flow proposals are worth.

    Attributes
    ----------
    acceptance : float
        Mean, of chains in equilibrium.
    forgets : float
        Autocorrelation time in proposals. A chain at x waits for 1 / a(x) of them, so that it is the points where a flow is too thin that
        decide it; the few that are hardly ever left are for the draws to judge.
    shares : Tensor (m,)
        Of each flow's mode in the target, by importance weights.
    """

    acceptance: float
    forgets: float
    shares: Tensor


class ProposalFit:
    """The fit of a proposal to draws of each mode, taken further round by round.

    It starts as the normal or the mixture of the best held-out density, which already fits many posteriors; :meth:`train` adds to it
    what the flow can learn.

    Parameters
    ----------
    draws : sequence of Tensor (chain, draw, d)
        Of each mode, in the user's parameters. Whole chains are held out, because neighbours in a chain are nearly copies.
    support : list
        As for :class:`sbi_flows.FlowDensity`.
    random_state : int, generator or None
    hot : Tensor (n, d), optional
        Draws of a wider density that are joined to those of the first mode for training, a fifth of the whole at most.
    flows : sequence of Flow, optional
        To start from, one a mode, in place of a normal or a mixture.

    Attributes
    ----------
    proposal : FlowProposal
    n_steps : int
        Of the optimiser so far.
    """

    def __init__(
        self,
        draws: Sequence[Tensor],
        support,
        random_state: RandomState,
        *,
        hot: Tensor | None = None,
        flows: Sequence[Flow] | None = None,
    ):
        self._generator = torch_generator(seed_from(random_state))
        self.n_steps = 0
        self._hot = hot
        self.take(draws)
        if flows is None:
            with one_thread():
                flows = _best_start(self._x, self._train_rows, self._held_out, support, self._generator)
        self.proposal = FlowProposal(flows, _log_shares(draws))

    @property
    def held_out(self) -> Tensor:
        """Draws ``(n, d)`` it was not fitted to, of all modes alike."""
        return self._x[self._held_out.flatten()]

    def train(self, n_steps: int, draws: Sequence[Tensor] | None = None) -> float:
        """Train further, on new draws of each mode where given; the gain in mean held-out log-density, in nats."""
        if draws is not None:
            self.take(draws)
        # Copies: the round may turn out worse by what counts, and the proposal before it must still be there.
        flows = copy.deepcopy(self.proposal.flows)
        before = _score(flows, self._x, self._held_out)
        per_epoch = max(1, round(self._train_rows.shape[1] / _BATCH))
        with one_thread(), torch.enable_grad():
            for flow in flows:
                flow.train()
            history = train(
                flows,
                ArraySource(self._x, train_rows=self._train_rows, validation_rows=self._held_out),
                batch_size=_BATCH,
                max_epochs=max(1, n_steps // per_epoch),
                learning_rate=_PEAK,
                weight_decay=0.0,
                patience=max(3, n_steps // (2 * per_epoch)),
                random_state=seed_from(self._generator),
            )
        for flow in flows:
            flow.eval()
        self.n_steps += history.n_steps
        self.proposal = FlowProposal(flows, self.proposal.log_weights)
        return _score(flows, self._x, self._held_out) - before

    def take(self, draws: Sequence[Tensor]) -> None:
        """Training and held-out rows of each mode, ``(m, n)``, as many of one as of another."""
        train_rows, held_out, first = [], [], 0
        for part in draws:
            n_chains, n_draws, _ = part.shape
            index = first + torch.arange(n_chains * n_draws).view(n_chains, n_draws)
            chains = torch.randperm(n_chains, generator=self._generator)
            n_out = max(1, n_chains // _HELD_OUT) if n_chains > 1 else 0
            # A single chain has to be cut; its neighbours across the cut are the price.
            train_part = index[chains[n_out:]].flatten() if n_out else index[0, : n_draws - n_draws // _HELD_OUT]
            out_part = index[chains[:n_out]].flatten() if n_out else index[0, n_draws - n_draws // _HELD_OUT :]
            train_rows.append(train_part)
            held_out.append(out_part)
            first += n_chains * n_draws
        if self._hot is not None:
            n_hot = min(len(self._hot), int(_HOT * len(train_rows[0])))
            chosen = first + torch.randperm(len(self._hot), generator=self._generator)[:n_hot]
            train_rows[0] = torch.cat([train_rows[0], chosen])
        self._x = torch.cat([*(part.flatten(0, 1) for part in draws), *([] if self._hot is None else [self._hot])])
        self._train_rows = self._even(train_rows)
        self._held_out = self._even(held_out)

    def _even(self, rows: list[Tensor]) -> Tensor:
        """Index lists made equally long by repeating rows of the shorter ones."""
        longest = max(len(part) for part in rows)
        return torch.stack([_repeated(part, longest, self._generator) for part in rows])


def _repeated(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    more = torch.randint(len(rows), (n - len(rows),), generator=generator)
    return torch.cat([rows, rows[more]])


def _log_shares(draws: Sequence[Tensor]) -> Tensor:
    return torch.tensor([float(part.shape[0] * part.shape[1]) for part in draws]).log()


def _best_start(x: Tensor, train_rows: Tensor, held_out: Tensor, support, generator: torch.Generator) -> list[Flow]:
    """Untrained flows, one a mode, of one architecture: the scaling and the base under which held-out draws are most likely."""
    n = train_rows.shape[1]
    best: list[Flow] = []
    best_score = -np.inf
    for make in _starts(x, n, support, generator):
        flows = [make(x[rows]) for rows in train_rows]
        score = _score(flows, x, held_out)
        if not best or score > best_score + _WORTHWHILE:
            best, best_score = flows, score
    return best


def _starts(x: Tensor, n: int, support, generator: torch.Generator) -> Iterator[Callable[[Tensor], Flow]]:
    """From the simplest: normals and mixtures of normals, and the same after a spline a column.

    At an end of a parameter where the posterior does not fall to zero it lies farther out than a flow's splines reach, and few of the draws
    there are may show it: with few columns only the latter are tried.
    """
    d = x.shape[1]
    angles = [column.kind == "circular" for column in parse_support(support, d)]
    makes = [_start] if all(angles) else [_by_columns] if d <= AUTOREGRESSIVE else [_start, _by_columns]
    for make, scaling, components in itertools.product(makes, ("standard", "whiten") if d > 1 else ("standard",), _COMPONENTS):
        if components == 1 or (components * d * _ROWS_A_NUMBER <= n and not any(angles)):
            yield partial(make, support=support, scaling=scaling, components=components, generator=generator)


@torch.no_grad()
def _start(x: Tensor, support, scaling: str, components: int, generator: torch.Generator) -> Flow:
    """A flow that is its base, scaled to the draws."""
    return _base_fitted(_untrained(x.shape[1], support, scaling, _base(components), generator).fit_scaling(x), x, generator)


@torch.no_grad()
def _by_columns(x: Tensor, support, scaling: str, components: int, generator: torch.Generator) -> Flow:
    """The same after a spline a column, which makes the draws' marginals normal."""
    d = x.shape[1]
    columns = parse_support(support, d)
    on_line = [j for j, column in enumerate(columns) if column.kind != "circular"]
    rest = _untrained(d, support, "standard", _base(components), generator)
    flow = Flow(columns, rest.bijection, rest.base, scaling="standard").fit_scaling(x)
    scaled = flow.enter(x, None)[1]
    bound = max(_BOUND, _MARGIN * float(scaled[:, on_line].abs().max()))
    spline, circle = Spline(_MARGINAL_BINS, bound=bound), CircularSpline(_MARGINAL_BINS)
    marginals = Elementwise([spline if j in on_line else circle for j in range(d)], d).fit_quantiles(scaled)
    first: list[Bijection] = [marginals]
    if scaling == "whiten":
        first.append(LULinear(d, on_line).fit_whitening(marginals.forward_and_log_det(scaled)[0]))
    flow.bijection = Chain([*first, rest.bijection])
    return _base_fitted(flow, x, generator)


def _base(components: int):
    return "normal" if components == 1 else {"name": "mixture", "components": components}


def _base_fitted(flow: Flow, x: Tensor, generator: torch.Generator) -> Flow:
    if isinstance(flow.base, NormalMixture):
        flow.base.fit(flow.to_base(x)[0], generator=generator)
    return flow


def _untrained(d: int, support, scaling: str, base, generator: torch.Generator | None) -> Flow:
    small = d <= AUTOREGRESSIVE
    return nsf(
        d,
        layers=3 if small else 6,
        hidden=(32, 32) if small else (64, 64),
        autoregressive=small,
        support=support,
        base=base,
        scaling=scaling,
        generator=generator,
    )


def flow_prices(x: Tensor, support) -> tuple[float, float]:
    """Seconds to propose a row, and seconds a step of training, from an untrained flow at rows ``x (n, d)``."""
    flow = _untrained(x.shape[1], support, "standard", "normal", torch.Generator().manual_seed(0)).fit_scaling(x)
    rows = x[torch.arange(_BATCH) % len(x)]
    with one_thread(), torch.no_grad():
        forward = _seconds(lambda: flow.log_prob(rows))
        drawing = _seconds(lambda: flow.sample(_BATCH, generator=torch.Generator().manual_seed(0)))
    return (forward + drawing) / _BATCH, 4 * forward


def _seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """The median of a few calls after a first one, which pays for what later ones find done."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


@torch.no_grad()
def _score(flows: Sequence[Flow], x: Tensor, held_out: Tensor) -> float:
    """Mean log-density of the held-out draws of each mode."""
    return float(np.mean([float(flow.log_prob(x[rows]).double().mean()) for flow, rows in zip(flows, held_out, strict=True)]))


@torch.no_grad()
def expected_acceptance(
    log_prob: Callable[[Tensor], Tensor], proposal: FlowProposal, draws: Tensor, n: int, generator: torch.Generator
) -> Measured:
    """How proposals would do with chains in equilibrium.

    Parameters
    ----------
    log_prob : callable
        Of the target, in the user's parameters; evaluated at ``2 n`` points.
    proposal : FlowProposal
    draws : Tensor (k, d)
        Of the target, that the proposal was not fitted to; weighted here by nothing but their number.
    n : int
    generator : torch.Generator
    """
    at = draws[torch.randint(len(draws), (n,), generator=generator)]
    proposed = proposal.sample(n, generator=generator)
    here = log_prob(at) - proposal.log_prob(at)
    there = torch.nan_to_num(log_prob(proposed) - proposal.log_prob(proposed), nan=-torch.inf, posinf=-torch.inf)
    accepted = (there[None] - here[:, None]).clamp(max=0.0).exp().mean(1)
    weights = torch.softmax(there, 0) if bool((there > -torch.inf).any()) else torch.full_like(there, 1 / n)
    # A few huge weights say little of the shares: cut at sqrt(n) times their mean (Ionides 2008).
    weights = weights.clamp(max=n**-0.5)
    shares = torch.zeros(len(proposal.flows), dtype=weights.dtype).index_add_(0, proposal.label(proposed), weights)
    return Measured(float(accepted.mean()), float((2 / accepted.clamp(min=_RAREST) - 1).mean()), shares / shares.sum())
