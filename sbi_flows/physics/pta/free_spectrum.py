"""The free spectrum: what a pulsar timing array says of each frequency bin separately, and the likelihood made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILES = ("freqs.npy", "log10rhogrid.npy", "density.npy")


@dataclass(frozen=True)
class FreeSpectrum:
    """Posterior densities of log10 rho, one a frequency bin.

    Attributes
    ----------
    frequencies : ndarray (n_bins,)
        Hz, ascending; the first is 1/span.
    grid : ndarray (n_grid,)
        log10 of rho in seconds, equally spaced.
    log_density : ndarray (n_bins, n_grid)
        Natural log of the density of log10 rho.

    Examples
    --------
    >>> from sbi_flows.physics.pta import embedded_free_spectrum
    >>> embedded_free_spectrum().first(5).log_density.shape[0]
    5

    References
    ----------
    Lamb, Taylor & van Haasteren 2023, "Rapid refitting techniques for Bayesian spectral characterization of the gravitational
    wave background using pulsar timing arrays", arXiv:2303.15442.
    """

    frequencies: np.ndarray
    grid: np.ndarray
    log_density: np.ndarray

    @classmethod
    def from_folder(cls, folder: str | Path) -> FreeSpectrum:
        """Read ``freqs.npy (n_bins,)``, ``log10rhogrid.npy (n_grid,)`` and ``density.npy (1, n_bins, n_grid)``.

        Raises
        ------
        FileNotFoundError
            When the folder or one of the three files is missing.
        ValueError
            When a file is not an array, or the arrays do not fit together.
        """
        folder = Path(folder)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is not a free-spectrum folder: {', '.join(missing)} missing. Expected {', '.join(FILES)} "
                "as written by ceffyl and by the NANOGrav 15-year release (Zenodo 10495907)."
            )
        frequencies, grid, log_density = (_load(folder / name) for name in FILES)
        return cls.from_arrays(frequencies, grid, log_density, source=str(folder))

    @classmethod
    def from_arrays(cls, frequencies, grid, log_density, source: str = "the free spectrum") -> FreeSpectrum:
        """Check the arrays and put them in order; a leading axis of one in ``log_density`` is dropped."""
        frequencies, grid, log_density = (np.asarray(a, dtype=np.float64) for a in (frequencies, grid, log_density))
        came = tuple(array.shape for array in (frequencies, grid, log_density))
        if log_density.ndim == 3 and len(log_density) == 1:
            log_density = log_density[0]
        expected = (frequencies.size, grid.size)
        if frequencies.ndim != 1 or grid.ndim != 1 or log_density.shape != expected or grid.size < 4 or not frequencies.size:
            raise ValueError(
                f"Expected in {source} frequencies (n_bins,), a grid (n_grid,) of at least 4 points and a density "
                f"(1, n_bins, n_grid); got {came[0]}, {came[1]} and {came[2]}."
            )
        steps = np.diff(grid)
        if not (np.all(np.isfinite(grid)) and np.all(steps > 0) and np.ptp(steps) < 1e-3 * steps.mean()):
            raise ValueError(f"Expected an ascending, equally spaced grid of log10 rho in {source}; resample onto one.")
        if not (np.all(frequencies > 0) and np.all(np.diff(frequencies) > 0) and np.isfinite(frequencies[-1])):
            raise ValueError(f"Expected positive, ascending frequencies in Hz in {source}; got {frequencies}.")
        if np.any(np.isnan(log_density)) or np.any(log_density == np.inf):
            bins = sorted(set(np.flatnonzero(~(log_density < np.inf).all(axis=1)) + 1))
            raise ValueError(f"The log-density of bin(s) {', '.join(map(str, bins))} in {source} holds NaN or +inf.")
        finite = log_density[np.isfinite(log_density)]
        if not finite.size:
            raise ValueError(f"Every log-density in {source} is -inf.")
        # Zeros of the density become the smallest value the table holds: an interpolant through -inf has no gradient.
        return cls(frequencies, grid, np.maximum(log_density, finite.min()))

    @property
    def span(self) -> float:
        """Length of the data set in seconds, 1/f_1."""
        return 1.0 / float(self.frequencies[0])

    def first(self, n_bins: int) -> FreeSpectrum:
        """The lowest ``n_bins`` bins alone."""
        if not 1 <= n_bins <= len(self.frequencies):
            raise ValueError(f"Expected between 1 and {len(self.frequencies)} bins, as many as the data hold; got {n_bins}.")
        return FreeSpectrum(self.frequencies[:n_bins], self.grid, self.log_density[:n_bins])


class FreeSpectrumLikelihood:
    """ln L of log10 rho in every bin, from the tabulated densities.

    Between the grid points the log-density is a monotone cubic (Fritsch & Carlson), so ln L has a continuous gradient and no
    overshoot at the edges of the densities' support. On the NANOGrav 15-year table this moves no model's ln Z by more than 0.003
    against the nearest grid point. Below the grid a bin takes its first value (the data cannot tell), above it -inf.

    Parameters
    ----------
    data : FreeSpectrum
    """

    def __init__(self, data: FreeSpectrum):
        self.data = data
        n_bins, n_grid = data.log_density.shape
        self._start, self._n_cells = float(data.grid[0]), n_grid - 1
        self._step = float(data.grid[-1] - data.grid[0]) / self._n_cells
        self._coefficients = torch.from_numpy(_monotone_cubic(data.log_density).reshape(-1, 4))
        self._offsets = torch.arange(n_bins) * self._n_cells

    def __call__(self, log10_rho: Tensor) -> Tensor:
        """``log10_rho (n, n_bins)`` to ln L ``(n,)``."""
        position = (log10_rho - self._start) / self._step
        inside = position.clamp(0.0, float(self._n_cells))
        cell = inside.detach().nan_to_num().long().clamp_(max=self._n_cells - 1)
        t = inside - cell
        c = self._coefficients[cell + self._offsets]
        value = c[..., 0] + t * (c[..., 1] + t * (c[..., 2] + t * c[..., 3]))
        return value.masked_fill(position > self._n_cells, -torch.inf).sum(-1)


def _monotone_cubic(values: np.ndarray) -> np.ndarray:
    """Coefficients ``(n, m - 1, 4)``, constant first, of the monotone cubic through rows ``(n, m)`` at unit spacing."""
    secant = np.diff(values, axis=1)
    left, right = secant[:, :-1], secant[:, 1:]
    total = left + right
    # Harmonic mean where the data are monotone, zero slope at an extremum.
    mean = np.divide(2 * left * right, total, out=np.zeros_like(total), where=(left * right) > 0)
    slope = np.concatenate([secant[:, :1], mean, secant[:, -1:]], axis=1)
    d0, d1 = slope[:, :-1], slope[:, 1:]
    return np.stack([values[:, :-1], d0, 3 * secant - 2 * d0 - d1, d0 + d1 - 2 * secant], axis=-1)


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable numpy array: {error}.") from error
