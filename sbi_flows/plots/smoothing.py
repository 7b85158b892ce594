"""How much counts of draws on a grid are smoothed: as much as predicts draws that were not counted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_EMPTY = 0.02  # share of the fullest cell's draws up to which a cell is empty space between modes
_SEGMENTS = 20
_FEWEST = 20
_STEP = 2**-0.5
_NARROWEST = 1 / 64
_WORTHWHILE = 2.0  # nats that a narrower kernel must win, so that it follows structure and not noise
_BACKGROUND = 1e-3  # share of a uniform density, which bounds what one far draw can say
_DENSE_SHARE, _DENSE_DRAWS = 0.1, 50


def narrowest_scale(x: np.ndarray) -> float:
    """Standard deviation of the normal mode whose middle tenth would be as wide as the closest tenth of the draws; 0 for copies."""
    from scipy.stats import norm

    ranked = np.sort(x)
    n = len(ranked)
    held = min(max(int(_DENSE_SHARE * n), _DENSE_DRAWS), n - 1)
    if held < 1:
        return 0.0
    width = float((ranked[held:] - ranked[:-held]).min())
    return width / (2 * float(norm.ppf(0.5 + 0.5 * min(held / n, 0.95))))


def smoothing_kernel(cells: np.ndarray, edges: tuple[np.ndarray, np.ndarray], smooth: np.ndarray, ess: float) -> np.ndarray:
    """A normal distribution on the cells, with the shape of the draws within a mode and the width that predicts draws best.

    Its shape follows their correlation, so a thin ridge is smoothed along and not across. Its width is a share of Scott's rule, one an
    axis, by the likelihood of one half of the draws under the other half smoothed: where modes lie closer than the rule's width, or draws
    bend, wider kernels predict them badly. Halves are dealt in segments, as neighbours in a chain are nearly copies.

    Parameters
    ----------
    cells : ndarray (n, 2)
        Draws within the grid, in units of its cells.
    edges : pair of ndarray
        Of the cells, in the same units.
    smooth : ndarray (2,) bool
        Which axes are continuous; discrete values are not mixed.
    ess : float
        The number of independent draws that they are worth.
    """
    if len(cells) < 3 or not smooth.any():
        return np.ones((1, 1))
    n = int(np.clip(ess, 1, len(cells)))
    rows = cells[np.linspace(0, len(cells) - 1, n).astype(int)]
    shape = _covariance_within_modes(cells) if smooth.all() else np.cov(cells.T)
    exponent = -1 / (4 + smooth.sum())
    share = np.ones(2)
    if n >= _FEWEST:
        halves = [np.histogram2d(part[:, 0], part[:, 1], bins=list(edges))[0] for part in _halves(rows)]
        share = _best_share(lambda tried: _score(halves, _kernel(shape, tried * (n / 2) ** exponent, smooth, edges)), smooth)
    return _kernel(shape, share * n**exponent, smooth, edges)


def smoothed(counts: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolved with the kernel; reflection keeps the mass that smoothing would carry over a hard prior edge."""
    from scipy.signal import fftconvolve

    padded = np.pad(counts, [(size // 2, size // 2) for size in kernel.shape], mode="symmetric")
    return np.maximum(fftconvolve(padded, kernel, mode="valid"), 0.0)


def _halves(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    odd = (np.arange(len(rows)) * _SEGMENTS // len(rows)) % 2 == 1
    return rows[~odd], rows[odd]


def _best_share(score: Callable[[np.ndarray], float], smooth: np.ndarray) -> np.ndarray:
    """Of Scott's width along each axis: first one for both, then each by itself."""
    best, found = np.ones(2), score(np.ones(2))
    for moved in (np.array([True, True]), np.array([True, False]), np.array([False, True])):
        if not (moved & smooth).any():
            continue
        for step in (_STEP, 1 / _STEP):
            tried, failures = best, 0
            while failures < 2:
                tried = np.where(moved, tried * step, tried)
                if tried.min() < _NARROWEST or tried.max() > 1 + 1e-9:
                    break
                value = score(tried)
                gains = value > found + (_WORTHWHILE if step < 1 else -_WORTHWHILE)
                best, found = (tried, value) if gains else (best, found)
                failures = 0 if gains else failures + 1
    return best


def _score(halves: list[np.ndarray], kernel: np.ndarray) -> float:
    """Log-likelihood of each half under the other, smoothed."""
    total = 0.0
    for seen, unseen in (halves, halves[::-1]):
        density = smoothed(seen, kernel) / max(seen.sum(), 1.0)
        held = unseen > 0
        total += float(unseen[held] @ np.log((1 - _BACKGROUND) * density[held] + _BACKGROUND / density.size))
    return total


def _kernel(shape: np.ndarray, share: np.ndarray, smooth: np.ndarray, edges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    # A third of a cell at least, below which cells would stand out one by one.
    covariance = shape * np.outer(share, share) + np.eye(2) / 3
    if not smooth.all():
        covariance = np.diag(np.diag(covariance))
    half = np.where(smooth, np.ceil(3 * np.sqrt(np.diag(covariance))), 0)
    half = np.minimum(half, [len(edge) - 1 for edge in edges]).astype(int)
    offsets = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in half], indexing="ij"), axis=-1)
    kernel = np.exp(-0.5 * np.einsum("abi,ij,abj->ab", offsets, np.linalg.inv(covariance), offsets))
    return kernel / kernel.sum()


def _covariance_within_modes(rows: np.ndarray) -> np.ndarray:
    """Of rows ``(n, 2)`` about the means of the islands that they form on a coarse grid; a row in a nearly empty cell has no say."""
    from scipy.ndimage import label

    bins = int(np.clip(np.sqrt(len(rows) / 10), 4, 20))
    counts, *edges = np.histogram2d(rows[:, 0], rows[:, 1], bins=bins)
    islands, n_islands = label(counts > _EMPTY * counts.max(), structure=np.ones((3, 3)))
    place = [np.clip(np.searchsorted(edge, x, side="right") - 1, 0, bins - 1) for edge, x in zip(edges, rows.T, strict=True)]
    island = islands[place[0], place[1]]
    total, n = np.zeros((2, 2)), 0
    for k in range(1, n_islands + 1):
        part = rows[island == k]
        if len(part) > 2:
            total, n = total + len(part) * np.cov(part.T), n + len(part)
    return total / n if n else np.cov(rows.T)
