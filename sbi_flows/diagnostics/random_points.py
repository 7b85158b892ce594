"""TARP: coverage of balls around reference points, which needs draws only and no density."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import as_rows, check_finite
from sbi_flows.diagnostics.coverage import LEVELS, Coverage, counts_at, coverage_record
from sbi_flows.diagnostics.draws import PosteriorDraws, PosteriorEstimator, as_posterior_estimator, posterior_draws, ranks_among
from sbi_flows.diagnostics.features import Scaling
from sbi_flows.diagnostics.ranks import FALSE_ALARM

# Distance of the reference points from the prediction, in spreads of what x leaves open.
OFFSET = 2.0


def tarp(
    estimator: PosteriorEstimator,
    theta: Any,
    x: Any,
    *,
    n_draws: int = 300,
    references: Any = "predicted",
    n_bootstrap: int = 200,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> Coverage:
    """Tests of accuracy with random points: the share of draws nearer to a reference point than the truth must be uniform.

    Parameters
    ----------
    estimator
        Has ``sample(x, n_samples, random_state)``; no density is needed.
    theta : array_like or DataFrame (m, d)
        Parameters drawn from the prior.
    x : array_like or DataFrame (m, ...)
        Their simulations, not used in training.
    n_draws : int
        Draws an observation.
    references : "predicted", "uniform" or array_like (m, d)
        Reference points. "uniform": in the box that holds the draws, whatever x, as in the paper's examples. "predicted": scattered
        around a linear prediction of theta from x, fitted on the other half of the pairs. Only references that depend on x can tell a
        posterior that ignores x.
    n_bootstrap : int
        Resamplings of the observations behind the 95 % band of the curve.
    false_alarm : float
        Chance that an exact posterior is called not reliable.
    random_state : optional

    Returns
    -------
    Coverage
        With an exact p-value; the band is for the eye.

    Raises
    ------
    ValueError
        When shapes do not match or draws are not finite.

    Examples
    --------
    >>> class Exact:
    ...     def sample(self, x, n_samples, random_state=None):
    ...         noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, 1))
    ...         return x[:, None] / 2 + np.sqrt(0.5) * noise
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(500, 1))
    >>> tarp(Exact(), theta, theta + rng.normal(size=(500, 1)), random_state=0).reliability.ok
    True

    References
    ----------
    Lemos, Coogan, Hezaveh & Perreault-Levasseur 2023, "Sampling-based accuracy testing of posterior estimators for general inference",
    ICML, arXiv:2302.03026.
    """
    rng = numpy_generator(random_state)
    posterior = posterior_draws(as_posterior_estimator(estimator), theta, x, n_draws, random_state=rng)
    return tarp_of_draws(posterior, references, n_bootstrap=n_bootstrap, false_alarm=false_alarm, random_state=rng)


def tarp_of_draws(
    posterior: PosteriorDraws,
    references: Any = "predicted",
    *,
    n_bootstrap: int = 200,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> Coverage:
    """:func:`tarp` from draws already made."""
    rng = numpy_generator(random_state)
    theta, draws = posterior.theta, posterior.draws
    m, n_draws, _ = draws.shape
    predicted, residual = cross_fitted_prediction(theta, posterior.x, rng)
    points = _reference_points(references, posterior, predicted, residual, rng)
    # What x leaves open of a parameter is its natural unit: then well-measured parameters count as much as the others.
    truth = np.linalg.norm((theta - points) / residual, axis=1)
    drawn = np.linalg.norm((draws - points[:, None]) / residual, axis=2)
    ranks = ranks_among(truth, drawn, rng)
    inside = ranks[:, None] < counts_at(LEVELS, n_draws)
    resampled = rng.multinomial(m, np.full(m, 1 / m), size=n_bootstrap) @ inside / m
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return coverage_record(ranks, n_draws, LEVELS, low, high, "TARP", false_alarm)


def cross_fitted_prediction(theta: np.ndarray, x: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A linear guess of theta from x, ``(m, d)``, each half of the rows fitted on the other; and the spread it leaves, ``(d,)``.

    The guess for a row knows nothing of that row's theta, so given x it is a fixed point, and truth and exact draws are exchangeable.
    """
    features = Scaling.fit(x)(x)
    halves = np.array_split(rng.permutation(len(theta)), 2)
    predicted = np.empty_like(theta)
    for fitted, guessed in (halves, halves[::-1]):
        predicted[guessed] = _ridge(features[fitted], theta[fitted])(features[guessed])
    # Half the central 68 %, which a few wild simulations cannot inflate.
    low, high = np.quantile(theta - predicted, [0.16, 0.84], axis=0)
    residual = 0.5 * (high - low)
    spread = np.ptp(theta, axis=0)
    return predicted, np.where(residual > 0, residual, np.where(spread > 0, spread, 1.0))


def _ridge(features: np.ndarray, theta: np.ndarray):
    """Least squares with a penalty that keeps more columns than rows harmless."""
    centre, mean = features.mean(axis=0), theta.mean(axis=0)
    left, singular, right = np.linalg.svd(features - centre, full_matrices=False)
    penalty = 1e-2 * len(features)
    slope = right.T @ ((singular / (singular**2 + penalty))[:, None] * (left.T @ (theta - mean)))
    return lambda rows: mean + (rows - centre) @ slope


def _reference_points(references: Any, posterior: PosteriorDraws, predicted, residual, rng: np.random.Generator) -> np.ndarray:
    if isinstance(references, str):
        if references == "predicted":
            # All on one side of the prediction: from its middle a shifted posterior looks almost like a true one.
            offset = rng.choice([-OFFSET, OFFSET], size=predicted.shape[1])
            return predicted + residual * (offset + rng.normal(size=predicted.shape))
        if references == "uniform":
            return rng.uniform(posterior.draws.min(axis=(0, 1)), posterior.draws.max(axis=(0, 1)), size=posterior.theta.shape)
        raise ValueError(f"Expected references 'predicted', 'uniform' or an array of shape {posterior.theta.shape}; got {references!r}.")
    points = as_rows(references, "references", posterior.theta.shape[1]).double().cpu().numpy()
    if len(points) != len(posterior.theta):
        raise ValueError(f"Expected one reference point a row of theta, ({len(posterior.theta)}, d); got {points.shape}.")
    check_finite(points, "references", posterior.names)
    return points
