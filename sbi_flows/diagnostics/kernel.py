"""MMD: the distance between two samples in the space of a Gaussian kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import positive
from sbi_flows.diagnostics.classifiers import two_samples
from sbi_flows.diagnostics.ranks import FALSE_ALARM
from sbi_flows.results import Reliability


@dataclass(frozen=True)
class MMD:
    """Maximum mean discrepancy of two samples.

    Attributes
    ----------
    mmd2 : float
        Unbiased estimate of the squared discrepancy; about zero, of either sign, for one distribution.
    bandwidth : float
        Of the kernel ``exp(-|x - y|^2 / (2 bandwidth^2))``, in standard deviations of the pooled sample.
    p_value : float
        By permutation of the rows: exact.
    null : ndarray (n_permutations,)
        The estimates under permutation.
    n_x, n_y : int
        Rows used.
    reliability : Reliability
    """

    mmd2: float
    bandwidth: float
    p_value: float
    null: np.ndarray = field(repr=False)
    n_x: int
    n_y: int
    reliability: Reliability

    def __repr__(self) -> str:
        return f"MMD(mmd2={self.mmd2:.3g}, p={self.p_value:.2g})   {self.reliability}"


def mmd(
    x: Any,
    y: Any,
    *,
    bandwidth: float | None = None,
    n_permutations: int = 999,
    max_rows: int = 1000,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> MMD:
    """Kernel two-sample test.

    Parameters
    ----------
    x, y : array_like (n, d), (m, d)
        Independent draws; columns are standardised by the pooled sample.
    bandwidth : float, optional
        By default the median distance between rows of the pooled sample.
    n_permutations : int
        The smallest p-value is one over this plus one.
    max_rows : int
        Rows of each sample that are used, the first ones: cost grows with the square.
    false_alarm : float
        Chance that two samples of one distribution are told apart.
    random_state : optional

    Returns
    -------
    MMD

    Raises
    ------
    ValueError
        When columns differ, values are not finite, or there are fewer than two rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> mmd(rng.normal(size=(200, 2)), rng.normal(1, size=(200, 2)), random_state=0).p_value
    0.001

    References
    ----------
    Gretton, Borgwardt, Rasch, Schölkopf & Smola 2012, "A kernel two-sample test", JMLR 13.
    """
    for name, value in (("n_permutations", n_permutations), ("max_rows", max_rows)):
        positive(name, value, integer=True)
    rng = numpy_generator(random_state)
    x, y = two_samples(x, y)
    x, y = x[:max_rows], y[:max_rows]
    pooled = np.concatenate([x, y])
    spread = pooled.std(axis=0)
    pooled = (pooled - pooled.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    squared = np.maximum(0.0, _squared_distances(pooled))
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(squared[np.triu_indices(len(pooled), 1)])))
        # More than half of the rows may be one and the same point.
        bandwidth = bandwidth or 1.0
    positive("bandwidth", bandwidth)
    gram = np.exp(-squared / (2 * bandwidth**2))
    np.fill_diagonal(gram, 0.0)
    in_x = np.zeros((len(pooled), n_permutations + 1))
    in_x[: len(x), 0] = 1.0
    for k in range(1, n_permutations + 1):
        in_x[rng.permutation(len(pooled))[: len(x)], k] = 1.0
    values = _unbiased(gram, in_x, len(x), len(y))
    # Equal partitions of few rows differ by rounding only.
    p_value = float(np.mean(values >= values[0] - 1e-12))
    reasons = []
    if p_value < false_alarm:
        reasons.append(f"the kernel means differ, mmd2={values[0]:.3g} (p={p_value:.2g}): the samples are not one distribution")
    return MMD(float(values[0]), bandwidth, p_value, values[1:], len(x), len(y), Reliability.from_reasons(reasons))


def _unbiased(gram: np.ndarray, in_x: np.ndarray, n: int, m: int) -> np.ndarray:
    """Unbiased squared discrepancies for partitions given as columns of ones and zeros, ``(k,)``; the diagonal of ``gram`` is zero."""
    toward_x = gram @ in_x
    within_x = (in_x * toward_x).sum(axis=0)
    across = toward_x.sum(axis=0) - within_x
    within_y = gram.sum() - within_x - 2 * across
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    norms = (rows**2).sum(axis=1)
    return norms[:, None] + norms - 2 * rows @ rows.T
