"""Three estimators of ln Z from one set of weights: learned harmonic mean, importance sampling, optimal bridge.

All work on :class:`Fold` records: posterior draws, and draws of a normalised density fitted *without* those posterior draws.
With ``l = ln p - ln f`` (log-posterior minus log-density) the estimators are

- harmonic   ``1/Z = E_p[ f 1(f > c) / p ] / F(f > c)``: posterior draws only; ``c`` cuts the tails, where f may exceed p;
- importance ``Z = E_f[ p / f ]``: draws of f only;
- bridge     the root of ``n1 E_p[1 - s(C)] = n2 E_f[s(C)]``, ``s = sigmoid(ln(n1/n2) + l - C)``: both, with the smallest variance.

Cross-fitting makes every posterior draw a test draw of one fold and a training draw of the other. Where a fold's density differs from
the posterior by the noise of its training draws, the errors of two folds share that noise: see :func:`fold_correlation`.

References
----------
McEwen, Wallis, Price & Spurio Mancini 2021, arXiv:2111.12720 (learned harmonic mean). Meng & Wong 1996, Statistica Sinica 6
(bridge sampling). Robert & Wraith 2009, arXiv:0907.5123 (truncation to a high-density region).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

from sbi_flows.model_evidence.inputs import Draws
from sbi_flows.weights import bridge_root, kish_ess, log_mean_exp, pareto_k

RETAINED_MASS = (0.99, 0.95, 0.9, 0.8, 0.65, 0.5)
RATIO_BOUND = 1000.0
NEGLIGIBLE_BOUND = 20.0


@dataclass(frozen=True)
class Fold:
    """Log-ratios ``ln p - ln f`` of one fold's density f.

    Attributes
    ----------
    rows : ndarray (n_k,)
        Rows of the posterior draws this density has not seen.
    ratio, log_f : ndarray (n_k,)
        At those rows.
    train_ratio : ndarray
        At the rows it was fitted to; empty for a density that came from elsewhere.
    proposals : ndarray (m, d)
        Draws of f.
    proposal_ratio : ndarray (m,) or None
        -inf where the posterior vanishes; None without a callable.
    proposal_log_f : ndarray (m,)
    """

    rows: np.ndarray
    ratio: np.ndarray
    log_f: np.ndarray
    train_ratio: np.ndarray
    proposals: np.ndarray
    proposal_ratio: np.ndarray | None
    proposal_log_f: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """One estimator's answer.

    Attributes
    ----------
    log_z, log_z_err, ess, pareto_k : float
        As in :class:`sbi_flows.Evidence`.
    n_evaluations : int
        Evaluations of the log-posterior beyond those at the draws.
    draw_weights : ndarray (n,)
        Weights, of mean one in each fold, that turn the posterior draws into draws of the density the estimator compares on.
    proposal_weights : tuple of ndarray
        The same for each fold's proposals. If draws and posterior belong together, both sides agree in every average.
    """

    log_z: float
    log_z_err: float
    ess: float
    pareto_k: float
    n_evaluations: int
    draw_weights: np.ndarray
    proposal_weights: tuple[np.ndarray, ...]


def fold_correlation(folds: Sequence[Fold]) -> float:
    """Correlation, in [0, 1], of two folds' posterior-side errors.

    Let f differ from p by the influence g(x, y) of its training draws y: the error of fold 1 is the mean of g over (test 1, train 1),
    that of fold 2 the mean over the same pairs with the roles exchanged. For maximum likelihood g is symmetric, so this part is
    common to both. Its share of the log-ratio's variance is what the optimism of the fit measures: E g(y, y) / n, the mean log-density
    ratio on training draws less that on test draws. An exactly parametric fit has 1, a fit limited by its architecture 0.
    """
    if len(folds) < 2:
        return 0.0
    gap = np.mean([np.mean(fold.ratio) - np.mean(fold.train_ratio) for fold in folds])
    variance = np.mean([np.var(_winsorised(fold.ratio)) for fold in folds])
    return float(np.clip(gap / variance, 0.0, 1.0)) if variance > 0 else 1.0


def _winsorised(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, [0.005, 0.995])
    return np.clip(values, low, high)


def harmonic(draws: Draws, folds: Sequence[Fold]) -> Estimate:
    """Learned harmonic mean, each fold's density cut to the retained mass with the smallest error measured on the other fold.

    On its own weights the choice would favour the cut that happens to miss the largest ones, and bias ln Z upward.
    """
    best = [retained_mass(fold) for fold in folds]
    masses = best[1:] + best[:1]
    log_z, influence, weights = [], np.zeros(draws.n), np.zeros(draws.n)
    proposal_weights, mass_variance, log_weights = [], 0.0, []
    for fold, mass in zip(folds, masses, strict=True):
        inside, kept, log_w = _truncated(fold, mass)
        log_mean = log_mean_exp(log_w)
        if log_mean == -np.inf:
            return _no_estimate(draws, folds)
        w = np.exp(log_w - log_mean)
        log_z.append(np.log(kept) - log_mean)
        influence[fold.rows] = 1 - w
        weights[fold.rows] = w
        log_weights.append(log_w - log_mean)
        proposal_weights.append(inside / kept)
        mass_variance += (1 - kept) / (kept * len(inside))
    variance = draws.variance_of_mean(influence) * (1 + fold_correlation(folds)) + mass_variance / len(folds) ** 2
    log_w = np.concatenate(log_weights)
    return Estimate(
        log_z=float(np.mean(log_z)),
        log_z_err=float(np.sqrt(variance)),
        ess=kish_ess(log_w) / draws.n,
        pareto_k=pareto_k(log_w, relative_ess=draws.effective_size(weights) / draws.n),
        n_evaluations=0,
        draw_weights=weights,
        proposal_weights=tuple(proposal_weights),
    )


def _truncated(fold: Fold, mass: float) -> tuple[np.ndarray, float, np.ndarray]:
    """Which proposals the cut density keeps, its share of them, and its log-weights ``ln f - ln p`` at the posterior draws."""
    level = np.quantile(fold.proposal_log_f, 1 - mass)
    inside = np.asarray(fold.proposal_log_f >= level, dtype=np.float64)
    if fold.proposal_ratio is not None:  # A hard edge of the posterior that f does not know of cuts f's mass there.
        inside *= np.isfinite(fold.proposal_ratio)
    return inside, max(inside.mean(), 1.0 / len(inside)), np.where(fold.log_f >= level, -fold.ratio, -np.inf)


def retained_mass(fold: Fold) -> float:
    """The mass in ``RETAINED_MASS`` of least variance, weights' and mass's own together, among those whose tail is light."""
    variances, tails = [], []
    for mass in RETAINED_MASS:
        inside, kept, log_w = _truncated(fold, mass)
        effective = max(kish_ess(log_w), 1e-300)
        variances.append(1 / effective - 1 / len(log_w) + (1 - kept) / (kept * len(inside)))
        tails.append(pareto_k(log_w))
    light = [i for i, k in enumerate(tails) if k < 0.5] or range(len(RETAINED_MASS))
    return RETAINED_MASS[min(light, key=lambda i: variances[i])]


def importance(draws: Draws, folds: Sequence[Fold]) -> Estimate:
    """Importance sampling from all folds' densities."""
    ratios = [_proposal_ratio(fold) for fold in folds]
    ratio = np.concatenate(ratios)
    log_z = log_mean_exp(ratio)
    if log_z == -np.inf:
        return _no_estimate(draws, folds)
    per_fold = tuple(np.exp(r - log_mean_exp(r)) for r in ratios)
    w = np.exp(ratio - log_z)
    return Estimate(
        log_z=float(log_z),
        log_z_err=float(np.sqrt(w.var() / len(w))),
        ess=kish_ess(ratio) / len(ratio),
        pareto_k=pareto_k(ratio),
        n_evaluations=len(ratio),
        draw_weights=np.ones(draws.n),
        proposal_weights=per_fold,
    )


