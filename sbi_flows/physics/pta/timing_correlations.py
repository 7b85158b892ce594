"""How a background's Fourier coefficients correlate between pulsars, and the marginal likelihood of background and own noise.

Of the coefficients g of the low bins (2 n_bins a pulsar: background and the pulsar's own noise) the data say what a Gaussian of precision
K (a block a pulsar) and information vector c says: ln L = c'g - g'Kg/2. With g ~ N(0, Phi), Phi = Gamma x S + D, the integral is
c'(Phi^-1 + K)^-1 c / 2 - ln |1 + Phi K| / 2. Standard deviations are factors of K, so that a silent background (S = 0) is nothing special.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import choose
from sbi_flows.physics.pta.timing_algebra import gram_and_log_det, joined_integral

_NULL = 1e-9  # of the largest eigenvalue: below, a direction of the correlation matrix does not exist
_SILENCE = 1e-150  # 1e-7 s: no standard deviation is less, so that there are ratios of them
CORRELATIONS = ("hd", "uncorrelated", "monopole", "dipole")


def correlation_matrix(kind: str, positions: np.ndarray) -> np.ndarray:
    """Correlation of the background between pulsars, ``(p, p)``, for unit vectors ``positions (p, 3)``.

    "hd" is the curve of Hellings & Downs, 3/2 x ln x - x/4 + 1/2 with x = (1 - cos angle)/2 for pairs, "dipole" the cosine of the
    angle, "monopole" one for all (a clock); "uncorrelated" leaves the diagonal, which is one in all of them.

    Examples
    --------
    >>> correlation_matrix("hd", np.array([[0, 0, 1.0], [0, 0, -1.0]])).tolist()
    [[1.0, 0.25], [0.25, 1.0]]

    References
    ----------
    Hellings & Downs 1983, ApJ 265, L39.
    """
    choose("correlation", kind, list(CORRELATIONS))
    p = len(positions)
    if kind == "uncorrelated":
        return np.eye(p)
    if kind == "monopole":
        return np.ones((p, p))
    cosine = np.clip(positions @ positions.T, -1.0, 1.0)
    if kind == "hd":
        x = (1 - cosine) / 2
        cosine = 1.5 * x * np.log(np.where(x > 0, x, 1.0)) - x / 4 + 0.5
    np.fill_diagonal(cosine, 1.0)
    return cosine


class Correlation(ABC):
    """The integral over a background's coefficients, for one structure of their correlation between pulsars."""

    @abstractmethod
    def log_integral(self, precision: Tensor, information: Tensor, own: Tensor, root: Tensor) -> Tensor:
        """ln of the integral of exp(c'g - g'Kg/2) over g, ``(n,)``.

        Parameters
        ----------
        precision : Tensor (n, p, k, k)
            K, a block a pulsar.
        information : Tensor (n, p, k)
            c.
        own : Tensor (n, p, k)
            Standard deviation of each coefficient of a pulsar's own noise.
        root : Tensor (n, k)
            That of the background.
        """

    @abstractmethod
    def draw(self, noise: Tensor) -> Tensor:
        """Standard normal ``noise (n, p, k)`` to the same, correlated between pulsars."""


class Uncorrelated(Correlation):
    """Every pulsar hears a background of its own."""

    def log_integral(self, precision, information, own, root):
        return apart(precision, information, own, root).sum(-1)

    def draw(self, noise):
        return noise


