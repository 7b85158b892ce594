"""The verdict on a run's draws: convergence, the modes' masses, and what could not have been seen."""

from __future__ import annotations

import dataclasses

import numpy as np

from sbi_flows.flow_sampling import starts
from sbi_flows.flow_sampling.report import ModeMasses, SamplerReport
from sbi_flows.flow_sampling.run import Run
from sbi_flows.results import Chains, Reliability
from sbi_flows.samplers import convergence, judge
from sbi_flows.samplers.record import remarks
from sbi_flows.weights import autocorrelation_time

_JUMPS = ("acceptance_IndependentMetropolis", "acceptance_PathProposal")
_RHAT_EXCESS = 0.05
_LARGEST_ERROR = 0.03  # of a mode's mass


def judged(run: Run) -> tuple[Chains, SamplerReport]:
    """The draws with their verdict, and the report."""
    chains = run.chains()
    # R-hat of chains in equilibrium is 1 + 1 / (2 m) where half a chain is worth m draws; as asked for, as stuck chains are worth few.
    max_rhat = 1 + max(_RHAT_EXCESS, 2 * run.settings.n_chains / run.settings.n_effective)
    found = judge(chains.samples, run.target, max_rhat=max_rhat)
    masses = _masses(run, chains)
    n_steps = sum(record.n_steps for record in run.records) * len(chains.samples)
    more, notes = remarks(chains.stats, sum(record.n_invalid for record in run.records), n_steps, ensemble=False)
    ess = float(np.nanmin(found.ess_bulk))
    reasons = [*found.reliability.reasons, *more, *run.against]
    if masses is not None:
        reasons += _mass_reasons(masses, max_rhat)
    if run.ledger.n_evaluations > run.settings.max_evaluations:
        reasons.append(f"max_evaluations={run.settings.max_evaluations} was reached before the draws were worth what was asked for")
    notes = [*notes, *run.notes, *run.target.notes, *_unseen(run, ess)]
    verdict = Reliability.from_reasons(reasons, notes)
    chains = dataclasses.replace(chains, reliability=verdict)
    jumps = [np.nanmean(values) for name, values in chains.stats.items() if name.startswith(_JUMPS)]
    report = SamplerReport(
        method=run.method,
        local_kernel=run.local_pilot.kernel,
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
    return ModeMasses(mass[order], np.array(error)[order], np.stack(position)[order], rhat)


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


def _unseen(run: Run, ess: float) -> list[str]:
    """What may be missing all the same."""
    least = starts.smallest_mass(ess)
    seen = f"of the modes that the starts found, one of less than {least:.1g} of the mass would most likely have no draw among these"
    if run.target.prior is not None:
        near = starts.smallest_mass(starts.PRIOR_DRAWS)
        looked = f"modes were looked for near {starts.PRIOR_DRAWS} draws of the prior"
        return [f"{looked}: one in less than {near:.1g} of it may be missed, however large its mass", seen]
    return [
        "without a prior, modes are found only near the starts, or where chains heated to temperature 64 came: others may be missed",
        seen,
    ]
