"""Distances in a flat universe of matter and dark energy, by fixed quadrature: batched, float64, differentiable."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SPEED_OF_LIGHT = 299792.458  # km/s
_NODES = 12  # in each stretch between neighbouring redshifts


def expansion_rate(log_1pz: Tensor, omega_m: Tensor, w0: Tensor, wa: Tensor) -> Tensor:
    """``E = H(z) / H0`` of a flat universe without radiation; arguments broadcast.

    ``E^2 = Omega_m (1+z)^3 + (1 - Omega_m) (1+z)^(3 (1 + w0 + wa)) exp(-3 wa z / (1+z))``.

    Parameters
    ----------
    log_1pz : Tensor
        ln(1 + z), z >= 0.
    omega_m : Tensor
        Share of matter today, in (0, 1).
    w0, wa : Tensor
        Dark energy's pressure over its density, ``w0 + wa z / (1 + z)``.

    References
    ----------
    Chevallier & Polarski 2001, arXiv:gr-qc/0009008; Linder 2003, arXiv:astro-ph/0208512.
    """
    matter = omega_m * torch.exp(3 * log_1pz)
    dark = (1 - omega_m) * torch.exp(3 * (1 + w0 + wa) * log_1pz + 3 * wa * torch.expm1(-log_1pz))
    return torch.sqrt(matter + dark)


class ComovingIntegral:
    """``E(z_k)`` and the integral of ``1 / E`` from 0 to ``z_k``, for fixed redshifts.

    Gauss-Legendre quadrature in ln(1 + z) on each stretch from one redshift to the next. Its relative error for the redshifts of DESI is
    below 1e-9 over the prior box of :mod:`sbi_flows.physics.cosmology.models` (tested against adaptive quadrature).

    Parameters
    ----------
    redshifts : array_like (k,)
        Positive.

    Examples
    --------
    >>> integral = ComovingIntegral([1.0, 3.0])
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> integral(one, -one, 0 * one)[1]                        # matter only: 2 (1 - 1 / sqrt(1 + z))
    tensor([[0.5858, 1.0000]], dtype=torch.float64)
    """

    def __init__(self, redshifts):
        z = np.asarray(redshifts, dtype=np.float64)
        if z.ndim != 1 or not len(z) or not np.isfinite(z).all() or (z <= 0).any():
            raise ValueError(f"Expected positive finite redshifts of shape (k,); got {np.array2string(z, threshold=8)}.")
        unique, inverse = np.unique(np.log1p(z), return_inverse=True)
        ends = np.concatenate([[0.0], unique])
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        half = np.diff(ends)[:, None] / 2
        u = ends[:-1, None] + half * (1 + nodes)
        self._shape = u.shape
        self._u = torch.from_numpy(u.ravel())
        self._weights = torch.from_numpy(half * weights * np.exp(u))  # dz = (1 + z) du
        self._at = torch.from_numpy(unique)
        self._place = torch.from_numpy(inverse.reshape(-1))

    def __call__(self, omega_m: Tensor, w0: Tensor, wa: Tensor) -> tuple[Tensor, Tensor]:
        """``E (n, k)`` and the integral ``(n, k)`` for parameters ``(n,)``."""
        omega_m, w0, wa = (p[:, None] for p in (omega_m, w0, wa))
        stretches = (self._weights / expansion_rate(self._u, omega_m, w0, wa).unflatten(1, self._shape)).sum(2)
        return expansion_rate(self._at, omega_m, w0, wa)[:, self._place], stretches.cumsum(1)[:, self._place]