class FullRank(Correlation):
    """Any invertible correlation matrix.

    In each bin Phi = E rho E with E the standard deviations of background and own noise together, and rho as far from singular as Gamma is.
    A = rho^-1 + E K E, whose first part is a block a bin and whose second a block a pulsar.
    """

    def __init__(self, matrix: np.ndarray):
        self._matrix = torch.from_numpy(matrix)
        self._cholesky = torch.linalg.cholesky(self._matrix)

    def log_integral(self, precision, information, own, root):
        own = own.clamp(min=_SILENCE)  # without any noise at all rho would be zero over zero
        total = torch.sqrt(own.square() + root.square()[:, None])
        inverse, log_det_rho = self._between(own, root, total)
        # Sine and cosine share a bin.
        joined = joined_integral(inverse.repeat_interleave(2, dim=1), _scaled(precision, total), information * total)
        return joined - log_det_rho

    def _between(self, own: Tensor, root: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """rho^-1 of each bin ``(n, bins, p, p)``, and the sum over bins of ln |rho| ``(n,)``; sine and cosine share them."""
        own, root, total = own[..., ::2].mT, root[..., ::2, None], total[..., ::2].mT
        shared, alone = root / total, own / total
        rho = self._matrix * (shared[..., :, None] * shared[..., None, :]) + torch.diag_embed(alone.square())
        inverse, log_det = gram_and_log_det(rho, torch.eye(len(self._matrix)).to(rho).expand_as(rho))
        return inverse, log_det.sum(-1)

    def draw(self, noise):
        return torch.einsum("ij,njk->nik", self._cholesky.to(noise), noise)


class LowRank(Correlation):
    """Few sky patterns shared by all pulsars, Gamma = M M' with M (p, r): after own noise A = 1 + R' K R with R = M x sqrt(S)."""

    def __init__(self, factor: np.ndarray):
        self._factor = torch.from_numpy(np.ascontiguousarray(factor))

    def log_integral(self, precision, information, own, root):
        n, _, k, _ = precision.shape
        precision, information, log_own = _without_own_noise(precision, information, own)
        factor = self._factor.to(root)
        r = factor.shape[1]
        pairs = torch.einsum("ia,ib->abi", factor, factor).reshape(r * r, -1)
        shared = (pairs @ _scaled(precision, root[:, None]).reshape(n, -1, k * k)).reshape(n, r, r, k, k)
        vector = (factor.T @ (information * root[:, None])).reshape(n, r * k, 1)
        whole = shared.transpose(2, 3).reshape(n, r * k, r * k) + torch.eye(r * k).to(root)
        gram, log_det = gram_and_log_det(whole, vector)
        return log_own + 0.5 * (gram[:, 0, 0] - log_det)

    def draw(self, noise):
        factor = self._factor.to(noise)
        return torch.einsum("ir,nrk->nik", factor, noise[:, : factor.shape[1]])


def apart(precision: Tensor, information: Tensor, own: Tensor, root: Tensor) -> Tensor:
    """The same integral pulsar by pulsar ``(n, p)``, each hearing a background of its own."""
    total = torch.sqrt(own.square() + root.square()[:, None])
    k = root.shape[-1]
    gram, log_det = gram_and_log_det(_scaled(precision, total) + torch.eye(k).to(root), (information * total)[..., None])
    return 0.5 * (gram[..., 0, 0] - log_det)


def _scaled(precision: Tensor, deviation: Tensor) -> Tensor:
    return precision * (deviation[..., :, None] * deviation[..., None, :])


def _without_own_noise(precision: Tensor, information: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K and c of the background alone, and ln L of no background ``(n,)``: own noise integrated out, pulsar by pulsar."""
    k = own.shape[-1]
    columns = torch.cat([precision, information[..., None]], dim=-1) * own[..., None]
    gram, log_det = gram_and_log_det(_scaled(precision, own) + torch.eye(k).to(own), columns)
    log_own = 0.5 * (gram[..., k, k] - log_det).sum(-1)
    return precision - gram[..., :k, :k], information - gram[..., :k, k], log_own


def correlation(kind: str, positions: np.ndarray) -> Correlation:
    """The structure that suits a kind of correlation; see :func:`correlation_matrix`."""
    matrix = correlation_matrix(kind, positions)
    if kind == "uncorrelated":
        return Uncorrelated()
    values, vectors = np.linalg.eigh(matrix)
    there = values > _NULL * values[-1]
    # A factor of as many columns as pulsars would fill A with what FullRank leaves at zero.
    return FullRank(matrix) if there.all() else LowRank(vectors[:, there] * np.sqrt(values[there]))
