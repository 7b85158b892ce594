"""Observations as finite numbers of order one, for the diagnostics that measure distances between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scaling:
    """Columnwise ``asinh((x - median) / spread)``: linear near the bulk, logarithmic far out, so one heavy tail does not set all scales.

    Attributes
    ----------
    median, spread : ndarray (c,)
        Spread is the half width of the central 68 %; columns without any spread are left out (``kept``).
    kept : ndarray (c,) of bool
    missing : ndarray (c,) of bool
        Columns in which values are missing (NaN) somewhere: each is joined by a column of ones and zeros that says where.
    """

    median: np.ndarray
    spread: np.ndarray
    kept: np.ndarray
    missing: np.ndarray

    @classmethod
    def fit(cls, x: Any) -> Scaling:
        rows = flat_rows(x)
        known = np.isfinite(rows)
        filled = np.where(known, rows, np.nan)
        empty = ~known.any(axis=0)
        filled[:, empty] = 0.0
        low, median, high = np.nanquantile(filled, [0.16, 0.5, 0.84], axis=0)
        spread = 0.5 * (high - low)
        # Columns that are mostly one value still tell something by the rest.
        spread = np.where(spread > 0, spread, np.nanstd(filled, axis=0))
        kept = (spread > 1e-12 * np.abs(median)) & (spread > 0)
        return cls(median, np.where(kept, spread, 1.0), kept, ~known.all(axis=0))

    def __call__(self, x: Any) -> np.ndarray:
        """``(n, c')`` finite numbers; a missing value is put at the median."""
        rows = flat_rows(x)
        if rows.shape[1] != len(self.median):
            raise ValueError(f"Expected observations of {len(self.median)} numbers each; got {rows.shape[1]}.")
        known = np.isfinite(rows)
        scaled = np.arcsinh((np.where(known, rows, self.median) - self.median) / self.spread)
        return np.concatenate([scaled[:, self.kept], (~known)[:, self.missing].astype(np.float64)], axis=1)


def flat_rows(x: Any) -> np.ndarray:
    """``(n, c)`` float64 from observations ``(n, ...)`` of any trailing shape."""
    if hasattr(x, "to_numpy"):
        x = x.to_numpy()
    array = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64)
    return array.reshape(len(array), -1)


def leading_components(rows: np.ndarray, n_components: int) -> np.ndarray:
    """The ``n_components`` directions of largest variance of ``rows (n, c)``, as columns ``(c, k)``, scaled to unit variance along each."""
    centred = rows - rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    k = int(min(n_components, (singular > 1e-10 * singular.max(initial=0.0)).sum()))
    return directions[:k].T / singular[:k] * np.sqrt(len(rows))
