"""What calibration checks share: draws of the posterior of many simulated observations, and where the truth ranks among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import as_rows, check_finite, positive
from sbi_flows.distributions import Distribution
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.inference.simulations import check_inside, in_order

# Rows handed to an estimator in one call: large enough to be one batch, small enough for any memory.
ROWS_AT_ONCE = 100_000
FIRST_ROWS = 10

Quantity = Callable[[np.ndarray, Any], np.ndarray]


class PosteriorEstimator(Protocol):
    """Anything that gives a posterior for an observation: NPE, NLE, NRE, an exact posterior, somebody else's wrapped in a class."""

    def sample(self, x: Any, n_samples: int, random_state: RandomState = None) -> np.ndarray:
        """``(m, n_samples, d)`` independent draws for observations ``x (m, ...)``: an autocorrelated chain would look miscalibrated."""
        ...

    def log_prob(self, theta: np.ndarray, x: Any) -> np.ndarray:
        """``(n,)`` log-densities of ``theta (n, d)`` given ``x (n, ...)``, row by row."""
        ...


@dataclass(frozen=True)
class PosteriorDraws:
    """Posterior draws for simulated observations, beside the parameters that made them.

    Attributes
    ----------
    theta : ndarray (m, d)
        The parameters behind each observation.
    x : ndarray or DataFrame (m, ...)
    draws : ndarray (m, n_draws, d)
    names : tuple of str
    """

    theta: np.ndarray
    x: Any
    draws: np.ndarray
    names: tuple[str, ...]


