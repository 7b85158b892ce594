"""The verdict on a run's draws: convergence, the modes' masses, and what could not have been seen."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from torch import Tensor

from sbi_flows.flow_sampling import starts
from sbi_flows.flow_sampling.report import ModeMasses, SamplerReport
from sbi_flows.flow_sampling.run import Run
from sbi_flows.results import Chains, Evidence, Reliability
from sbi_flows.samplers import convergence, judge
from sbi_flows.samplers.record import hole_remarks, remarks
from sbi_flows.samplers.unseen import at_the_ends
from sbi_flows.weights import autocorrelation_time

_JUMPS = ("acceptance_IndependentMetropolis", "acceptance_PathProposal")
_RHAT_EXCESS = 0.05, 0.1  # wanted at most: where draws are many, and where a chain has the fewest that are ever made
_MUCH_LESS = 0.5  # of the effective size asked for
_LARGEST_ERROR = 0.03  # of a mode's mass
_NARROW = (
    "no flow looked for branches that narrow away from the bulk, as necks of funnels do: smc does, and method='mixed' from a prior of few "
    "columns"
)
_AGREE = 4.0  # standard errors


def judged(run: Run) -> tuple[Chains, SamplerReport]:
    """The draws with their verdict, and the report."""
    chains = run.chains()
    # R-hat of chains in equilibrium is 1 + 1 / (2 m) where half a chain is worth m draws; as asked for, as stuck chains are worth few.
    max_rhat = 1 + float(np.clip(2 * run.settings.n_chains / run.asked, *_RHAT_EXCESS))
    # In the target's own parameters: angles are angles there, of whatever they stand for in the results.
    points = run.points()[0]
    found = judge(points.numpy(), run.target, max_rhat=max_rhat)
    masses = _masses(run, chains)
    more, notes = remarks(chains.stats, *_invalid(run), ensemble=chains.ensemble)
    more += at_the_ends(run.space.from_user(points.flatten(0, 1)), run.space)
    ess = float(np.nanmin(found.ess_bulk))
    reasons = [*found.reliability.reasons, *more, *run.against]
    if masses is not None:
        confirmed = _as_flows_tell(run, masses)
        reasons += _mass_reasons(masses, math.inf if confirmed else max_rhat)
        if confirmed and not masses.rhat <= max_rhat:
            notes.append(
                f"chains pass rarely between modes (R-hat of their masses {masses.rhat:.3f}); independent draws of flows from the prior "
                "give the same"
            )
    jumps = [np.nanmean(values) for name, values in chains.stats.items() if name.startswith(_JUMPS)]
    if jumps and np.mean(jumps) < _MUCH_LESS * run.acceptance:
        notes.append(f"flow proposals are accepted with probability {np.mean(jumps):.2g}, where {run.acceptance:.2g} was foreseen")
    short, worth = _too_few(run, ess)
    reasons += short
    notes = [*notes, *worth, *run.notes, *run.target.notes, *_unseen(run, ess)]
    verdict = Reliability.from_reasons(reasons, notes)
    chains = dataclasses.replace(chains, reliability=verdict)
    report = SamplerReport(
        method=run.method,
        local_kernel=run.pilot.local.kernel,
        reasons=tuple(run.reasons),
        n_chains=chains.samples.shape[0],
        n_draws=chains.samples.shape[1],
        ess_bulk=found.ess_bulk,
        evaluations=dict(run.ledger.evaluations),
        gradients=dict(run.ledger.gradients),
        seconds=dict(run.ledger.seconds),
        target_seconds=dict(run.ledger.target_seconds),
        flow_acceptance=float(np.mean(jumps)) if jumps else float("nan"),
        training_steps=run.training_steps,
        modes=masses,
        reliability=verdict,
    )
    return chains, report


def _masses(run: Run, chains: Chains) -> ModeMasses | None:
    """Shares of the modes that the local kernel does not connect."""
    if run.modes.n == 1:
        return None
    labels = run.modes.label(run.positions()).numpy()
    n_modes = run.modes.n
    inside = np.stack([labels == k for k in range(n_modes)], axis=-1).astype(float)
    mass = inside.mean(axis=(0, 1))
    error = [np.sqrt(autocorrelation_time(inside[..., k]) * inside[..., k].var() / labels.size) for k in range(n_modes)]
    nowhere = np.full((1, chains.features), np.nan)
    position = [(chains.samples[labels == k] if mass[k] > 0 else nowhere).mean(0) for k in range(n_modes)]
    usable = [k for k in range(n_modes) if 0 < mass[k] < 1]
    rhat = float(convergence(inside[..., usable], [f"mode {k}" for k in usable]).rhat.max()) if usable else float("nan")
    order = np.argsort(-mass)
    return ModeMasses(mass[order], np.array(error)[order], np.stack(position)[order], rhat, chains.names)


def _as_flows_tell(run: Run, masses: ModeMasses) -> bool:
    """Whether flows that came from the prior, whose draws know nothing of the chains, give the modes the same masses.

    Chains that pass rarely into what is hardly a mode are in order then.
    """
    if run.ascended is None or run.by_mode is not None:
        return False
    known = _shares(run.modes.label(run.space.from_user(run.ascended.draws)), run.modes.n)
    error = np.hypot(masses.error.max(), np.sqrt(known * (1 - known) / len(run.ascended.draws)))
    return bool((np.abs(_shares(run.modes.label(run.positions()), run.modes.n) - known) <= _AGREE * error).all())


def _shares(labels: Tensor, n: int) -> np.ndarray:
    return labels.flatten().bincount(minlength=n).numpy() / labels.numel()


def _mass_reasons(masses: ModeMasses, max_rhat: float) -> list[str]:
    reasons = []
    if not masses.rhat <= max_rhat:
        reasons.append(
            f"chains disagree about the masses of the modes (R-hat {masses.rhat:.3f}, wanted {max_rhat:.3g}): they hardly pass from one "
            "mode to another, so that the masses are those of the starts"
        )
    worst = int(np.argmax(masses.error))
    if masses.error[worst] > _LARGEST_ERROR:
        reasons.append(f"the mass of mode {worst} is {masses.mass[worst]:.2f} +- {masses.error[worst]:.2f}: run longer")
    return reasons


def with_chains_verdict(found: Evidence, run: Run, chains: Reliability) -> Evidence:
    """An evidence with what its chains' verdict says against it: holes and mass cut off at ends count, the rest is noted."""
    missing, holes = hole_remarks(run.stats(), *_invalid(run))
    missing = [*missing, *at_the_ends(run.space.from_user(run.points()[0].flatten(0, 1)), run.space)]
    told = found.reliability
    others = [reason for reason in chains.reasons if reason not in missing]
    notes = [*told.notes, *holes, *(f"of the chains: {reason}" for reason in others)]
    return dataclasses.replace(found, reliability=Reliability.from_reasons([*told.reasons, *missing], notes))


