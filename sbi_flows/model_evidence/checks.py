"""What can be wrong with an evidence, looked for in the numbers at hand: wrong chains, missed modes, poor overlap, poor mixing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sbi_flows.model_evidence.inputs import Draws, LogPosterior, evaluate
from sbi_flows.model_evidence.layout import layout_reasons
from sbi_flows.model_evidence.methods import Estimate, Fold
from sbi_flows.weights import autocorrelation_time

FALSE_ALARM = 1e-4
SMALLEST_SHIFT = 0.02
MOST_PRODUCTS = 8
MISSED_MASS = 0.01
EXCESSES = (1.5, 3.0, 10.0)
FAR_MASS = 0.05
RATIO_LIMIT = 300.0
LENGTH_IN_TIMES = 50
APART = 10.0  # times; a chain shorter than its own autocorrelation time loses up to a factor of about four by its own mean


class SamplesAndDensity(Protocol):
    """A prior: draws and their log-density as torch tensors."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...
    def log_prob(self, x: Tensor) -> Tensor: ...


def weight_reasons(method: str, estimate: Estimate) -> list[str]:
    """Weights that no error can be computed from, or hardly."""
    reasons = []
    if estimate.pareto_k > 0.7:
        reasons.append(
            f"Pareto k of the {method} weights is {estimate.pareto_k:.2f} (> 0.7): the fitted density misses a tail of the posterior. "
            "Give more draws, declare support=, or pass a better density="
        )
    elif method != "bridge" and estimate.pareto_k > 0.5 and estimate.ess < 0.5:
        reasons.append(
            f"the {method} weights have Pareto k {estimate.pareto_k:.2f} (> 0.5: no finite variance) and carry only {estimate.ess:.0%}: "
            "their error cannot be believed. Give log_posterior as a callable, more draws, or a better density="
        )
    if estimate.ess < 0.02:
        reasons.append(
            f"only {estimate.ess:.1%} of the weights carry the {method} estimate: the fitted density hardly overlaps the posterior. "
            "Give more draws or pass a better density="
        )
    if not np.isfinite(estimate.log_z) or estimate.log_z_err > 0.5:
        reasons.append(f"the error of {estimate.log_z_err:.2g} is too large for ln Z to mean anything: give more draws")
    return reasons


def mixing_reasons(draws: Draws) -> list[str]:
    """Chains that have not converged, or are not laid out as said: effective numbers, split R-hat, and correlation where none should be."""
    reasons = []
    sizes = np.array([draws.effective_size(draws.x[:, i]) for i in range(draws.features)])
    worst = int(np.argmin(sizes))
    if sizes[worst] < min(100, draws.n / 2):
        reasons.append(_few_reason(draws, worst, sizes[worst]))
    ratios = [_split_r_hat(draws, draws.x[:, i]) for i in range(draws.features)]
    worst = int(np.argmax([r_hat if significant else 0.0 for r_hat, significant in ratios]))
    if ratios[worst][1] and ratios[worst][0] > 1.05:
        reasons.append(
            f"split R-hat of '{draws.names[worst]}' is {ratios[worst][0]:.2f} (> 1.05): chains or their halves disagree. "
            "Run longer, drop the burn-in, or sample every mode in proportion"
        )
    return reasons + layout_reasons(draws.x, np.unique(draws.chain, return_counts=True)[1], draws.names)


def _few_reason(draws: Draws, column: int, size: float) -> str:
    """Why a column is worth few draws: slow chains, or chains that stay apart, which no length in autocorrelation times mends."""
    each = "" if draws.thin == 1 else f", one in {draws.thin} steps"
    head = f"'{draws.names[column]}' has only {size:.0f} effective draws in {draws.n}{each}"
    within = draws.size_within(draws.x[:, column])
    if within <= APART * size:
        return f"{head} (autocorrelation): run the chains at least 100 autocorrelation times"
    return (
        f"{head}: chains stay apart. By autocorrelation within each they would be worth {within:.0f}, which holds only for chains that "
        "meet; what those that stay where they started weigh is chance. Start them otherwise, or cross with FlowMove or FlowSampler"
    )