def posterior_draws(
    estimator: PosteriorEstimator | ConditionalFlow,
    theta: Any,
    x: Any,
    n_draws: int,
    *,
    names: Sequence[str] | None = None,
    max_seconds: float | None = None,
    random_state: RandomState = None,
) -> PosteriorDraws:
    """Draws of the estimated posterior for every row of ``x``, in a few large calls.

    Parameters
    ----------
    estimator
        Has ``sample(x, n_samples, random_state) -> (m, n_samples, d)``.
    theta : array_like or DataFrame (m, d)
        Parameters drawn from the prior. Columns of a DataFrame are put in the estimator's order.
    x : array_like or DataFrame (m, ...)
        What the simulator made of them. Simulations the estimator was not trained on.
    n_draws : int
        Draws an observation.
    names : sequence of str, optional
        By default the columns of ``theta``, or what the estimator calls them.
    max_seconds : float, optional
        After this time no further observations are begun, and the result has those that are done. The first ten are always done.
    random_state : optional

    Raises
    ------
    ValueError
        When ``theta`` and ``x`` do not pair up, ``theta`` has other columns than the estimator was trained on or lies outside its prior,
        or the estimator's draws have another shape or are not finite.

    Examples
    --------
    >>> class Exact:
    ...     def sample(self, x, n_samples, random_state=None):
    ...         noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, 1))
    ...         return x[:, None] / 2 + np.sqrt(0.5) * noise
    >>> posterior_draws(Exact(), np.zeros((20, 1)), np.zeros((20, 1)), 10, random_state=0).draws.shape
    (20, 10, 1)
    """
    positive("n_draws", n_draws, integer=True)
    theta, names = as_trained(estimator, theta, names)
    labels = parameter_names(estimator, theta, names)
    theta = as_rows(theta, "theta").double().cpu().numpy()
    check_finite(theta, "theta", labels)
    prior = getattr(estimator, "prior_", None)
    if isinstance(prior, Distribution):
        if prior.features != theta.shape[1]:
            raise ValueError(
                f"Expected theta of shape (m, {prior.features}) to match the prior; got {theta.shape}. The order is estimator, "
                "then theta, then x."
            )
        check_inside(theta, np.ones(len(theta), dtype=bool), prior, labels)
    x = as_observations(x)
    m, d = theta.shape
    if len(x) != m:
        raise ValueError(f"Expected one row of x for each of theta; got {m} rows of theta and {len(x)} of x.")
    if m < 10:
        raise ValueError(f"Expected at least 10 pairs of theta and x, better several hundred; got {m}. Simulate more from the prior.")
    rng = numpy_generator(random_state)
    begun = time.perf_counter()
    draws = np.empty((m, n_draws, d))
    done = 0
    for rows in _growing_slices(m, max(1, ROWS_AT_ONCE // n_draws)):
        if max_seconds is not None and done and time.perf_counter() - begun > max_seconds:
            break
        drawn = np.asarray(estimator.sample(take(x, rows), n_draws, random_state=rng), dtype=np.float64)
        expected = (rows.stop - rows.start, n_draws, d)
        if drawn.shape != expected:
            raise ValueError(
                f"Expected estimator.sample(x, {n_draws}) of shape {expected} for {expected[0]} observations; got {drawn.shape}."
            )
        if not np.isfinite(drawn).all():
            bad = rows.start + int(np.flatnonzero(~np.isfinite(drawn).all(axis=(1, 2)))[0])
            raise ValueError(f"Expected finite draws; the estimator gave NaN or inf for observation {bad}. Look at x[{bad}].")
        draws[rows] = drawn
        done = rows.stop
    return PosteriorDraws(theta[:done], take(x, slice(0, done)), draws[:done], labels)


def _growing_slices(m: int, most: int) -> Iterator[slice]:
    """Slices of 10, 20, 40, ... rows up to ``most``: a slow estimator can be stopped soon, a fast one is called a few times only."""
    start, size = 0, min(FIRST_ROWS, most)
    while start < m:
        yield slice(start, min(start + size, m))
        start, size = start + size, min(2 * size, most)


def quantity_ranks(quantity: Quantity, posterior: PosteriorDraws, rng: np.random.Generator, name: str) -> np.ndarray:
    """Rank of ``quantity(theta, x)`` of the true parameters among that of the draws, ``(m,)`` in 0..n_draws."""
    m, n_draws, d = posterior.draws.shape
    truth = _evaluate(quantity, posterior.theta, posterior.x, name)
    drawn = np.empty((m, n_draws))
    per_call = max(1, ROWS_AT_ONCE // n_draws)
    for start in range(0, m, per_call):
        rows = np.arange(start, min(start + per_call, m))
        values = _evaluate(quantity, posterior.draws[rows].reshape(-1, d), take(posterior.x, np.repeat(rows, n_draws)), name)
        drawn[rows] = values.reshape(len(rows), n_draws)
    return ranks_among(truth, drawn, rng)


def ranks_among(truth: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rank of each of ``truth (m,)`` among ``drawn (m, n)``: how many are smaller; a place among equals is drawn at random.

    Ties come with discrete parameters and with draws on a hard edge; any fixed rule for them would make exact posteriors look wrong.
    """
    smaller = (drawn < truth[:, None]).sum(axis=1)
    equal = (drawn == truth[:, None]).sum(axis=1)
    return smaller + rng.integers(0, equal + 1)


def as_trained(estimator: Any, theta: Any, names: Sequence[str] | None = None) -> tuple[Any, Sequence[str] | None]:
    """``theta`` with the columns of a DataFrame in the order the estimator was trained on, and ``names`` moved along with them."""
    trained = getattr(estimator, "theta_names_", None)
    if trained is None or not hasattr(theta, "columns"):
        return theta, names
    columns, trained = [str(name) for name in theta.columns], list(trained)
    # An estimator trained on an array only numbers its parameters: nothing says that the order differs.
    if columns == trained or (trained == [f"theta_{j}" for j in range(len(columns))] and not set(columns) & set(trained)):
        return theta, names
    if names is not None and len(names) == len(columns) and set(columns) == set(trained):
        names = [names[columns.index(name)] for name in trained]
    return in_order(theta, trained, "theta"), names


def parameter_names(estimator: Any, theta: Any, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names given, or of the DataFrame's columns, or what the estimator calls its parameters, or ``theta_0, theta_1, ...``"""
    d = np.shape(theta)[1] if np.ndim(theta) == 2 else 0
    for known in (names, getattr(theta, "columns", None), getattr(estimator, "theta_names_", None)):
        if known is not None and len(known) == d:
            return tuple(str(name) for name in known)
    if names is not None:
        raise ValueError(f"Expected {d} names, one a column of theta; got {len(names)}.")
    return tuple(f"theta_{j}" for j in range(d))


def as_posterior_estimator(estimator: Any) -> PosteriorEstimator:
    """The estimator itself; a :class:`ConditionalFlow`, whose ``log_prob`` takes the condition first, is turned round."""
    if isinstance(estimator, ConditionalFlow):
        return _Turned(estimator)
    if not callable(getattr(estimator, "sample", None)):
        raise TypeError(
            f"Expected an estimator with sample(x, n_samples, random_state) and log_prob(theta, x); got {type(estimator).__name__}."
        )
    return estimator


class _Turned:
    def __init__(self, estimator: ConditionalFlow):
        self._estimator = estimator
        self.theta_names_ = estimator.target_names_

    def sample(self, x, n_samples, random_state=None):
        return self._estimator.sample(x, n_samples, random_state)

    def log_prob(self, theta, x):
        return self._estimator.log_prob(x, theta)


def as_observations(x: Any) -> Any:
    """Observations as an array, or the DataFrame itself, whose column names an estimator may want to see."""
    if hasattr(x, "iloc"):
        return x if np.ndim(x) == 2 else x.to_numpy()
    array = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    if array.ndim == 0:
        raise ValueError(f"Expected observations x of shape (n, ...); got the single value {x!r}.")
    return array


def take(x: Any, rows: Any) -> Any:
    """Rows of an array or DataFrame."""
    return x.iloc[rows] if hasattr(x, "iloc") else x[rows]


def _evaluate(quantity: Quantity, theta: np.ndarray, x: Any, name: str) -> np.ndarray:
    values = np.asarray(quantity(theta, x), dtype=np.float64)
    if values.shape != (len(theta),):
        raise ValueError(f"Expected {name}(theta, x) of shape ({len(theta)},) for {len(theta)} rows; got {values.shape}.")
    if np.isnan(values).any():
        raise ValueError(f"Expected numbers from {name}(theta, x); got {int(np.isnan(values).sum())} NaN among {len(values)}.")
    return values
