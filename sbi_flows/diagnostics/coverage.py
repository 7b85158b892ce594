"""Expected coverage: do regions of highest posterior density hold the truth as often as they claim?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.diagnostics.draws import PosteriorDraws, PosteriorEstimator, as_posterior_estimator, posterior_draws, quantity_ranks
from sbi_flows.diagnostics.ranks import FALSE_ALARM, GROSS, advice
from sbi_flows.diagnostics.uniformity import distance, p_text, uniformity_p_value
from sbi_flows.results import Reliability

LEVELS = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2))


@dataclass(frozen=True)
class Coverage:
    """How often credible regions hold the true parameters.

    Attributes
    ----------
    levels : ndarray (k,)
        Posterior mass of the regions, as their count of draws makes it.
    coverage, low, high : ndarray (k,)
        Fraction of truths inside, and its pointwise 95 % interval (Clopper-Pearson for HPD regions, bootstrap for TARP).
    ranks : ndarray (m,)
        Draws nearer the centre of the region than the truth, 0..n_draws.
    n_draws : int
    p_value : float
        Exact p-value that coverage equals level at all levels together.
    method : str
        "HPD" or "TARP".
    reliability : Reliability
        Not ok when ``p_value`` is below the false-alarm rate asked for; the reason says overconfident or conservative.
    """

    levels: np.ndarray = field(repr=False)
    coverage: np.ndarray = field(repr=False)
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)
    ranks: np.ndarray = field(repr=False)
    n_draws: int
    p_value: float
    method: str
    reliability: Reliability

    def at(self, level: float) -> tuple[float, float, float]:
        """Coverage and its interval at the level nearest the one asked for."""
        k = int(np.argmin(np.abs(self.levels - level)))
        return float(self.coverage[k]), float(self.low[k]), float(self.high[k])

    def __repr__(self) -> str:
        value, low, high = self.at(0.9)
        head = f"Coverage({self.method}, 90 % regions hold {value:.1%} [{low:.1%}, {high:.1%}], p{p_text(self.p_value, 3)})"
        return f"{head}   {self.reliability}"


def expected_coverage(
    estimator: PosteriorEstimator,
    theta: Any,
    x: Any,
    *,
    n_draws: int = 300,
    levels: Sequence[float] = LEVELS,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> Coverage:
    """Coverage of highest-posterior-density regions, averaged over the prior predictive distribution.

    The share of draws with a higher ``log_prob`` than the truth is the smallest region that holds the truth; it must be uniform.

    Parameters
    ----------
    estimator
        Has ``sample(x, n_samples, random_state)`` and ``log_prob(theta, x)``.
    theta : array_like or DataFrame (m, d)
        Parameters drawn from the prior.
    x : array_like or DataFrame (m, ...)
        Their simulations, not used in training.
    n_draws : int
        Draws an observation.
    levels : sequence of float
        At which to report coverage; the p-value uses all.
    false_alarm : float
        Chance that an exact posterior is called not reliable.
    random_state : optional

    Returns
    -------
    Coverage

    Raises
    ------
    ValueError
        When shapes do not match, or draws or densities are not numbers.

    Examples
    --------
    >>> class Exact:
    ...     def sample(self, x, n_samples, random_state=None):
    ...         noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, 1))
    ...         return x[:, None] / 2 + np.sqrt(0.5) * noise
    ...     def log_prob(self, theta, x):
    ...         return stats.norm.logpdf(theta - x / 2, scale=np.sqrt(0.5)).sum(axis=1)
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(500, 1))
    >>> expected_coverage(Exact(), theta, theta + rng.normal(size=(500, 1)), random_state=0).reliability.ok
    True

    Notes
    -----
    A posterior that ignores x and returns the prior covers exactly: use :func:`tarp` beside this.

    References
    ----------
    Hermans, Delaunoy, Rozet, Wehenkel, Begy & Louppe 2022, "A crisis in simulation-based inference? Beware, your posterior
    approximations can be unfaithful", TMLR, arXiv:2110.06581.
    """
    rng = numpy_generator(random_state)
    estimator = as_posterior_estimator(estimator)
    posterior = posterior_draws(estimator, theta, x, n_draws, random_state=rng)
    return coverage_of_draws(estimator, posterior, levels, false_alarm=false_alarm, random_state=rng)


def coverage_of_draws(
    estimator: PosteriorEstimator,
    posterior: PosteriorDraws,
    levels: Sequence[float] = LEVELS,
    *,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> Coverage:
    """:func:`expected_coverage` from draws already made."""
    n_draws = posterior.draws.shape[1]

    def depth(theta, x):
        return -np.asarray(estimator.log_prob(theta, x))

    ranks = quantity_ranks(depth, posterior, numpy_generator(random_state), "log_prob")
    counts = counts_at(levels, n_draws)
    inside = (ranks[:, None] < counts).sum(axis=0)
    m = len(ranks)
    low = np.where(inside > 0, stats.beta.ppf(0.025, inside, np.maximum(m - inside + 1, 1)), 0.0)
    high = np.where(inside < m, stats.beta.ppf(0.975, inside + 1, np.maximum(m - inside, 1)), 1.0)
    return coverage_record(ranks, n_draws, levels, low, high, "HPD", false_alarm)


def counts_at(levels: Sequence[float], n_draws: int) -> np.ndarray:
    """How many of the ``n_draws + 1`` possible ranks a region of each level holds."""
    masses = np.asarray(levels, dtype=np.float64)
    if masses.ndim != 1 or not ((masses > 0) & (masses < 1)).all():
        raise ValueError(f"Expected a list of levels between 0 and 1; got {levels}.")
    return np.rint(masses * (n_draws + 1)).astype(int)


def coverage_record(ranks, n_draws: int, levels, low, high, method: str, false_alarm: float) -> Coverage:
    """The verdict on the ranks of truths from the centre of their regions outwards."""
    counts = counts_at(levels, n_draws)
    coverage = (ranks[:, None] < counts).mean(axis=0)
    p_value = uniformity_p_value(ranks, n_draws)
    reasons = []
    if p_value < false_alarm:
        words = _in_words(ranks, n_draws) if method == "HPD" else _of_balls(ranks, n_draws)
        what_to_do = advice("too wide" in words, distance(ranks, n_draws) > GROSS)
        reasons.append(f"{words} (p{p_text(p_value)}); {what_to_do}")
    return Coverage(counts / (n_draws + 1), coverage, low, high, ranks, n_draws, p_value, method, Reliability.from_reasons(reasons))


def _in_words(ranks: np.ndarray, n_draws: int) -> str:
    excess = np.mean(ranks + 0.5) / (n_draws + 1) - 0.5
    held = np.mean(ranks < np.rint(0.9 * (n_draws + 1)))
    if abs(excess) * np.sqrt(12 * len(ranks)) < 2:
        return f"HPD regions do not hold what they claim: {held:.0%} of truths at 90 %"
    kind = "overconfident" if excess > 0 else "too wide"
    return f"HPD regions are {kind}: those of 90 % hold {held:.0%} of truths"


def _of_balls(ranks: np.ndarray, n_draws: int) -> str:
    """Balls see shifts, widths and blindness to x alike, so no cause is named."""
    inner, outer = (np.mean(ranks < np.rint(level * (n_draws + 1))) for level in (0.5, 0.9))
    return f"balls that hold 50 % and 90 % of the draws hold {inner:.0%} and {outer:.0%} of the truths"