def length_notes(draws: Draws) -> list[str]:
    """An ensemble so short in its own autocorrelation times that these, and with them every error, come out too small.

    However many walkers there are, they move together into a rarely visited part and out of it: only time shows how long that takes.
    """
    counts = np.unique(draws.chain, return_counts=True)[1]
    if not draws.ensemble or len(np.unique(counts)) > 1:
        return []
    times = [autocorrelation_time(column.reshape(len(counts), -1)) for column in draws.x.T]
    slowest = int(np.argmax(times))
    length = counts[0] / times[slowest]
    # Walkers that stay apart have no such time, and mixing_reasons says so.
    apart = draws.size_within(draws.x[:, slowest]) > APART * draws.n / times[slowest]
    if length >= LENGTH_IN_TIMES or apart:
        return []
    return [
        f"the ensemble's {counts[0] * draws.thin} steps are {length:.0f} autocorrelation times of '{draws.names[slowest]}': below "
        f"{LENGTH_IN_TIMES} the error itself is uncertain, and rather too small. Run it longer"
    ]


def _split_r_hat(draws: Draws, values: np.ndarray) -> tuple[float, bool]:
    """Gelman & Rubin's ratio over half chains, and whether it is more than the chains' own autocorrelation explains.

    Halves of few effective draws have R-hats well above one even when stationary, so the spread of their means is also tested against
    the autocorrelation within the halves. An ensemble is judged by its two halves in time, its walkers pooled.
    """
    counts = np.unique(draws.chain, return_counts=True)[1]
    blocks = [half for block in np.split(values, np.cumsum(counts)[:-1]) for half in np.array_split(block, 2)]
    if draws.ensemble:
        blocks = [np.concatenate(blocks[0::2]), np.concatenate(blocks[1::2])]
    if min(len(block) for block in blocks) < 4:
        blocks = np.array_split(values, 2)
    n = np.mean([len(block) for block in blocks])
    within = np.mean([block.var(ddof=1) for block in blocks])
    if within <= 0:
        return np.inf, True
    between = n * np.var([block.mean() for block in blocks], ddof=1)
    r_hat = float(np.sqrt((n - 1) / n + between / (n * within)))
    shortest = min(len(block) for block in blocks)
    time = autocorrelation_time(np.stack([block[:shortest] - block[:shortest].mean() for block in blocks]))
    freedom = len(blocks) - 1
    limit = 1.5 * stats.chi2.isf(FALSE_ALARM / 10, freedom) / freedom  # 1.5: the time within short blocks is underestimated
    return r_hat, bool(draws.ensemble or between / (within * max(time, 1.0)) > limit)


def consistency_reasons(draws: Draws, folds: Sequence[Fold], estimate: Estimate) -> list[str]:
    """Do the draws come from the log-posterior they were given with?

    The estimator's weights turn the posterior draws and the proposals into samples of one and the same density. Weighted means of any
    function must then agree. Compared are each column, its square, products of two columns (up to eight columns), and the fitted
    log-density, at a joint false-alarm rate of 1e-4; a disagreement must also exceed 0.02 standard deviations to count, so that huge
    samples are not failed for harmless imperfections.
    """
    names, on_draws, on_proposals = _test_functions(draws, folds)
    difference, variance = np.zeros(len(names)), np.zeros(len(names))
    influence = np.zeros((draws.n, len(names)))
    for fold, g, weights in zip(folds, on_proposals, estimate.proposal_weights, strict=True):
        u = estimate.draw_weights[fold.rows] / estimate.draw_weights[fold.rows].mean()
        v = weights / weights.mean()
        mean_draws, mean_proposals = u @ on_draws[fold.rows] / len(u), v @ g / len(v)
        difference += (mean_draws - mean_proposals) / len(folds)
        influence[fold.rows] = u[:, None] * (on_draws[fold.rows] - mean_draws)
        variance += np.mean((v[:, None] * (g - mean_proposals)) ** 2, axis=0) / len(v) / len(folds) ** 2
    # Twice: the folds' posterior-side errors may be the same one (fold_correlation).
    variance += 2 * np.array([draws.variance_of_mean(influence[:, j]) for j in range(len(names))])
    z = np.abs(difference) / np.sqrt(variance + 1e-300)
    limit = stats.norm.isf(FALSE_ALARM / (2 * len(names)))
    failed = (z > limit) & (np.abs(difference) > SMALLEST_SHIFT)
    if not failed.any():
        return []
    worst = int(np.argmax(np.where(failed, z, 0)))
    return [
        f"the samples do not follow the log_posterior they came with: {names[worst]} is off by {difference[worst]:+.2f} standard "
        f"deviations ({z[worst]:.0f} sigma; {failed.sum()} of {len(names)} tests fail). Check burn-in, convergence, priors and column order"
    ]


