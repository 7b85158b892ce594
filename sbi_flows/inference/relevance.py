"""Columns of x that have nothing to do with theta: found by tests, as a fit would only learn noise from them."""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.stats import rankdata

_FEWEST_ROWS = 1000  # with fewer, much that tells of theta would not show
_ROWS_TO_LOOK_AT = 10_000
_MOST_COLUMNS = 256
_ROWS_A_COLUMN = 5  # of those left out, for the test of all together
_KEPT_BY_CHANCE = 0.01
_WAVES, _WAVES_IN_PRODUCTS = 5, 2


def idle_columns(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which columns of ``x (n, c)`` show no dependence on theta, nor on columns that do, ``(c,)`` bool.

    Waves (cosines of 1 to 5 half periods over its ranks) of each column are correlated with waves of each parameter and of every
    other column, and with products of the two. Columns are kept that go with a parameter, with a product of a parameter and another
    column, or with a column that is kept: a channel that measures the noise of another one tells nothing of theta by itself. The others are
    left out, unless all of them together explain some of a parameter or of a product of two of them (the F test of a linear
    regression on their normal scores): many traces too weak to be seen one by one may add up.

    That any column of noise is kept has a probability of about 1 %. A column is left out by mistake where each of those correlations
    is below some 6 / sqrt(n): then it alone tells less than about 18 / n nats.

    Parameters
    ----------
    theta : ndarray (n, d)
    x : ndarray (n, c)

    Returns
    -------
    ndarray of bool (c,)
        None of them for fewer than 1000 simulations, more than 256 columns, or where no column shows a dependence. Columns with
        missing values are kept.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.uniform(size=(2000, 1))
    >>> idle_columns(theta, np.hstack([theta + rng.normal(size=(2000, 1)), rng.standard_cauchy((2000, 1))]))
    array([False,  True])
    """
    n, c = x.shape
    idle = np.zeros(c, dtype=bool)
    if n < _FEWEST_ROWS or not 1 < c <= _MOST_COLUMNS:
        return idle
    step = -(-n // _ROWS_TO_LOOK_AT)
    theta, x = theta[::step], x[::step]
    readable = np.flatnonzero(np.isfinite(x).all(axis=0) & (np.ptp(x, axis=0) > 0))
    if not len(readable):
        return idle
    tells, together = _dependences(_waves(theta), _waves(x[:, readable]))
    if not tells.any():
        return idle
    left = readable[~_reached(tells, together)]
    if len(left) and len(theta) > _ROWS_A_COLUMN * len(left) and not _explain(x[:, left], theta):
        idle[left] = True
    return idle


def _waves(columns: np.ndarray) -> np.ndarray:
    """``(n, c)`` to ``(c, waves, n)``, each of mean zero and mean square one."""
    phase = np.pi * (rankdata(columns, axis=0).T - 0.5)[:, None] / len(columns)
    return _scaled(np.cos(phase * np.arange(1, _WAVES + 1)[:, None]))


def _scaled(functions: np.ndarray) -> np.ndarray:
    apart = functions - functions.mean(axis=-1, keepdims=True)
    spread = apart.std(axis=-1, keepdims=True)
    return apart / np.where(spread > 0, spread, 1.0)


def _dependences(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which columns go with theta, by themselves or times another one, ``(c,)``; and which with each other, ``(c, c)``."""
    c, waves, n = x.shape
    rows, parameters = x.reshape(-1, n), theta.reshape(-1, n)
    few = theta[:, :_WAVES_IN_PRODUCTS].reshape(-1, n)
    tests = c * waves * (len(parameters) + c * (waves / 2 + _WAVES_IN_PRODUCTS * len(few)))
    bound = np.sqrt(n * stats.chi2.isf(_KEPT_BY_CHANCE / tests, 1))
    tells = (np.abs(rows @ parameters.T) > bound).reshape(c, -1).any(axis=1)
    together = (np.abs(rows @ rows.T) > bound).reshape(c, waves, c, waves).any(axis=(1, 3))
    for k in range(c):
        products = _scaled(x[k, :_WAVES_IN_PRODUCTS, None] * few).reshape(-1, n)
        seen = (np.abs(rows @ products.T) > bound).reshape(c, -1).any(axis=1)
        seen[k] = False
        tells |= seen
        tells[k] |= seen.any()
    return tells, together


def _reached(start: np.ndarray, linked: np.ndarray) -> np.ndarray:
    """All that is linked to the start, directly or by others."""
    reached = start.copy()
    while (grown := reached | linked[reached].any(axis=0)).sum() > reached.sum():
        reached = grown
    return reached


def _explain(columns: np.ndarray, theta: np.ndarray) -> bool:
    """Whether a linear regression on ``columns (n, k)`` explains parameters or their products."""
    n, k = columns.shape
    scores, parameters = _normal_scores(columns), _normal_scores(theta)
    first, second = np.triu_indices(theta.shape[1])
    targets = _scaled(np.hstack([parameters, parameters[:, first] * parameters[:, second]]).T).T
    basis = np.linalg.qr(scores - scores.mean(axis=0))[0]
    share = ((basis.T @ targets) ** 2).sum(axis=0) / n
    f = share / k / ((1 - share) / (n - k - 1))
    return bool(stats.f.sf(f, k, n - k - 1).min() < _KEPT_BY_CHANCE / targets.shape[1])


def _normal_scores(columns: np.ndarray) -> np.ndarray:
    return stats.norm.ppf((rankdata(columns, axis=0) - 0.5) / len(columns))
