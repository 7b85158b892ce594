"""Maps of single columns that bring them near to a normal: chosen from data, applied in stages."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

# A map must bring a column this many nats a row nearer to a normal, or the column is left linear.
_WORTH = 0.05
# After a square root nothing may lie this many deviations out, or the tail is too heavy for it.
_REACH = 10.0
LINEAR, ASINH, LOG, ROOT = 0, 1, 2, 3
# Maps are chosen from about this many rows.
_ROWS_TO_LOOK_AT = 5000
STAGE_PARTS = ("kind", "location", "scale", "mean", "spread")


@dataclass(frozen=True)
class Stage:
    """One elementwise map a column, then standardisation.

    Attributes
    ----------
    kind : ndarray of int (c,)
        ``LINEAR``, ``ASINH`` (of the distance from the median in units of half the central 68 %), ``LOG`` (of the modulus of columns
        of one sign) or ``ROOT`` (of the modulus, with the sign, of columns of one sign and zeros).
    location, scale : ndarray (c,)
        Taken off and divided by before ``ASINH``.
    mean, spread : ndarray (c,)
        Taken off and divided by at the end.
    """

    kind: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    def of_groups(self, group: np.ndarray) -> Stage:
        """The stage of columns of which the j-th has the map ``group[j]``."""
        return Stage(*(getattr(self, name)[group] for name in STAGE_PARTS))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = np.array(x)
        asinh, log, root = self.kind == ASINH, self.kind == LOG, self.kind == ROOT
        y[:, root] = np.sign(y[:, root]) * np.sqrt(np.abs(y[:, root]))
        y[:, asinh] = np.arcsinh((y[:, asinh] - self.location[asinh]) / self.scale[asinh])
        # A value on the wrong side of zero, which no simulation had, counts as the smallest number there is.
        signed = y[:, log] * np.sign(self.location[log])
        y[:, log] = np.log(np.where(np.isnan(signed), signed, np.maximum(signed, np.finfo(np.float64).tiny)))
        return (y - self.mean) / self.spread


def stride(n: int, together: int) -> int:
    """From one to the next of the rows that maps are chosen from; ``together`` successive ones are the places of one simulation.

    It shares no factor with their number, so that all places are looked at: a stride of twice as many would look at the first alone.
    """
    every = max(1, n // _ROWS_TO_LOOK_AT)
    while math.gcd(every, together) > 1:
        every += 1
    return every


def choose_stage(x: np.ndarray, settled: np.ndarray) -> Stage:
    """The map of each column of ``x (n, c)`` under which it is nearest to a normal, linear where ``settled (c,)``; NaN is left out."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        quantile = np.nanquantile if np.isnan(x).any() else np.quantile
        low, location, high = quantile(x, [0.16, 0.5, 0.84], axis=0)
        scale = (high - low) / 2
        # More than two thirds of the values are the same: the others give the scale.
        apart = np.where(x == location, np.nan, np.abs(x - location))
        scale = np.where(scale > 0, scale, np.nanmedian(apart, axis=0))
        scale = np.where(scale > 0, scale, 1.0)
        distance = (x - location) / scale
        bent = np.arcsinh(distance)
        smallest, largest = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
        positive, negative = smallest > 0, largest < 0
        logs = np.log(np.where(positive | negative, np.abs(x), np.nan))
        candidates = [distance, bent, logs]
        # Log-likelihood a row of a normal fitted after the map, in units of `scale`, up to a common constant.
        score = np.stack(
            [
                -np.log(np.nanstd(distance, axis=0)),
                -np.log(np.nanstd(bent, axis=0)) - np.nanmean(0.5 * np.log1p(distance**2), axis=0),
                -np.log(np.nanstd(logs, axis=0)) - np.nanmean(logs, axis=0) + np.log(scale),
            ]
        )
        score = np.nan_to_num(score, nan=-np.inf, posinf=-np.inf)
        score[LINEAR] += _WORTH
        score[LINEAR, settled] = np.inf
        kind = score.argmax(axis=0)
        # Nearness to a normal is no guide for amounts of which many are zero: it pulls the few counts near zero far apart.
        root = np.sign(x) * np.sqrt(np.abs(x))
        far = np.nanmax(np.abs(root - np.nanmean(root, axis=0)), axis=0) > _REACH * np.nanstd(root, axis=0)
        kind = np.where((kind == ASINH) & ((smallest == 0) | (largest == 0)) & ~far, ROOT, kind)
        candidates.append(root)
        location = np.where(kind == LOG, np.where(negative, -1.0, 1.0), location)
        chosen = np.choose(kind, candidates)
        mean, spread = np.nanmean(chosen, axis=0), np.nanstd(chosen, axis=0)
        linear = kind == LINEAR
        mean, spread = np.where(linear, location + scale * mean, mean), np.where(linear, scale * spread, spread)
    return Stage(kind, location, scale, mean, np.where(spread > 0, spread, 1.0))
