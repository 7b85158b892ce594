"""``evidence``: samples and a log-posterior in; ln Z, its error and a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from sbi_flows._random import RandomState, seed_from, torch_generator
from sbi_flows.distributions import as_prior
from sbi_flows.model_evidence import checks, methods
from sbi_flows.model_evidence.density import FittedDensity, cross_fit, user_density
from sbi_flows.model_evidence.inputs import Draws, LogPosterior, evaluate, read_draws
from sbi_flows.model_evidence.nested import N_LIVE, nested_evidence
from sbi_flows.results import Chains, Evidence, Reliability

LEAST_EVALUATIONS = 4000
LEAST_DRAWS = 1000
METHODS = ("auto", "bridge", "harmonic", "importance")


def evidence(
    samples: Any,
    log_posterior: LogPosterior | np.ndarray | Sequence[float] | None = None,
    *,
    prior: Any = None,
    weights: np.ndarray | None = None,
    chain_ids: np.ndarray | None = None,
    density: Any = None,
    support: Any = None,
    method: str = "auto",
    max_evaluations: int = 200_000,
    max_draws: int = 100_000,
    random_state: RandomState = None,
) -> Evidence:
    """The Bayesian evidence ``Z = integral L(theta) prior(theta) d theta`` from posterior samples.

    Two flows are cross-fitted over blocks of the chains; each density is then compared with the log-posterior on the draws it has not seen
    and on draws of its own, by up to three estimators (see ``by_method``). The default trusts optimal bridge sampling where
    ``log_posterior`` can be called, and the learned harmonic mean where only its values are known.

    Parameters
    ----------
    samples : array (n, d) or (chain, draw, d), list of (n_i, d) chains, Chains, DataFrame, ArviZ data, or an emcee sampler
        Posterior draws, in the order they were drawn, without burn-in. A DataFrame's column ``log_posterior`` (or ``lp``), ArviZ's
        ``sample_stats.lp``, a Chains' ``log_posterior`` and an emcee sampler's log-probability are read when ``log_posterior`` is absent.
    log_posterior : callable or array, optional
        ln L + ln prior in nats, **both normalised**: as a function of float64 rows, ``(m, d)`` to ``(m,)``, or as values at the draws.
    prior : optional
        Gives the support of the parameters, and lets the call look for modes the chains missed. Anything that
        :func:`sbi_flows.distributions.as_prior` reads: ours, scipy's, torch's, a list of these, two functions.
    weights : array (n,), optional
        Non-negative weights of *independent* draws (not their logarithms), as nested sampling gives them. Repeats of a Metropolis chain
        must be written out instead: as weights they would hide the autocorrelation.
    chain_ids : array (n,), optional
        Chain of each row of flattened samples.
    density : object with ``log_prob(x)`` and ``sample(n)``, optional
        A normalised density to use in place of the cross-fitted flows, fitted to *other* draws than these.
    support : list, optional
        One entry a column, as for :class:`sbi_flows.FlowDensity`: "real", ``(low, high)``, "circular"; by default the
        prior's, else the bounds of ``Chains``, else real.
    method : {"auto", "bridge", "harmonic", "importance"}
        The estimator to report; all that are possible are computed and shown. Chains of nested sampling, which hold ``n_live``, carry
        their own evidence: without a ``log_posterior``, "auto" sums their volumes and tests them.
    max_evaluations : int, at least 4000
        Budget of log-posterior evaluations beyond one a draw. Half serves the estimators (at most four a draw), the rest the search for
        missed modes.
    max_draws : int, at least 1000
        Of more draws every so many of each chain are used, which a note says: time and memory go with their number, and chains rarely
        hold as many independent ones. Raise it for more *independent* draws than that.
    random_state : int or generator, optional

    Returns
    -------
    Evidence
        ``log_z``, ``log_z_err`` (one standard error, nats), ``reliability`` and ``by_method``.

    Raises
    ------
    ValueError
        For samples that are empty, not finite, too few, constant, discrete, or linearly dependent; for values that do not match them; for a
        log-posterior of +inf or of the wrong shape.

    Notes
    -----
    The error counts autocorrelation (walkers of an emcee ensemble by the series of their mean or by their averaged autocorrelation,
    whichever is longer), the finite number of proposals, and the noise that the two folds share. A verdict that is not ok says why: what
    the verdict of ``Chains`` has against them, unmixed chains, Pareto k, poor overlap, draws that do not follow the given log-posterior,
    mass found by prior draws where no chain went. Without a prior or a callable, missed modes cannot be found.

    References
    ----------
    Meng & Wong 1996, Statistica Sinica 6; Gronau et al. 2017, arXiv:1703.05984; McEwen et al. 2021, arXiv:2111.12720.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import evidence
    >>> draws = np.random.default_rng(0).normal(size=(4000, 2))
    >>> result = evidence(draws, lambda x: -0.5 * (x**2).sum(axis=1), random_state=0)
    >>> bool(abs(result.log_z - np.log(2 * np.pi)) < 5 * result.log_z_err)
    True
    """
    if method not in METHODS:
        raise ValueError(f"Expected method to be one of {', '.join(METHODS)}; got {method!r}.")
    if max_evaluations < LEAST_EVALUATIONS:
        raise ValueError(f"Expected max_evaluations of at least {LEAST_EVALUATIONS}; got {max_evaluations}.")
    if max_draws < LEAST_DRAWS:
        raise ValueError(f"Expected max_draws of at least {LEAST_DRAWS}; got {max_draws}.")
    if log_posterior is None and method == "auto" and isinstance(samples, Chains) and N_LIVE in samples.stats:
        return nested_evidence(samples, random_state)
    if prior is not None:
        prior = as_prior(prior)
    generator = torch_generator(seed_from(random_state))
    draws = read_draws(
        samples, log_posterior, weights=weights, chain_ids=chain_ids, max_draws=max_draws, random_state=seed_from(generator)
    )
    if support is None:
        support = prior.support if prior is not None else getattr(samples, "support", None)
    densities = user_density(density, draws) if density is not None else cross_fit(draws, support, seed_from(generator))
    folds = _folds(densities, draws, max_evaluations, generator)

    estimates = {"harmonic": methods.harmonic(draws, folds)}
    if draws.log_posterior is not None:
        estimates["importance"] = methods.importance(draws, folds)
        estimates["bridge"] = methods.bridge(draws, folds)
    trusted = _trusted(method, estimates)
    # Chains that have not converged come first: poor weights and draws that fail to follow the posterior are what they lead to.
    reasons = [*draws.reasons, *checks.mixing_reasons(draws), *checks.weight_reasons(trusted, estimates[trusted])]
    reasons += checks.consistency_reasons(draws, folds, estimates["bridge" if "bridge" in estimates else "harmonic"])
    reasons += checks.agreement_reasons(estimates)
    if draws.log_posterior is None:
        reasons += checks.edge_reasons(draws, folds, [methods.retained_mass(fold) for fold in folds])
        reasons += checks.contamination_reasons(folds)
    notes = [*draws.notes, *checks.length_notes(draws)]
    if draws.log_posterior is not None and prior is not None:
        left = max_evaluations - sum(len(fold.proposals) for fold in folds)
        reasons += _missed_modes(draws, densities, estimates[trusted].log_z, prior, left, generator)
    else:
        notes.append("modes the chains never visited cannot be found without a callable log_posterior and a prior")
    chosen = estimates[trusted]
    return Evidence(
        log_z=chosen.log_z,
        log_z_err=chosen.log_z_err,
        method=trusted,
        ess=chosen.ess,
        pareto_k=chosen.pareto_k,
        reliability=Reliability.from_reasons(reasons, notes),
        by_method=_table(estimates),
        names=draws.names,
    )


def _trusted(method: str, estimates: dict[str, methods.Estimate]) -> str:
    if method == "auto":
        return "bridge" if "bridge" in estimates else "harmonic"
    if method not in estimates:
        raise ValueError(f"method={method!r} needs a callable log_posterior; with values alone only 'harmonic' is possible.")
    return method


def _folds(densities: Sequence[FittedDensity], draws: Draws, max_evaluations: int, generator: torch.Generator) -> list[methods.Fold]:
    n_proposals = min(max(4 * draws.n, 2000), max_evaluations // 2) // len(densities)
    folds = []
    for density in densities:
        proposals = density.sample(n_proposals, seed_from(generator))
        log_f, proposal_log_f = density.log_prob(draws.x), density.log_prob(proposals)
        ratio = draws.log_p - log_f
        outside = np.flatnonzero(~np.isfinite(log_f))
        if len(outside):
            raise ValueError(
                f"{len(outside)} draws lie outside the declared support (first: {draws.x[outside[0]]!r}), where the density is zero. "
                "Correct support= or the prior, or remove those draws."
            )
        function = draws.log_posterior
        proposal_ratio = None if function is None else evaluate(function, proposals) - proposal_log_f
        folds.append(
            methods.Fold(
                density.test_rows,
                ratio[density.test_rows],
                log_f[density.test_rows],
                ratio[density.train_rows],
                proposals,
                proposal_ratio,
                proposal_log_f,
            )
        )
    return folds


def _missed_modes(draws, densities, log_z, prior, n_evaluations, generator) -> list[str]:
    def log_f(x: np.ndarray) -> np.ndarray:
        return methods.combined_log_f([density.log_prob(x) for density in densities])

    if not np.isfinite(log_z):
        return []
    return checks.missed_mode_reasons(draws, log_f, log_z, prior, draws.log_posterior, n_evaluations, generator)


def _table(estimates: dict[str, methods.Estimate]) -> pd.DataFrame:
    columns = ["log_z", "log_z_err", "ess", "pareto_k", "n_evaluations"]
    return pd.DataFrame([[getattr(e, c) for c in columns] for e in estimates.values()], columns=columns, index=list(estimates))