def bridge(draws: Draws, folds: Sequence[Fold]) -> Estimate:
    """Optimal bridge sampling, the draws counted at their effective number."""
    log_z, influence, weights = [], np.zeros(draws.n), np.zeros(draws.n)
    proposal_weights, proposal_variance, n_evaluations = [], 0.0, 0
    overlap, tails = [], []
    centred = np.zeros(draws.n)
    for fold in folds:
        centred[fold.rows] = _winsorised(fold.ratio) - np.median(fold.ratio)
    efficiency = draws.effective_size(centred) / draws.n
    for fold in folds:
        bounded = np.maximum(_proposal_ratio(fold), np.median(fold.ratio) - RATIO_BOUND)  # -inf stays an exact zero of s
        n1, n2 = efficiency * len(fold.rows), len(bounded)
        root = bridge_root(fold.ratio, bounded, n1, n2)
        offset = np.log(n1 / n2) - root
        s_draws, s_proposals = expit(offset + fold.ratio), expit(offset + bounded)
        slope = n1 * np.mean(s_draws * (1 - s_draws)) + n2 * np.mean(s_proposals * (1 - s_proposals))
        influence[fold.rows] = n1 * (s_draws - s_draws.mean()) / slope
        proposal_variance += (n2 / slope) ** 2 * s_proposals.var() / n2
        log_z.append(root)
        weights[fold.rows] = (1 - s_draws) / np.mean(1 - s_draws)
        proposal_weights.append(s_proposals / s_proposals.mean())
        n_evaluations += n2
        tails += [_bounded_pareto_k(1 - s_draws), _bounded_pareto_k(s_proposals)]
        overlap.append(min(_kish_fraction(weights[fold.rows]), _kish_fraction(proposal_weights[-1])))
    variance = draws.variance_of_mean(influence) * (1 + fold_correlation(folds)) + proposal_variance / len(folds) ** 2
    return Estimate(
        log_z=float(np.mean(log_z)),
        log_z_err=float(np.sqrt(variance)),
        ess=float(np.mean(overlap)),
        pareto_k=max(tails),
        n_evaluations=n_evaluations,
        draw_weights=weights,
        proposal_weights=tuple(proposal_weights),
    )


def _proposal_ratio(fold: Fold) -> np.ndarray:
    if fold.proposal_ratio is None:
        raise ValueError("This estimator evaluates the log-posterior at its own draws: pass a callable log_posterior.")
    return fold.proposal_ratio


def _bounded_pareto_k(s: np.ndarray) -> float:
    """Pareto k of weights in [0, 1]; none where the mean is so near the bound that no draw, seen or unseen, can dominate it."""
    with np.errstate(divide="ignore"):
        return -np.inf if s.mean() > 1 / NEGLIGIBLE_BOUND else pareto_k(np.log(s))


def _kish_fraction(weights: np.ndarray) -> float:
    return float(weights.sum() ** 2 / (len(weights) * np.sum(weights**2)))


def _no_estimate(draws: Draws, folds: Sequence[Fold]) -> Estimate:
    empty = tuple(np.ones(len(fold.proposals)) for fold in folds)
    return Estimate(np.nan, np.inf, 0.0, np.inf, 0, np.ones(draws.n), empty)


def combined_log_f(log_f: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the mean density of the folds."""
    return logsumexp(np.stack(log_f), axis=0) - np.log(len(log_f))
