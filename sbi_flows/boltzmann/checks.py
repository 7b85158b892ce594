"""Does the flow know every state? Chains from its own draws and from broad starts look for what it misses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.results import Reliability, WeightedSamples
from sbi_flows.samplers import HMC
from sbi_flows.samplers.missed_mass import Missed, missed_mass
from sbi_flows.samplers.tempered_path import systematic
from sbi_flows.targets import Target, unconstrained
from sbi_flows.weights import bridge, kish_ess

DRAWS, CHAINS, MOVES = 10_000, 1000, 30
# Of flows that are integrated, whose density costs a thousand times that of an energy, and how many places of a chain are looked at.
INTEGRATED_DRAWS, INTEGRATED_CHAINS, PLACES = 4000, 400, 3
THIN = math.log(100)  # a chain's place where the flow has less than a hundredth of the density is one it misses
THIN_SHARE = 0.01
LEAPFROGS = 8
INTEGRATED = ("cnf", "pair_flow", "particle_flow", "rigid_flow", "free_rigid_flow", "manifold_flow")
MOST_DRAWS, MOST_INTEGRATED = 200_000, 10_000  # that an estimate of a wanted error takes by itself
_BROAD = 200  # chains from broad starts


@dataclass(frozen=True)
class FitReport:
    """What a fit is worth, and what it took.

    Attributes
    ----------
    reverse_ess : float
        Effective share of the flow's own draws; it knows nothing of states that the flow never draws.
    forward_ess : float
        The same seen from configurations of the target (held-out data, or chains that went on from the draws): a state that the flow is
        thin for lowers it. Both are in (0, 1].
    missed_share : float
        Chains from broad starts that end in states of ordinary energy where the flow has less than a hundredth of the density.
    log_z, log_z_err : float
        By importance weights.
    n_evaluations : int
        Configurations at which the energy was evaluated in all, most with its gradient.
    seconds : float
    reliability : Reliability
    """

    reverse_ess: float
    forward_ess: float
    missed_share: float
    log_z: float
    log_z_err: float
    n_evaluations: int
    seconds: float
    reliability: Reliability = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"FitReport(ESS {self.reverse_ess:.1%} of own draws, {self.forward_ess:.1%} seen from the target, ln Z {self.log_z:.4f} +- "
            f"{self.log_z_err:.2g}, {self.n_evaluations} energies, {self.seconds:.0f} s)   {self.reliability}"
        )


class Checked(NamedTuple):
    """Draws, chains and what they say.

    Attributes
    ----------
    drawn : WeightedSamples
    rows : Tensor (m, d)
        Configurations of the target.
    ratios : Tensor (m,)
        ln(target / flow) there.
    forward_ess, missed_share : float
    missed : Missed or None
    unknown : Tensor (k, d)
        Where chains from broad starts ended and the flow hardly goes.
    """

    drawn: WeightedSamples
    rows: Tensor
    ratios: Tensor
    forward_ess: float
    missed_share: float
    missed: Missed | None
    unknown: Tensor


@torch.no_grad()
def weighted_draws(target: Target, flow: Flow, n: int, generator: torch.Generator) -> WeightedSamples:
    """``n`` draws of the flow and their log-weights.

    The density is taken at the very numbers that were drawn, rounding included, but for flows that are integrated: the solve that draws
    tells it as well as another would.
    """
    if is_integrated(flow):
        x, log_q = flow.sample_and_log_prob(n, generator=generator, dtype=torch.float64)
    else:
        x = flow.sample(n, generator=generator, dtype=torch.float64)
        log_q = flow.log_prob(x)
    log_weights = target.log_prob(x) - log_q.double()
    log_weights = torch.nan_to_num(log_weights, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
    return WeightedSamples(x.numpy(), log_weights.numpy(), target.names)


@torch.no_grad()
def chains_from(target: Target, rows: Tensor, n_steps: int, generator: torch.Generator) -> Tensor:
    """Hamiltonian chains at the target from ``rows (n, d)``: positions of the second half ``(n, steps, d)``."""
    space, kernel = unconstrained(target, rows), HMC(n_steps=LEAPFROGS, check=False)
    state = kernel.init(space.from_user(rows), space)
    seen = []
    for i in range(n_steps):
        state, info = kernel.step(state, space, generator)
        if i < n_steps // 2:
            state = kernel.adapt(state, info, space, (i + 1) / (n_steps // 2))
        else:
            seen.append(space.to_user(state.position)[0])
    return torch.stack(seen, 1)


def check(
    target: Target, flow: Flow, held_out: Tensor | None, bottoms: Tensor | None, generator: torch.Generator
) -> Checked:
    """Compare the flow with held-out data or chains, and with chains from broad starts.

    Parameters
    ----------
    target : Target
    flow : Flow
    held_out : Tensor (m, d) or None
        Draws of the target that it was not trained on; None lets chains go on from the flow's own draws.
    bottoms : Tensor (k, d) or None
        Broad starts.
    """
    slow = is_integrated(flow)
    drawn = weighted_draws(target, flow, INTEGRATED_DRAWS if slow else DRAWS, generator)
    log_weights = torch.from_numpy(drawn.log_weights)
    empty = torch.empty(0, target.features, dtype=torch.float64)
    if not bool((log_weights > -math.inf).any()):
        return Checked(drawn, empty, torch.empty(0), 0.0, 1.0, None, empty)
    missed = None
    if held_out is None:
        start = systematic(torch.softmax(log_weights, 0), INTEGRATED_CHAINS if slow else CHAINS, generator)
        path = chains_from(target, torch.from_numpy(drawn.samples)[start], MOVES, generator)
        if slow:
            every = path.shape[1] // PLACES
            path = path[:, every - 1 :: every]
        steps = path.shape[1]
        along = _ratios(target, flow, path.reshape(-1, target.features)).reshape(-1, steps)
        missed = missed_mass(log_weights, along)
        rows, ratios = path[:, -1], along[:, -1]
    else:
        rows, ratios = held_out, _ratios(target, flow, held_out)
    log_z = bridge(ratios.numpy(), drawn.log_weights)[0]
    forward = float(torch.exp(log_z - torch.logsumexp(ratios, 0) + math.log(len(ratios))))
    unknown = empty if bottoms is None else _unknown(target, flow, drawn, bottoms, log_z, generator)
    share = len(unknown) / min(_BROAD, len(bottoms)) if bottoms is not None else 0.0
    return Checked(drawn, rows, ratios, min(forward, 1.0), share, missed, unknown)


def _ratios(target: Target, flow: Flow, x: Tensor) -> Tensor:
    with torch.no_grad():
        return target.log_prob(x) - flow.log_prob(x).double()


def _unknown(target: Target, flow: Flow, drawn: WeightedSamples, bottoms: Tensor, log_z: float, generator) -> Tensor:
    """Ends of chains from broad starts that are no rarer in energy than draws are, where the flow is thin."""
    some = bottoms[torch.randperm(len(bottoms), generator=generator)[:_BROAD]]
    ends = chains_from(target, some, MOVES, generator)[:, -1]
    index = np.argsort(drawn.log_weights)[-len(drawn.log_weights) // 2 :]
    ordinary = target.log_prob(ends) > target.log_prob(torch.from_numpy(drawn.samples[index])).quantile(_RARE)
    # A flow that is rough everywhere is thin here and there; its own weights know of that.
    thin = max(THIN, float(np.quantile(drawn.log_weights, 1 - _RARE) - log_z) + THIN)
    return ends[ordinary & (_ratios(target, flow, ends) - log_z > thin)]


def worth(target: Target, flow: Flow, held_out: Tensor, n: int, generator: torch.Generator) -> float:
    """The lesser of the effective shares seen from ``n`` draws and from ``held_out``; 0 where the flow has broken."""
    drawn = weighted_draws(target, flow, n, generator)
    ratios = _ratios(target, flow, held_out)
    if not np.isfinite(drawn.log_weights).any() or not bool(torch.isfinite(ratios).any()):
        return 0.0
    finite = ratios[torch.isfinite(ratios)]
    # E_p[q / p] E_p[p / q] is one where both agree, whatever Z is.
    forward = 2 * math.log(len(finite)) - float(torch.logsumexp(finite, 0) + torch.logsumexp(-finite, 0))
    return min(kish_ess(drawn.log_weights) / n, math.exp(min(forward, 0.0)))


_RARE = 0.01


def is_integrated(flow: Flow) -> bool:
    """Whether a density of the flow is the solution of a differential equation."""
    return flow.spec.get("architecture") in INTEGRATED


def most_draws(flow: Flow) -> int:
    """Draws that are taken where none are asked for."""
    return MOST_INTEGRATED if is_integrated(flow) else MOST_DRAWS


def verdict(checked: Checked, history_reasons: list[str], notes: list[str]) -> Reliability:
    """What the checks say, in words."""
    reasons = list(history_reasons)
    own = kish_ess(checked.drawn.log_weights) / len(checked.drawn.log_weights)
    if len(checked.rows) == 0:
        reasons.append("none of the flow's draws has a finite energy: train longer, or give configurations, fit(X)")
        return Reliability.from_reasons(reasons, notes)
    reasons += [text for text in checked.drawn.reliability.reasons if text not in reasons]
    if checked.missed is not None and checked.missed.real:
        reasons.append(
            f"chains that go on from the draws disagree with their weights: ln Z would be {checked.missed.log_ratio:+.2g} +- "
            f"{checked.missed.error:.1g} from the one given, or further. Fit with more particles or longer"
        )
    if checked.forward_ess < 0.2 * own:
        reasons.append(
            f"seen from the target the effective share is {checked.forward_ess:.1%}, from the flow's own draws {own:.1%}: the flow is thin "
            "for some states (mode collapse). Fit with more particles or longer, or give configurations of all states, fit(X)"
        )
    if checked.missed_share > THIN_SHARE:
        reasons.append(
            f"{checked.missed_share:.0%} of the chains from broad starts end in states of ordinary energy where the flow has less than a "
            "hundredth of the density: it misses a mode. Fit with more particles, or give start= a wider one"
        )
    return Reliability.from_reasons(reasons, notes)
