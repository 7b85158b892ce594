"""Distances between samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator, seed_from
from sbi_flows._validation import choose, positive
from sbi_flows.diagnostics.classifiers import cross_validated_scores, two_samples

BINS = 50
NEIGHBOURS = 5
# Rows nearer than this, in standard deviations, are copies (a chain that stayed where it was), which show no density.
_COPIES = 1e-7
_LARGEST_LOG = 300.0


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


def hellinger_joint(
    x: Any, y: Any, *, method: str = "neighbours", max_rows: int = 10_000, random_state: RandomState = None
) -> tuple[float, float]:
    """Hellinger distance of the joint distributions, and the distance the same estimate shows between two halves of one sample.

    Parameters
    ----------
    x, y : array_like (n, d), (m, d)
        Independent draws; the first ``max_rows`` of each are used.
    method : "neighbours" or "classifier"
        "neighbours": ratios of distances to the fifth neighbour in each sample estimate ``int sqrt(p q)``; no training, good up to about
        ten dimensions. "classifier": ``E[2 sqrt(s (1 - s))]`` over both samples, s the held-out probability of gradient boosting.
    max_rows : int
    random_state : optional
        Of the shuffling behind the floor, and of the classifier.

    Returns
    -------
    distance, floor : float
        Between 0 and 1; a distance near the floor means that these samples cannot tell the distributions apart.

    Raises
    ------
    ValueError
        When columns differ, values are not finite, or rows are fewer than 20.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> distance, floor = hellinger_joint(rng.normal(size=(2000, 2)), rng.normal(1.0, size=(2000, 2)), random_state=0)
    >>> bool(floor < 0.15), bool(abs(distance - np.sqrt(1 - np.exp(-2 / 8))) < 0.05)
    (True, True)

    References
    ----------
    Póczos & Schneider 2011, "On the estimation of alpha-divergences", AISTATS.
    """
    choose("method", method, ("neighbours", "classifier"))
    positive("max_rows", max_rows, integer=True)
    rng = numpy_generator(random_state)
    x, y = two_samples(x, y, at_least=20)
    x, y = x[:max_rows], y[:max_rows]
    affinity = _affinity_by_neighbours if method == "neighbours" else _affinity_by_classifier
    # Estimates of an affinity of one scatter to both sides of it: the size of the deviation counts.
    deviations = []
    for _ in range(3):
        shuffled = rng.permutation(np.concatenate([x, y]))
        deviations.append(abs(1 - affinity(shuffled[: len(x)], shuffled[len(x) :], rng)))
    floor = math.sqrt(min(1.0, float(np.mean(deviations))))
    return math.sqrt(min(1.0, max(0.0, 1 - affinity(x, y, rng)))), floor


def wasserstein(x: Any, y: Any) -> np.ndarray:
    """First Wasserstein distance of each marginal, ``(d,)``, in the units of the columns.

    Examples
    --------
    >>> wasserstein(np.zeros((10, 1)), np.ones((10, 1)))
    array([1.])
    """
    from scipy.stats import wasserstein_distance

    x, y = two_samples(x, y, at_least=1)
    return np.array([wasserstein_distance(a, b) for a, b in zip(x.T, y.T, strict=True)])


def wasserstein2(x: Any, y: Any, *, max_rows: int = 1000) -> float:
    """Second Wasserstein distance of the joint distributions, by exact assignment of the first ``max_rows`` rows of each.

    Both samples need that many rows or are cut to the shorter. Columns enter in their own units. Finite samples never reach zero.

    Examples
    --------
    >>> round(wasserstein2(np.zeros((10, 2)), np.ones((10, 2))), 6)
    1.414214
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    positive("max_rows", max_rows, integer=True)
    x, y = two_samples(x, y, at_least=1)
    n = min(len(x), len(y), max_rows)
    cost = cdist(x[:n], y[:n], "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def _affinity_by_neighbours(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
    """``int sqrt(p q)``: mean over x of the root of the density ratio, each density by the volume that holds ``NEIGHBOURS`` rows."""
    from scipy.special import gammaln
    from sklearn.neighbors import NearestNeighbors

    d = x.shape[1]
    centre, root = np.mean(np.concatenate([x, y]), axis=0), _root_precision(np.concatenate([x, y]))
    x, y = (x - centre) @ root, (y - centre) @ root
    k = NEIGHBOURS
    # Trees lose to plain matrix products beyond a few dimensions.
    search = "kd_tree" if d <= 6 else "brute"
    # The mass nearer than the k-th neighbour is Gamma(k) distributed; this undoes the bias of the root of a ratio of two such masses.
    constant = math.exp(2 * gammaln(k) - gammaln(k + 0.5) - gammaln(k - 0.5))

    def one_way(a, b):
        own = NearestNeighbors(n_neighbors=k, algorithm=search).fit(a).kneighbors()[0][:, -1]
        other = NearestNeighbors(n_neighbors=k, algorithm=search).fit(b).kneighbors(a)[0][:, -1]
        usable = (own > _COPIES) & (other > _COPIES)
        ratio = d * (np.log(own[usable]) - np.log(other[usable])) + math.log((len(a) - 1) / len(b))
        return constant * np.mean(np.exp(np.minimum(0.5 * ratio, _LARGEST_LOG))) if usable.any() else 0.0

    return 0.5 * (one_way(x, y) + one_way(y, x))


def _affinity_by_classifier(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
    """``int sqrt(p q) = E[2 sqrt(s (1 - s))]`` over rows of both samples in equal number."""
    n = min(len(x), len(y))
    scores = cross_validated_scores(x[:n], y[:n], "gradient boosting", 5, seed_from(rng))[0]
    return float(np.mean(2 * np.sqrt(scores * (1 - scores))))


def _root_precision(rows: np.ndarray) -> np.ndarray:
    """A matrix that makes the covariance of ``rows`` the identity; directions without any spread are left out."""
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows.T)))
    kept = values > 1e-12 * max(values.max(), 1e-300)
    return vectors[:, kept] / np.sqrt(values[kept])


def _one(x, y, weights_x, weights_y, bins: int) -> float:
    low, high = np.quantile(np.concatenate([x, y]), [0.001, 0.999])
    if not low < high:
        return 0.0 if np.ptp(np.concatenate([x, y])) == 0 else 1.0
    edges = np.linspace(low, high, bins + 1)
    p, q = (np.histogram(v, edges, weights=w)[0].astype(np.float64) for v, w in ((x, weights_x), (y, weights_y)))
    if p.sum() == 0 or q.sum() == 0:
        return 1.0
    return math.sqrt(max(0.0, 1 - np.sqrt(p / p.sum() * (q / q.sum())).sum()))
