"""The evidence of a nested sampling run from its dead points: ln L and the number of live points at each death."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import kstest

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.reliability import Reliability
from sbi_flows.results import Chains, Evidence
from sbi_flows.weights import kish_ess

N_LIVE = "n_live"
BIRTH = "log_likelihood_birth"

_N_SIMULATIONS = 400  # the error of an error bar is then 4 %
_MOST_RANKS = 5000
_FALSE_ALARM = 1e-3  # of the insertion test
_LEAST_ESS = 100


def live_points(log_l: np.ndarray, log_l_birth: np.ndarray) -> np.ndarray:
    """How many points were alive at each death, itself among them, ``(n,)``; ``log_l`` ascending.

    References
    ----------
    Higson, Handley, Hobson & Lasenby 2018, "Sampling errors in nested sampling parameter estimation", Bayesian Analysis 13.
    """
    born = np.searchsorted(np.sort(log_l_birth), log_l, side="left")
    return born - np.arange(len(log_l))


def log_weights(log_l: np.ndarray, n_live: np.ndarray) -> np.ndarray:
    """Logarithms of L times the width of prior mass of each dead point ``(n,)``, volumes at their mean logarithm."""
    return log_l + _log_widths(-np.cumsum(1 / n_live)[None])[0]


def nested_evidence(chains: Chains, random_state: RandomState = None) -> Evidence:
    """ln Z of a nested sampling run as ``load_chains`` reads it: the trapezium sum over volumes, whose unknown shrinkages are simulated.

    Raises
    ------
    ValueError
        If the chains do not hold ``log_likelihood`` and ``stats["n_live"]``.

    References
    ----------
    Skilling 2006, "Nested sampling for general Bayesian computation", Bayesian Analysis 1; Fowlie, Handley & Su 2020, "Nested sampling
    cross-checks using order statistics", arXiv:2006.03371.
    """
    if chains.log_likelihood is None or N_LIVE not in chains.stats:
        raise ValueError("Expected chains with log_likelihood and stats['n_live'], as load_chains makes them of nested sampling.")
    log_l, n_live = np.asarray(chains.log_likelihood[0]), np.asarray(chains.stats[N_LIVE][0])
    order = np.argsort(log_l, kind="stable")
    log_l, n_live = log_l[order], n_live[order]
    rng = numpy_generator(random_state)
    log_z = np.array([_simulated(log_l, n_live, rng) for _ in range(_N_SIMULATIONS)])
    weights = log_weights(log_l, n_live)
    ess = kish_ess(weights)
    reasons = _early_end(log_l, n_live, weights)
    if ess < _LEAST_ESS:
        reasons.append(f"an effective sample size of {ess:.0f}: use more live points")
    notes = list(chains.info.get("notes", ()))
    if BIRTH in chains.stats:
        reasons += _insertion(np.asarray(chains.stats[BIRTH][0])[order], log_l, rng)
    else:
        notes.append("where new points were born is not recorded, so it was not tested whether they were drawn uniformly")
    value, error = float(log_z.mean()), float(log_z.std(ddof=1))
    table = pd.DataFrame(
        [[value, error, ess / len(log_l), np.nan, 0]], columns=["log_z", "log_z_err", "ess", "pareto_k", "n_evaluations"], index=["nested"]
    )
    verdict = Reliability.from_reasons(reasons, notes)
    return Evidence(value, error, "nested", ess / len(log_l), np.nan, verdict, table, chains.names, chains.info)


def _simulated(log_l: np.ndarray, n_live: np.ndarray, rng: np.random.Generator) -> float:
    """ln Z for one draw of the shrinkages, each the largest of n uniform numbers."""
    log_x = np.cumsum(-rng.exponential(size=len(log_l)) / n_live)
    return float(logsumexp(log_l + _log_widths(log_x[None])[0]))


def _log_widths(log_x: np.ndarray) -> np.ndarray:
    """ln of half the prior mass between the neighbours of each point, from mass 1 to 0."""
    before = np.concatenate([np.zeros((len(log_x), 1)), log_x[:, :-1]], axis=1)
    after = np.concatenate([log_x[:, 1:], np.full((len(log_x), 1), -np.inf)], axis=1)
    with np.errstate(divide="ignore"):
        return before + np.log(-np.expm1(after - before)) - np.log(2)


def _early_end(log_l: np.ndarray, n_live: np.ndarray, weights: np.ndarray) -> list[str]:
    """What a run that stopped too early left out."""
    total = logsumexp(weights)
    log_left = log_l[-1] - np.sum(1 / n_live) - total
    if log_left > np.log(0.05):
        return [
            f"the run stopped where {min(np.exp(log_left), 1):.0%} of the evidence may still be inside its last contour: go on to a "
            "smaller remainder (dlogz), and keep the last live points"
        ]
    falling = np.flatnonzero(np.diff(n_live) >= 0)
    last = falling[-1] + 1 if len(falling) else 0
    share = np.exp(logsumexp(weights[last:]) - total)
    if share > 0.6:
        return [f"{share:.0%} of the evidence is in the last live points: the run stopped too early; go on to a smaller dlogz"]
    return []


def _insertion(birth: np.ndarray, log_l: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Ranks of new points among those alive at their birth: uniform where they were drawn from the whole of their contour."""
    born = np.flatnonzero(birth > birth.min())
    if len(born) < 100:
        return []
    if len(born) > _MOST_RANKS:
        born = rng.choice(born, _MOST_RANKS, replace=False)
    ranks = np.empty(len(born))
    for at, i in enumerate(born):
        alive = log_l[(birth <= birth[i]) & (log_l > birth[i])]
        # Ranks are whole numbers; a uniform number in the step makes them continuous.
        ranks[at] = (np.sum(alive < log_l[i]) + rng.random()) / len(alive)
    p = kstest(ranks, "uniform").pvalue
    if p >= _FALSE_ALARM:
        return []
    return [
        f"new points were not drawn uniformly inside their contours (insertion ranks, p = {p:.1g}): the sampler lost a mode or did not "
        "forget its start; give it more steps a point or more live points"
    ]
