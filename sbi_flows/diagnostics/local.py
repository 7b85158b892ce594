"""Local and joint C2ST: is the posterior right at one observation, or on average over all, judged by simulations only?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import positive
from sbi_flows.diagnostics.draws import PosteriorDraws, PosteriorEstimator, as_observations, as_posterior_estimator, posterior_draws
from sbi_flows.diagnostics.features import Scaling, leading_components
from sbi_flows.diagnostics.ranks import FALSE_ALARM
from sbi_flows.results import Reliability

# Draws of each observation that measure the posterior's centre and spread; one more is the draw put beside the truth.
MOMENT_DRAWS = 64
X_COMPONENTS = 8
RANDOM_FEATURES = 200
# Draws of each observation over which the classifier's ratio of densities is made to average to one.
OFFSET_DRAWS = 16
PENALTIES = 10.0 ** np.arange(-2, 4)
# Degrees of freedom count this much in generalised cross-validation (Gu 2013): plain, it now and then picks a gross overfit.
INFLATION = 1.4
# Rows of features at once, times a thousand exchanges.
ROWS_AT_ONCE = 2000


@dataclass(frozen=True)
class LocalC2ST:
    """Whether truth and posterior draws can be told apart at one observation, or at all.

    Attributes
    ----------
    statistic : float
        Mean square of the classifier's preference (0 none, 1 certain) over posterior draws. Least squares shrink it: differences
        far beyond doubt read less than 1.
    p_value : float
        From exchanging truth and draw at random in every simulation: exact when the posterior is right everywhere.
    null : ndarray (n_permutations,)
    theta : ndarray (n, d)
        Posterior draws at ``x_o``, or one for every x.
    preference : ndarray (n,)
        Signed, between -1 and 1: about ``(p - q) / (p + q)`` of the true density p and the estimated q, so 0 where they are equal;
        where it is positive the posterior has too little mass, where negative too much.
    where : str
        "x_o" or "all x".
    names : tuple of str
        Of the parameters.
    reliability : Reliability
    """

    statistic: float
    p_value: float
    null: np.ndarray = field(repr=False)
    theta: np.ndarray = field(repr=False)
    preference: np.ndarray = field(repr=False)
    where: str
    names: tuple[str, ...]
    reliability: Reliability

    def __repr__(self) -> str:
        return f"LocalC2ST(at {self.where}, statistic={self.statistic:.3g}, p={self.p_value:.2g})   {self.reliability}"


def local_c2st(
    estimator: PosteriorEstimator,
    theta: Any,
    x: Any,
    x_o: Any,
    *,
    n_draws: int = 1000,
    n_permutations: int = 999,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> LocalC2ST:
    """Local classifier two-sample test of the posterior at ``x_o``.

    A classifier learns to tell pairs (theta, x) from pairs (draw of the posterior given x, x); where it has a preference at ``x_o``, the
    posterior is wrong there. The classifier is ridge regression on random cosines, squares and products of the standardised parameters
    and of x, so its null distribution over a thousand exchanges of truth and draw costs one matrix product, not a thousand fits.

    Parameters
    ----------
    estimator
        Has ``sample(x, n_samples, random_state)``.
    theta : array_like or DataFrame (m, d)
        Parameters drawn from the prior.
    x : array_like or DataFrame (m, ...)
        Their simulations, not used in training.
    x_o : array_like (...) or (1, ...)
        One observation.
    n_draws : int
        Posterior draws at ``x_o`` over which the preference is averaged.
    n_permutations : int
        The smallest p-value is one over this plus one.
    false_alarm : float
        Chance that an exact posterior is called not reliable.
    random_state : optional

    Returns
    -------
    LocalC2ST

    Raises
    ------
    ValueError
        When shapes do not match or draws are not finite.

    Examples
    --------
    >>> class Narrow:
    ...     def sample(self, x, n_samples, random_state=None):
    ...         noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, 1))
    ...         return x[:, None] / 2 + 0.5 * np.sqrt(0.5) * noise
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(1000, 1))
    >>> local_c2st(Narrow(), theta, theta + rng.normal(size=(1000, 1)), np.array([0.3]), random_state=0).reliability.ok
    False

    References
    ----------
    Linhart, Gramfort & Rodrigues 2023, "L-C2ST: local diagnostics for posterior approximations in simulation-based inference",
    NeurIPS, arXiv:2306.03580.
    """
    rng = numpy_generator(random_state)
    estimator = as_posterior_estimator(estimator)
    posterior = posterior_draws(estimator, theta, x, MOMENT_DRAWS + 1, random_state=rng)
    return local_c2st_of_draws(
        estimator, posterior, x_o, n_draws=n_draws, n_permutations=n_permutations, false_alarm=false_alarm, random_state=rng
    )


def local_c2st_of_draws(
    estimator: PosteriorEstimator,
    posterior: PosteriorDraws,
    x_o: Any,
    *,
    n_draws: int = 1000,
    n_permutations: int = 999,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> LocalC2ST:
    """:func:`local_c2st` from draws already made for the simulations, at least three of each."""
    positive("n_draws", n_draws, integer=True)
    rng = numpy_generator(random_state)
    row = one_observation(x_o, posterior.x)
    drawn = np.asarray(estimator.sample(row, n_draws + MOMENT_DRAWS, random_state=rng), dtype=np.float64)[0]
    standardise = _Standardised(posterior.draws[:, 1:], posterior.x)
    z, at = standardise.elsewhere(drawn[:n_draws], drawn[n_draws:], row)
    # One observation: the draws that are judged are those over which the ratio of densities averages to one.
    judged = z[None]
    points = (judged, judged, at[:1])
    return _exchange(posterior, standardise, points, drawn[:n_draws], "x_o", n_permutations, false_alarm, rng)


def joint_c2st(
    estimator: PosteriorEstimator,
    theta: Any,
    x: Any,
    *,
    n_permutations: int = 999,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> LocalC2ST:
    """Can pairs (theta, x) be told from pairs (posterior draw, x), over all simulations together?

    The classifier and the null distribution are those of :func:`local_c2st`; its preference is averaged over one draw for every x. It
    sees what ranks and coverage cannot: missing correlations, and a posterior that ignores x.

    Parameters
    ----------
    estimator, theta, x, n_permutations, false_alarm, random_state
        As in :func:`local_c2st`.

    Returns
    -------
    LocalC2ST

    Raises
    ------
    ValueError
        When shapes do not match or draws are not finite.

    Examples
    --------
    >>> class Prior:
    ...     def sample(self, x, n_samples, random_state=None):
    ...         return np.random.default_rng(random_state).normal(size=(len(x), n_samples, 1))
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(500, 1))
    >>> joint_c2st(Prior(), theta, theta + rng.normal(size=(500, 1)), random_state=0).reliability.ok
    False

    References
    ----------
    Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests", arXiv:1610.06545; Linhart et al. 2023, arXiv:2306.03580.
    """
    rng = numpy_generator(random_state)
    posterior = posterior_draws(as_posterior_estimator(estimator), theta, x, MOMENT_DRAWS + 2, random_state=rng)
    return joint_c2st_of_draws(posterior, n_permutations=n_permutations, false_alarm=false_alarm, random_state=rng)


def joint_c2st_of_draws(
    posterior: PosteriorDraws, *, n_permutations: int = 999, false_alarm: float = FALSE_ALARM, random_state: RandomState = None
) -> LocalC2ST:
    """:func:`joint_c2st` from draws already made for the simulations, at least four of each."""
    judged = posterior.draws[:, 1]
    standardise = _Standardised(posterior.draws[:, 2:], posterior.x)
    others = np.stack([standardise(draws) for draws in posterior.draws[:, 2 : 2 + OFFSET_DRAWS].swapaxes(0, 1)], axis=1)
    points = (standardise(judged)[:, None], others, standardise.x)
    return _exchange(posterior, standardise, points, judged, "all x", n_permutations, false_alarm, numpy_generator(random_state))


def _exchange(
    posterior: PosteriorDraws,
    standardise: _Standardised,
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    theta: np.ndarray,
    where: str,
    n_permutations: int,
    false_alarm: float,
    rng: np.random.Generator,
) -> LocalC2ST:
    """The test: the classifier's preference at ``points``, beside that of classifiers trained after exchanging truths and draws."""
    positive("n_permutations", n_permutations, integer=True)
    # The draw put beside the truth is apart from those that measure centre and spread, or it would sit nearer to them than the truth.
    rival = standardise(posterior.draws[:, 0])
    truth = standardise(posterior.theta)
    # Scales from both alike, so that an exchange leaves them as they are.
    features = _Features(rng, np.concatenate([truth, rival]), np.concatenate([standardise.x, standardise.x]))
    contrast = features(truth, standardise.x) - features(rival, standardise.x)
    signs = np.concatenate([np.ones((len(rival), 1)), rng.choice([-1.0, 1.0], (len(rival), n_permutations))], axis=1)
    preference = _preference(features, _ridge_by_cross_validation(contrast, signs), *points)
    statistics = np.mean(preference**2, axis=0)
    p_value = float(np.mean(statistics >= statistics[0] * (1 - 1e-12)))
    reasons = []
    if p_value < false_alarm:
        advice = "train on more simulations" + (" near x_o, for instance by sequential inference" if where == "x_o" else "")
        reasons.append(f"at {where} truth and posterior draws can be told apart (C2ST p={p_value:.2g}): {advice}")
    verdict = Reliability.from_reasons(reasons)
    return LocalC2ST(float(statistics[0]), p_value, statistics[1:], theta, preference[:, 0], where, posterior.names, verdict)