def _invalid(run: Run) -> tuple[int, int]:
    """Proposals without a value, and steps, of all chains in the draws that count."""
    n_steps = sum(record.n_steps for record in run.records) * run.settings.n_chains
    return sum(record.n_invalid for record in run.records), n_steps


def _too_few(run: Run, ess: float) -> tuple[list[str], list[str]]:
    """Reasons and notes where the draws are worth less than was asked for."""
    wanted, spent, most = run.asked, run.ledger.n_evaluations, run.settings.max_evaluations
    if ess >= wanted:
        return [], []
    worth = f"the draws are worth {ess:.0f} independent ones by the slowest parameter; {wanted} were asked for"
    there = sum(record.log_prob.numel() for record in run.records)
    if wanted > there:
        worth += f", and as there are {there} draws in all, sample({wanted}) repeats some"
    if spent > most:
        return [f"{worth}. {spent} evaluations were spent, more than max_evaluations={most}: raise it"], []
    if ess < _MUCH_LESS * wanted:
        return [f"{worth}: run longer, by sample({wanted}), or ask for fewer"], []
    return [], [f"{worth}; sample({wanted}) runs on until they are"]


def _unseen(run: Run, ess: float) -> list[str]:
    """What may be missing all the same."""
    least = starts.smallest_mass(ess)
    seen = f"of the modes that the starts found, one of less than {least:.1g} of the mass would most likely have no draw among these"
    if run.target.prior is not None:
        if run.ascended is not None:
            n, looked = starts.PRIOR_DRAWS, f"modes were looked for near {starts.PRIOR_DRAWS} draws of the prior"
        else:
            n = starts.searchers(run.pilot.kernel, run.settings.n_chains)
            looked = f"modes were looked for by {n} chains from the prior"
        away = f"{looked}: one that is reached from less than {starts.smallest_mass(n):.1g} of it may be missed, however large its mass"
        return [away, *([] if run.ascended is not None else [_NARROW]), seen]
    return [
        "without a prior, modes are found only near the starts, or where chains heated to temperature 64 came: others may be missed",
        seen,
    ]
