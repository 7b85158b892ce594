"""The reference posterior: an emcee ensemble started from prior draws weighted by the likelihood, run until it has mixed."""

from __future__ import annotations

from dataclasses import dataclass

import emcee
import numpy as np

from sbi_flows._random import RandomState, numpy_generator, seed_from, torch_generator
from sbi_flows.physics.pta.target import FreeSpectrumTarget
from sbi_flows.results import Chains, Reliability
from sbi_flows.samplers import run_emcee
from sbi_flows.targets import from_log_prob, from_numpy

N_START = 200_000  # prior draws among which the walkers' start is chosen


@dataclass(frozen=True)
class ReferenceRun:
    """Chains with what is known of their convergence.

    Attributes
    ----------
    chains : Chains
        (walker, draw, d) after burn-in, thinned; with the log-posterior.
    tau : ndarray (d,)
        Integrated autocorrelation time of each parameter, in steps.
    ess : float
        Smallest effective sample size of a parameter, before thinning.
    acceptance : float
        Mean acceptance fraction.
    n_steps, n_burn_in, thin : int
    n_evaluations : int
        Of the log-posterior, all there were.
    reliability : Reliability
    """

    chains: Chains
    tau: np.ndarray
    ess: float
    acceptance: float
    n_steps: int
    n_burn_in: int
    thin: int
    n_evaluations: int
    reliability: Reliability


def run_reference(
    target: FreeSpectrumTarget,
    *,
    n_walkers: int = 500,
    min_ess: float = 20_000,
    n_burn_in: int = 500,
    min_steps: int = 1_500,
    max_steps: int = 12_000,
    max_draws: int = 40_000,
    random_state: RandomState = None,
) -> ReferenceRun:
    """Sample a target with emcee.

    Parameters
    ----------
    target : FreeSpectrumTarget
    n_walkers : int
    min_ess : float
        The run goes on until every parameter has this effective size and 50 autocorrelation times.
    n_burn_in : int
        Steps dropped at the start; raised to ten autocorrelation times if that is more.
    min_steps : int
        Kept steps of the shortest run. Walkers in a small second mode trade places with the others more slowly than any
        parameter's autocorrelation time shows.
    max_steps : int
        Where to give up; the verdict then says so.
    max_draws : int
        The chains are thinned to about this many draws, never below an autocorrelation time's half.
    random_state : int or generator, optional

    Notes
    -----
    Differential-evolution moves mix 3 to 10 times faster here than the stretch move. One step in five is a full difference
    (gamma = 1) and one in ten an independent draw from a kernel estimate of the other walkers: both carry walkers between modes.

    References
    ----------
    Foreman-Mackey, Hogg, Lang & Goodman 2013, arXiv:1202.3665; ter Braak 2006, Statistics and Computing 16.
    """
    difference, jump = emcee.moves.DEMove(1e-5), emcee.moves.DEMove(1e-5, gamma0=1.0)
    moves = [(difference, 0.7), (jump, 0.2), (emcee.moves.KDEMove(bw_method=0.2), 0.1)]
    rng = numpy_generator(seed_from(random_state))
    density = from_log_prob(from_numpy(target.log_posterior, on_error="raise"), target.features, names=target.names)
    chains = run_emcee(
        density,
        _start(target, n_walkers, rng),
        moves=moves,
        n_burn_in=n_burn_in,
        min_ess=min_ess,
        min_steps=min_steps,
        max_steps=max_steps,
        max_draws=max_draws,
        random_state=rng,
    )
    tau, ess, acceptance, n_steps, n_dropped, thin = (
        chains.info[name] for name in ("tau", "ess", "acceptance", "n_steps", "n_burn_in", "thin")
    )
    verdict = chains.reliability or Reliability(ok=True)
    n_evaluations = N_START + int(chains.info["n_evaluations"])
    return ReferenceRun(chains, np.array(tau), ess, acceptance, n_steps, n_dropped, thin, n_evaluations, verdict)


def _start(target: FreeSpectrumTarget, n_walkers: int, rng: np.random.Generator) -> np.ndarray:
    """Prior draws chosen with weights L: every mode starts with its share of walkers."""
    theta = target.prior.sample(N_START, torch_generator(int(rng.integers(2**31)))).numpy()
    log_posterior = target.log_posterior(theta)
    log_likelihood = log_posterior - target.prior_log_prob(theta)
    if np.isfinite(log_likelihood).sum() < n_walkers:
        raise ValueError(
            f"Only {np.isfinite(log_likelihood).sum()} of {N_START} prior draws of {target.model.name} have any likelihood, fewer "
            f"than the {n_walkers} walkers: the data's grid of log10 rho ends below what this model predicts."
        )
    weights = np.exp(log_likelihood - log_likelihood.max())
    # Flattened just enough that a sharp likelihood does not put all walkers on a few points; the burn-in mends it.
    while weights.sum() ** 2 < n_walkers * np.square(weights).sum():
        weights = np.sqrt(weights)
    return theta[rng.choice(N_START, n_walkers, p=weights / weights.sum())]
