"""How a background's Fourier coefficients correlate between pulsars, and the marginal likelihood of such a background.

After each pulsar's own noise is marginalised, the data say of the background's coefficients g (2 n_bins a pulsar) what a Gaussian of
precision K (a block a pulsar) and information vector c says: ln L = c'g - g'Kg/2. With g ~ N(0, Gamma x S) the integral is
d' A^-1 d / 2 - ln |A| / 2, where sqrt(S) enters as a factor, so that a silent background (S = 0) is nothing special.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import choose
from sbi_flows.physics.pta.timing_algebra import gram_and_log_det

_NULL = 1e-9  # of the largest eigenvalue: below, a direction of the correlation matrix does not exist
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
    def log_integral(self, precision: Tensor, information: Tensor, root: Tensor) -> Tensor:
        """ln of the integral of exp(c'g - g'Kg/2) over g, ``(n,)``.

        Parameters
        ----------
        precision : Tensor (n, p, k, k)
            K, a block a pulsar.
        information : Tensor (n, p, k)
            c.
        root : Tensor (n, k)
            Standard deviation of each coefficient.
        """

    @abstractmethod
    def draw(self, noise: Tensor) -> Tensor:
        """Standard normal ``noise (n, p, k)`` to the same, correlated between pulsars."""


class Uncorrelated(Correlation):
    """Every pulsar hears a background of its own."""

    def log_integral(self, precision, information, root):
        k = root.shape[-1]
        scaled = precision * (root[:, None, :, None] * root[:, None, None, :])
        gram, log_det = gram_and_log_det(scaled + torch.eye(k).to(root), (information * root[:, None])[..., None])
        return 0.5 * (gram[..., 0, 0] - log_det).sum(-1)

    def draw(self, noise):
        return noise


class FullRank(Correlation):
    """Any invertible correlation matrix: A = Gamma^-1 x 1 + sqrt(S) K sqrt(S), whose second part is a block a pulsar."""

    def __init__(self, matrix: np.ndarray):
        cholesky = torch.linalg.cholesky(torch.from_numpy(matrix))
        self._cholesky = cholesky
        self._inverse = torch.cholesky_inverse(cholesky).contiguous()
        self._log_det = 2 * float(cholesky.diagonal().log().sum())

    def log_integral(self, precision, information, root):
        n, p, k, _ = precision.shape
        between = torch.kron(self._inverse.to(root), torch.eye(k).to(root))
        whole = between.reshape(p, k, p, k).expand(n, p, k, p, k).clone()
        scaled = precision * (root[:, None, :, None] * root[:, None, None, :])
        # The diagonal over pulsars, a view (n, k, k, p), takes each pulsar's block.
        whole.diagonal(dim1=1, dim2=3).add_(scaled.permute(0, 2, 3, 1))
        vector = (information * root[:, None]).reshape(n, p * k, 1)
        gram, log_det = gram_and_log_det(whole.reshape(n, p * k, p * k), vector)
        return 0.5 * (gram[:, 0, 0] - log_det - k * self._log_det)

    def draw(self, noise):
        return torch.einsum("ij,njk->nik", self._cholesky.to(noise), noise)


class LowRank(Correlation):
    """Few sky patterns shared by all pulsars, Gamma = M M' with M (p, r): A = 1 + R' K R with R = M x sqrt(S)."""

    def __init__(self, factor: np.ndarray):
        self._factor = torch.from_numpy(np.ascontiguousarray(factor))

    def log_integral(self, precision, information, root):
        n, _, k, _ = precision.shape
        factor = self._factor.to(root)
        r = factor.shape[1]
        pairs = torch.einsum("ia,ib->abi", factor, factor).reshape(r * r, -1)
        scaled = precision * (root[:, None, :, None] * root[:, None, None, :])
        shared = (pairs @ scaled.reshape(n, -1, k * k)).reshape(n, r, r, k, k).transpose(2, 3).reshape(n, r * k, r * k)
        vector = (factor.T @ (information * root[:, None])).reshape(n, r * k, 1)
        gram, log_det = gram_and_log_det(shared + torch.eye(r * k).to(root), vector)
        return 0.5 * (gram[:, 0, 0] - log_det)

    def draw(self, noise):
        factor = self._factor.to(noise)
        return torch.einsum("ir,nrk->nik", factor, noise[:, : factor.shape[1]])


def correlation(kind: str, positions: np.ndarray) -> Correlation:
    """The structure that suits a kind of correlation; see :func:`correlation_matrix`."""
    matrix = correlation_matrix(kind, positions)
    if kind == "uncorrelated":
        return Uncorrelated()
    values, vectors = np.linalg.eigh(matrix)
    there = values > _NULL * values[-1]
    # A factor of as many columns as pulsars would fill A with what FullRank leaves at zero.
    return FullRank(matrix) if there.all() else LowRank(vectors[:, there] * np.sqrt(values[there]))
