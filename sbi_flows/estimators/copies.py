"""Rows that are copies of each other, told by their bits: no unit, offset or heavy tail hides a column beside another."""

from __future__ import annotations

import numpy as np

_ELEMENTS_AT_ONCE = 2**18  # two megabytes: stays in the cache


def row_keys(rows: np.ndarray, seed: int) -> np.ndarray:
    """A 64-bit key of every row ``(n, d)``, the same for equal rows and, but for a chance of about 2^-64 a pair, for no others.

    Minus zero counts as zero, and NaN as equal to NaN.

    References
    ----------
    Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA (the mixing of one number's bits); Carter & Wegman
    1979, "Universal classes of hash functions", J. Comput. Syst. Sci. 18, 143 (the random sum of them).
    """
    n, d = rows.shape
    factors = np.random.default_rng([seed, 1]).integers(2**63, size=d, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    keys = np.empty(n, np.uint64)
    at_once = max(1, _ELEMENTS_AT_ONCE // max(1, d))
    for start in range(0, n, at_once):
        values = np.array(rows[start : start + at_once], dtype=np.float64, order="C")
        values += 0.0
        values[np.isnan(values)] = np.nan
        keys[start : start + at_once] = (_mixed(values.view(np.uint64)) * factors).sum(axis=1, dtype=np.uint64)
    return keys


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Every bit of a number spread over all 64, one to one: of small whole numbers as floats only the first dozen bits differ."""
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