def _test_functions(draws: Draws, folds: Sequence[Fold]) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """Bounded functions of unit scale at the draws ``(n, q)`` and at each fold's proposals ``(m, q)``."""
    centre, scale = draws.x.mean(axis=0), draws.x.std(axis=0)
    pairs = [(i, j) for i in range(draws.features) for j in range(i)] if draws.features <= MOST_PRODUCTS else []
    names = [f"'{n}'" for n in draws.names] + [f"the square of '{n}'" for n in draws.names]
    names += [f"the product of '{draws.names[j]}' and '{draws.names[i]}'" for i, j in pairs] + ["the fitted log-density"]

    def functions(x: np.ndarray, log_f: np.ndarray, level: float, spread: float) -> np.ndarray:
        z = np.clip((x - centre) / scale, -4, 4)
        products = [z[:, i] * z[:, j] for i, j in pairs]
        return np.column_stack([z, (z**2 - 1) / np.sqrt(2), *products, np.clip((log_f - level) / spread, -4, 4)])

    on_draws, on_proposals = np.zeros((draws.n, len(names))), []
    for fold in folds:
        level, spread = np.median(fold.log_f), np.std(np.clip(fold.log_f, *np.quantile(fold.log_f, [0.01, 1]))) + 1e-12
        g = functions(draws.x[fold.rows], fold.log_f, level, spread)
        on_draws[fold.rows] = g
        on_proposals.append(functions(fold.proposals, fold.proposal_log_f, level, spread))
    return names, on_draws, on_proposals


def edge_reasons(draws: Draws, folds: Sequence[Fold], masses: Sequence[float]) -> list[str]:
    """Where only values are known: a posterior that ends where the fitted density does not, which biases the harmonic mean."""
    low, high = draws.x.min(axis=0), draws.x.max(axis=0)
    beyond = np.zeros(draws.features)
    for fold, mass in zip(folds, masses, strict=True):
        kept = fold.proposal_log_f >= np.quantile(fold.proposal_log_f, 1 - mass)
        beyond += ((fold.proposals < low) | (fold.proposals > high))[kept].mean(axis=0) / len(folds)
    worst = int(np.argmax(beyond))
    if beyond[worst] <= max(0.002, 10 / draws.n):
        return []
    return [
        f"{beyond[worst]:.1%} of the fitted density lies beyond the draws' range [{low[worst]:.4g}, {high[worst]:.4g}] of "
        f"'{draws.names[worst]}': the posterior seems to end there. Declare support=, pass the prior, or give log_posterior as a callable"
    ]


