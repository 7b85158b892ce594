"""Distances between samples."""

from __future__ import annotations

import math

import numpy as np

BINS = 50


def hellinger(
    x: np.ndarray, y: np.ndarray, *, weights_x: np.ndarray | None = None, weights_y: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Hellinger distance of each marginal: ``H^2 = 1 - sum_b sqrt(p_b q_b)`` over equal bins.

    Parameters
    ----------
    x, y : ndarray (n, d), (m, d)
        Draws of the two distributions.
    weights_x, weights_y : ndarray (n,), (m,), optional
    bins : int
        Equal bins spanning the pooled 0.1-99.9 % range of each column.

    Returns
    -------
    ndarray (d,)
        Between 0 and 1. Finite samples never reach 0: compare with :func:`hellinger_floor`.

    Raises
    ------
    ValueError
        When the two do not have the same columns.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> bool(hellinger(rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 1)))[0] < 2 * hellinger_floor(20_000, 20_000))
    True
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"Expected two sets of draws (n, d) and (m, d); got {x.shape} and {y.shape}.")
    return np.array([_one(x[:, j], y[:, j], weights_x, weights_y, bins) for j in range(x.shape[1])])


def hellinger_floor(ess_x: float, ess_y: float, bins: int = BINS) -> float:
    """The distance that two samples of one distribution show on average, given their effective sizes.

    A bin's count fluctuates by the root of its mean, which adds ``(bins - 1) / 8`` times ``1/ess`` to H^2 from each side.
    """
    return math.sqrt((bins - 1) / 8 * (1 / ess_x + 1 / ess_y))


def _one(x, y, weights_x, weights_y, bins: int) -> float:
    low, high = np.quantile(np.concatenate([x, y]), [0.001, 0.999])
    if not low < high:
        return 0.0 if np.ptp(np.concatenate([x, y])) == 0 else 1.0
    edges = np.linspace(low, high, bins + 1)
    p, q = (np.histogram(v, edges, weights=w)[0].astype(np.float64) for v, w in ((x, weights_x), (y, weights_y)))
    if p.sum() == 0 or q.sum() == 0:
        return 1.0
    return math.sqrt(max(0.0, 1 - np.sqrt(p / p.sum() * (q / q.sum())).sum()))