def _preference(features: _Features, weights: np.ndarray, judged: np.ndarray, draws: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Preferences ``(o * n, p)`` for ``judged (o, n, d)`` at observations ``x (o, c)``, for every column of ``weights (k, p)``.

    Features of truth and rival are subtracted at the same x, so the weights know half the log ratio of densities up to a function of x
    only. That the ratio averages to one over ``draws (o, k, d)`` of the posterior at x fixes it.
    """
    at_once = max(1, ROWS_AT_ONCE // (judged.shape[1] + draws.shape[1]))
    parts = []
    for start in range(0, len(x), at_once):
        here = slice(start, start + at_once)

        def half_log_ratio(z: np.ndarray, x: np.ndarray = x[here]) -> np.ndarray:
            rows = features(z.reshape(-1, z.shape[-1]), np.repeat(x, z.shape[1], axis=0))
            return (rows @ weights).reshape(len(x), z.shape[1], -1)

        value = half_log_ratio(judged[here])
        over = value if draws is judged else half_log_ratio(draws[here])
        largest = over.max(axis=1, keepdims=True)
        offset = largest + 0.5 * np.log(np.exp(2 * (over - largest)).mean(axis=1, keepdims=True))
        parts.append(np.tanh(value - offset).reshape(-1, weights.shape[1]))
    return np.concatenate(parts)


def one_observation(x_o: Any, x: Any) -> Any:
    """``x_o`` as the one row ``(1, ...)`` of the form of ``x (m, ...)``."""
    row = as_observations(x_o)
    if hasattr(x, "iloc") and not hasattr(row, "iloc"):
        import pandas as pd

        row = pd.DataFrame(np.reshape(row, (1, -1)), columns=x.columns) if np.size(row) == x.shape[1] else row
    if np.shape(row) == np.shape(x)[1:]:
        row = row[None]
    if np.shape(row) != (1, *np.shape(x)[1:]):
        raise ValueError(f"Expected one observation x_o of shape {np.shape(x)[1:]} like a row of x; got {np.shape(x_o)}.")
    return row


class _Standardised:
    """Parameters in units of the posterior's own centre and spread at their x; x by its leading components."""

    def __init__(self, draws: np.ndarray, x: Any):
        self._floor = 1e-6 * np.ptp(draws, axis=(0, 1)) + 1e-300
        self._centre, self._spread = draws.mean(axis=1), np.maximum(draws.std(axis=1), self._floor)
        self._scaling = Scaling.fit(x)
        rows = self._scaling(x)
        self._mean, self._directions = rows.mean(axis=0), leading_components(rows, X_COMPONENTS)
        self.x = (rows - self._mean) @ self._directions

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        """``theta (m, d)``, one row for each of the simulations."""
        return (theta - self._centre) / self._spread

    def elsewhere(self, theta: np.ndarray, draws: np.ndarray, x_o: Any) -> tuple[np.ndarray, np.ndarray]:
        """``theta (n, d)`` at an observation of its own, whose centre and spread ``draws`` measure; and its components, repeated."""
        z = (theta - draws.mean(axis=0)) / np.maximum(draws.std(axis=0), self._floor)
        return z, np.repeat((self._scaling(x_o) - self._mean) @ self._directions, len(theta), axis=0)


class _Features:
    """Functions of standardised parameters z and components of x, ``(n, k)``, scaled to unit variance over the simulations."""

    def __init__(self, rng: np.random.Generator, z: np.ndarray, x: np.ndarray):
        self._pairs = np.triu_indices(z.shape[1])
        width = z.shape[1] + x.shape[1]
        # Cosines that turn over about one standard deviation in z, and more slowly along x.
        scale = np.concatenate([np.full(z.shape[1], 1.0), np.full(x.shape[1], 0.5)]) / np.sqrt(z.shape[1])
        self._frequency = scale[:, None] * rng.normal(size=(width, RANDOM_FEATURES))
        self._phase = rng.uniform(0, 2 * np.pi, RANDOM_FEATURES)
        self._scale = np.ones(1)
        spread = self(z, x).std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0)

    def __call__(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        # Squashed, so that a draw ten spreads away is remarkable but does not outweigh all others.
        z = 3 * np.tanh(z / 3)
        squares = (z[:, :, None] * z[:, None, :])[:, self._pairs[0], self._pairs[1]]
        products = (z[:, :, None] * x[:, None, :]).reshape(len(z), -1)
        cosines = np.cos(np.concatenate([z, x], axis=1) @ self._frequency + self._phase)
        return np.concatenate([z, squares, products, cosines], axis=1) / self._scale


def _ridge_by_cross_validation(contrast: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Ridge weights ``(k, p)`` for every column of labels ``signs (m, p)``, each with its own penalty by generalised cross-validation.

    Truth and rival of one pair have opposite labels, so the regression sees their difference. The choice of the penalty is part of the
    procedure that is repeated under every exchange of labels, which keeps the p-value exact.
    """
    m = len(contrast)
    left, singular, right = np.linalg.svd(contrast, full_matrices=False)
    projected = left.T @ signs
    outside = m - (projected**2).sum(axis=0)
    best = np.full(signs.shape[1], np.inf)
    weights = np.zeros((contrast.shape[1], signs.shape[1]))
    for penalty in PENALTIES * m:
        kept = singular**2 / (singular**2 + penalty)
        error = (((1 - kept)[:, None] * projected) ** 2).sum(axis=0) + outside
        score = error / max(m - INFLATION * kept.sum(), 1e-3 * m) ** 2
        better = score < best
        best[better] = score[better]
        weights[:, better] = right.T @ ((kept / np.maximum(singular, 1e-300))[:, None] * projected[:, better])
    return weights
