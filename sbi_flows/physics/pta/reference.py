"""The reference posterior: an emcee ensemble started from prior draws weighted by the likelihood, run until it has mixed."""

from __future__ import annotations

from dataclasses import dataclass

import emcee
import numpy as np

from sbi_flows._random import RandomState, numpy_generator, seed_from, torch_generator
from sbi_flows.physics.pta.target import FreeSpectrumTarget
from sbi_flows.results import Chains, Reliability

N_START = 200_000  # prior draws among which the walkers' start is chosen
MIN_TAUS = 50  # a run shorter than this many autocorrelation times cannot measure its own autocorrelation time


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
    reliability : Reliability
    """

    chains: Chains
    tau: np.ndarray
    ess: float
    acceptance: float
    n_steps: int
    n_burn_in: int
    thin: int
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
    seed = seed_from(random_state)
    difference, jump = emcee.moves.DEMove(1e-5), emcee.moves.DEMove(1e-5, gamma0=1.0)
    moves = [(difference, 0.7), (jump, 0.2), (emcee.moves.KDEMove(bw_method=0.2), 0.1)]
    sampler = emcee.EnsembleSampler(n_walkers, target.features, target.log_posterior, vectorize=True, moves=moves)
    rng = numpy_generator(seed)
    state = emcee.State(_start(target, n_walkers, rng), random_state=np.random.RandomState(rng.integers(2**31)).get_state())
    state = sampler.run_mcmc(state, n_burn_in)
    sampler.reset()

    chunk = min_steps
    while True:
        state = sampler.run_mcmc(state, chunk)
        tau = np.maximum(sampler.get_autocorr_time(quiet=True, tol=0), 1.0)
        steps = sampler.iteration
        longest = float(tau.max())
        needed = max(MIN_TAUS * longest, min_ess * longest / n_walkers)
        if steps >= needed or steps >= max_steps or not np.isfinite(longest):
            break
        # The estimate of tau grows as the run lengthens; a step beyond what it asks for saves a round.
        chunk = int(min(max(1.1 * needed - steps, 200), max_steps - steps))
    extra_burn_in = max(0, int(10 * longest) - n_burn_in) if np.isfinite(longest) else 0
    kept = steps - min(extra_burn_in, steps // 2)
    thin = max(int(longest / 2), -(-kept * n_walkers // max_draws), 1) if np.isfinite(longest) else 1
    chains = Chains(
        samples=np.ascontiguousarray(sampler.get_chain(discard=steps - kept, thin=thin).swapaxes(0, 1)),
        names=target.names,
        log_posterior=sampler.get_log_prob(discard=steps - kept, thin=thin).T.copy(),
        ensemble=True,
    )
    ess = kept * n_walkers / longest
    acceptance = float(np.mean(sampler.acceptance_fraction))
    reasons = _reasons(ess, min_ess, kept / longest, acceptance, max_steps)
    return ReferenceRun(
        chains, tau, ess, acceptance, steps, n_burn_in + steps - kept, thin, Reliability.from_reasons(reasons)
    )


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


def _reasons(ess: float, min_ess: float, n_taus: float, acceptance: float, max_steps: int) -> list[str]:
    reasons = []
    if not np.isfinite(ess):
        return ["the chains have no measurable autocorrelation time: walkers are stuck"]
    if ess < 0.9 * min_ess:
        reasons.append(f"the chains hold {ess:.0f} independent draws, {min_ess:.0f} were asked for, after {max_steps} steps")
    if n_taus < 0.9 * MIN_TAUS:
        reasons.append(f"the chains are {n_taus:.0f} autocorrelation times long, at least {MIN_TAUS} are needed")
    if acceptance < 0.02:
        reasons.append(f"only {acceptance:.1%} of the moves were accepted")
    return reasons
