"""Tabulated spectra: log10 h^2 Omega (or log10 of a spectral shape) on a regular grid of parameters and log10 frequency."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SpectrumTable:
    """A table on regular axes, as distributed: the last axis is log10 frequency in Hz.

    Attributes
    ----------
    names : tuple of str
        One name an axis, ``"f"`` last.
    starts, steps : ndarray (axes,)
        First coordinate and spacing of each axis.
    values : ndarray (n_1, ..., n_f)
        log10 of the spectrum.
    """

    names: tuple[str, ...]
    starts: np.ndarray
    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def from_hdf5(cls, path: str | Path) -> SpectrumTable:
        """Read ``parameter_names``, ``spectrum`` and one dataset an axis, each holding (start, step)."""
        try:
            with h5py.File(path, "r") as file:
                names = tuple(name.decode() for name in file["parameter_names"][()])
                axes = np.array([file[name][()] for name in names], dtype=np.float64)
                values = np.asarray(file["spectrum"][()], dtype=np.float64)
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{path} is not a table of spectra: expected an HDF5 file with 'parameter_names', 'spectrum' and one "
                f"(start, step) dataset an axis ({error})."
            ) from error
        if names[-1] != "f" or axes.shape != (values.ndim, 2):
            raise ValueError(
                f"Expected in {path} one (start, step) axis for each of the {values.ndim} dimensions of 'spectrum', the last "
                f"named 'f'; got axes {names} of shape {axes.shape}."
            )
        return cls(names, axes[:, 0], axes[:, 1], values)

    def at(self, frequencies: np.ndarray) -> GridSpectrum:
        """Interpolate the frequency axis once and for all, linearly in log10 f; ``frequencies (n_bins,)`` in Hz.

        Raises
        ------
        ValueError
            When a frequency lies outside the table.
        """
        position = (np.log10(frequencies) - self.starts[-1]) / self.steps[-1]
        last = self.values.shape[-1] - 1
        if position.min() < -1e-9 or position.max() > last + 1e-9:
            low, high = 10 ** self.starts[-1], 10 ** (self.starts[-1] + last * self.steps[-1])
            raise ValueError(
                f"The table of spectra covers {low:.2g} to {high:.2g} Hz; the data's bins run from {min(frequencies):.2g} to "
                f"{max(frequencies):.2g} Hz. Use fewer bins, or leave this model out."
            )
        left = np.clip(np.floor(position).astype(int), 0, last - 1)
        weight = position - left
        values = (1 - weight) * self.values[..., left] + weight * self.values[..., left + 1]
        return GridSpectrum(self.names[:-1], self.starts[:-1], self.steps[:-1], torch.from_numpy(np.ascontiguousarray(values)))


@dataclass(frozen=True)
class GridSpectrum:
    """A table already taken at fixed frequencies; call it with parameters.

    Attributes
    ----------
    names : tuple of str
        One name a parameter axis.
    starts, steps : ndarray (axes,)
    values : Tensor (n_1, ..., n_bins)
    """

    names: tuple[str, ...]
    starts: np.ndarray
    steps: np.ndarray
    values: Tensor

    def __call__(self, theta: Tensor) -> Tensor:
        """``theta (n, axes)`` to ``(n, n_bins)``, multilinear and constant beyond the ends."""
        sizes = torch.tensor(self.values.shape[:-1])
        position = (theta - torch.from_numpy(self.starts)) / torch.from_numpy(self.steps)
        position = torch.minimum(position.clamp(min=0), (sizes - 1).to(theta))
        left = torch.minimum(position.detach().nan_to_num().long(), sizes - 2)
        weight = (position - left)[..., None]
        strides = [int(np.prod(self.values.shape[axis + 1 : -1])) for axis in range(len(sizes))]
        rows = self.values.reshape(-1, self.values.shape[-1])
        total = torch.zeros((), dtype=theta.dtype)
        for corner in product((0, 1), repeat=len(sizes)):
            index = sum((left[:, axis] + bit) * strides[axis] for axis, bit in enumerate(corner))
            share = torch.ones((), dtype=theta.dtype)
            for axis, bit in enumerate(corner):
                share = share * (weight[:, axis] if bit else 1 - weight[:, axis])
            total = total + share * rows[index]
        return total
