"""The posterior by ``FlowSampler`` in place of emcee, in the same record."""

from __future__ import annotations

import dataclasses

import numpy as np

from sbi_flows._random import RandomState
from sbi_flows.flow_sampling import FlowSampler
from sbi_flows.physics.pta.reference import ReferenceRun
from sbi_flows.physics.pta.target import FreeSpectrumTarget
from sbi_flows.results import Evidence


def run_flow_sampler(
    target: FreeSpectrumTarget, *, min_ess: float, max_draws: int, random_state: RandomState = None
) -> tuple[ReferenceRun, Evidence]:
    """Sample a target with :class:`sbi_flows.FlowSampler`, and its evidence on the way.

    Parameters
    ----------
    target : FreeSpectrumTarget
    min_ess : float
        Effective size that every parameter should have.
    max_draws : int
        Chains are thinned to about as many.
    random_state : int or generator, optional

    Returns
    -------
    ReferenceRun
        Its ``n_evaluations`` includes what the evidence took.
    Evidence
    """
    # "mixed" rather than "auto": the evidence needs a flow in any case, and a choice by measured seconds would not repeat to the bit.
    sampler = FlowSampler(
        target.log_likelihood, target.prior, names=target.names, n_effective=int(min_ess), method="mixed", random_state=random_state
    ).fit()
    result = sampler.evidence()
    report, chains = sampler.report_, sampler.chains_
    n_chains, n_draws, _ = chains.samples.shape
    thin = max(1, -(-n_chains * n_draws // (2 * max_draws)))
    log_posterior = chains.log_posterior
    thinned = dataclasses.replace(
        chains,
        samples=np.ascontiguousarray(chains.samples[:, ::thin]),
        log_posterior=None if log_posterior is None else log_posterior[:, ::thin].copy(),
        log_likelihood=None,
        stats={},
    )
    run = ReferenceRun(
        chains=thinned,
        tau=np.maximum(n_chains * n_draws / report.ess_bulk, 1.0),
        ess=report.ess,
        acceptance=float(chains.stats["acceptance"].mean()),
        n_steps=n_draws,
        n_burn_in=0,
        thin=thin,
        n_evaluations=report.n_evaluations,
        reliability=report.reliability,
    )
    return run, result