def contamination_reasons(folds: Sequence[Fold]) -> list[str]:
    """Where only values are known: draws far out whose log-posterior says that they should not be there.

    The harmonic mean leaves the tails out and would not notice. Over the far region, as over any, the draws' weights f/p must sum to the
    density's own mass there; alien draws have weights that are far too large, and many of them.
    """
    for fold in folds:
        far = fold.log_f < np.quantile(fold.proposal_log_f, FAR_MASS)
        log_w = np.minimum(np.median(fold.ratio) - fold.ratio, RATIO_LIMIT)
        if not far.any() or far.all():
            continue
        w = np.exp(log_w[far])
        expected = np.exp(log_w[~far]).sum() * FAR_MASS / (1 - FAR_MASS)
        if w.sum() > 5 * expected and w.sum() ** 2 > 5 * np.square(w).sum():
            return [
                "draws far from the bulk have a log-posterior far too low for draws of it: the chains are contaminated. Drop the burn-in "
                "and stuck walkers, and check that values and samples are in one order"
            ]
    return []


def agreement_reasons(estimates: dict[str, Estimate]) -> list[str]:
    """Estimators that are each sound by their own weights (k below 0.5) must agree within five joint errors."""
    sound = {name: e for name, e in estimates.items() if e.pareto_k < 0.5 and np.isfinite(e.log_z)}
    reasons = []
    names = list(sound)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            difference = sound[a].log_z - sound[b].log_z
            error = float(np.hypot(sound[a].log_z_err, sound[b].log_z_err))
            if abs(difference) > 5 * error + 0.01:
                reasons.append(
                    f"{a} and {b} disagree by {difference:+.3f} +- {error:.3f} in ln Z: the chains do not match the "
                    "log_posterior, or the density was fitted to these very draws"
                )
    return reasons


def missed_mode_reasons(
    draws: Draws,
    log_f: Callable[[np.ndarray], np.ndarray],
    log_z: float,
    prior: SamplesAndDensity,
    log_posterior: LogPosterior,
    n_evaluations: int,
    generator: torch.Generator,
) -> list[str]:
    """Posterior mass that prior draws, weighted by their likelihood, find where the chains did not go.

    For any set A the prior draws' weight in A must equal the chains' share of draws in A. Sets tried are those where the posterior exceeds
    the fitted density by given factors, which is where a missed mode lies; and, since one draw may be all that hits a small mode, the
    region where the density is lower than at every draw of the chains.
    """
    theta = prior.sample(n_evaluations, generator=generator)
    log_prior = prior.log_prob(theta).double().cpu().numpy()
    x = theta.double().cpu().numpy()
    if x.shape[1] != draws.features:
        raise ValueError(f"Expected a prior over {draws.features} parameters, as the samples have; it draws {x.shape[1]}.")
    log_p = evaluate(log_posterior, x)
    log_w = log_p - log_prior - log_z
    heavy = np.flatnonzero(log_w > np.log(1e-3 * MISSED_MASS))
    if not len(heavy):
        return []
    w, f, f_draws = np.exp(log_w[heavy]), log_f(x[heavy]), log_f(draws.x)
    excess, excess_draws = log_p[heavy] - log_z - f, np.asarray(draws.log_p) - log_z - f_draws
    outside = f < f_draws.min()
    # Beyond the lowest of n draws lies a mass of order 1/n even when nothing is missing.
    least = max(MISSED_MASS, 10 / draws.n)
    missed, found = w[outside].sum() / len(x), outside
    for factor in EXCESSES:
        inside = excess > np.log(factor)
        share, share_draws = w[inside].sum() / len(x), np.mean(excess_draws > np.log(factor))
        error = np.sqrt(np.sum(w[inside] ** 2)) / len(x)
        error_draws = np.sqrt(draws.variance_of_mean((excess_draws > np.log(factor)).astype(float)))
        enough = w[inside].sum() ** 2 > 20 * np.sum(w[inside] ** 2)
        if enough and share - share_draws > max(missed, 5 * np.hypot(error, error_draws)):
            missed, found = share - share_draws, inside
    if missed < least:
        return []
    where = x[heavy][found][np.argmax(excess[found])]
    place = ", ".join(f"{name}={value:.4g}" for name, value in zip(draws.names, where, strict=True))
    return [
        f"prior draws find mass the chains never visited (about {missed / (1 + missed):.0%} of the whole, e.g. at {place}): sample every "
        "mode, with more walkers, tempering or nested sampling"
    ]
