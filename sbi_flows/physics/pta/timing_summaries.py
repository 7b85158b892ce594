"""What a network sees of a sky: one row of numbers a pulsar, on scales that mean the same for every pulsar."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sbi_flows.physics.pta.spectra import Background, log10_rho, power_law
from sbi_flows.physics.pta.timing import TimingTarget
from sbi_flows.physics.pta.timing_correlations import correlation_matrix

# Spectra (log10_A, gamma) at which a pulsar's own likelihood is told: as loud at the lowest frequencies as pulsars are found to be.
_LEVELS = {0.5: (-14.5, -13.5, -12.5), 2.0: (-16, -15, -14, -13, -12), 4.0: (-17, -16, -15, -14, -13), 6.0: (-18, -17, -16, -15, -14)}
_GRID = [(float(level), gamma) for gamma, levels in _LEVELS.items() for level in levels]
_REFERENCE = (-12.5, 2.5)  # louder than the noise nearly everywhere: coefficients under it are nearly those of least squares
_ROWS = 256


class PulsarSummaries:
    """Statistics of each pulsar's Fourier coefficients, from which the coefficients' likelihood is known but for their phases.

    For each pulsar: ln of its likelihood (alone, with no background) on a grid of power laws, below its best; the power found in each
    frequency over its error, and that error; and, in the frequencies of the background, the product of its coefficients with those of
    all others, weighted as Hellings & Downs have it and in units of its error. With the pulsar's direction these mean the same
    for every pulsar, so that a network may be shown others than those it has learned from.

    Parameters
    ----------
    target : TimingTarget
        Its pulsars and number of bins; neither its source nor its residuals matter.

    Attributes
    ----------
    shape : tuple of int
        ``(p, c)``: of one sky's summaries.

    References
    ----------
    Anholm et al. 2009, arXiv:0809.0701 (the optimal cross-correlation statistic).
    """

    def __init__(self, target: TimingTarget):
        array, m = target.array, target.array.n_frequencies
        self.n_common = 2 * target.n_bins
        self._factor, self._whitener = target.factor, target.whitener
        p, rank = len(array), self._factor.shape[-1]
        background = Background(torch.from_numpy(array.frequencies), target.degrees_of_freedom, {})
        theta = torch.tensor([*_GRID, _REFERENCE], dtype=torch.float64)
        rho = log10_rho(power_law(theta, background), background.frequencies, array.span) + 7.0
        phi = torch.pow(10.0, 2 * rho).repeat_interleave(2, dim=-1)
        identity = torch.eye(rank, dtype=torch.float64)
        scaled = self._factor[:, None] * phi[None, :, :, None].sqrt()
        covariance = identity + scaled.mT @ scaled  # (p, grid, r, r)
        inverse = torch.linalg.inv(covariance)
        self._quadratic = (0.5 * (identity - inverse[:, :-1])).flatten(2)  # (p, grid, r r)
        self._log_det = 0.5 * torch.logdet(covariance[:, :-1])
        # Coefficients under the reference, a = phi F (1 + F' phi F)^-1 w, and their error without prior beyond the reference.
        self._estimate = phi[-1, None, :, None] * (self._factor @ inverse[:, -1])
        self._error = (self._estimate @ (self._estimate.mT)).diagonal(dim1=-2, dim2=-1).clamp(min=1e-300)
        weight = correlation_matrix("hd", array.positions)
        np.fill_diagonal(weight, 0.0)
        self._pairs = torch.from_numpy(weight)
        noise = self._error.unflatten(1, (m, 2)).mean(-1)
        self._level = 0.5 * torch.log10(noise)
        self._positions = torch.from_numpy(array.positions)
        self.shape = (p, len(_GRID) + 2 * m + target.n_bins + 3)

    def __call__(self, tnr: Tensor) -> np.ndarray:
        """``tnr (n, p, 2 m)`` in 1/s to ``(n, p, c)``."""
        return np.concatenate([self._of(rows).numpy() for rows in torch.as_tensor(tnr, dtype=torch.float64).split(_ROWS)])

    def _of(self, tnr: Tensor) -> Tensor:
        white = torch.einsum("prk,npk->pnr", self._whitener, tnr)
        outer = (white[..., :, None] * white[..., None, :]).flatten(2)
        surface = outer @ self._quadratic.mT - self._log_det[:, None]  # (p, n, grid)
        surface = torch.cat([surface, torch.zeros_like(surface[..., :1])], dim=-1)  # the last: no noise of its own
        depth = torch.log1p(surface.amax(-1, keepdim=True) - surface)[..., :-1].transpose(0, 1)
        coefficients = torch.einsum("pkr,pnr->npk", self._estimate, white)
        ratio = coefficients / self._error.sqrt()
        power = 0.5 * torch.log10(ratio.unflatten(2, (-1, 2)).square().mean(-1) + 1e-4)
        level = self._level.expand(len(tnr), -1, -1)
        where = self._positions.expand(len(tnr), -1, -1)
        return torch.cat([depth, power, level, self._products(coefficients), where], dim=-1)

    def _products(self, coefficients: Tensor) -> Tensor:
        """Each pulsar's weighted product with the others in the background's frequencies, squashed, ``(n, p, n_bins)``."""
        heard = coefficients[..., : self.n_common]
        # What a coefficient varies by in this sky: its error and the power found, smoothed over the sky of frequencies next to it.
        found = heard.square().unflatten(2, (-1, 2)).mean(-1)
        found = torch.nn.functional.avg_pool1d(found, 3, stride=1, padding=1, count_include_pad=False)
        heard = heard / found.repeat_interleave(2, dim=-1).clamp(min=1e-300).sqrt()
        product = heard * torch.einsum("ij,njk->nik", self._pairs, heard)
        norm = self._pairs.square().sum(1).sqrt().clamp(min=math.sqrt(1e-12))
        return torch.asinh(product.unflatten(2, (-1, 2)).sum(-1) / norm[:, None])
