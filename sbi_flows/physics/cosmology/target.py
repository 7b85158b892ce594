"""A universe confronted with measured distances: likelihood, prior, posterior."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sbi_flows.distributions import BoxUniform
from sbi_flows.physics.cosmology.data import BAOData, desi_dr2_bao
from sbi_flows.physics.cosmology.distances import SPEED_OF_LIGHT, ComovingIntegral
from sbi_flows.physics.cosmology.models import CosmologyModel, get_cosmology
from sbi_flows.targets.base import PosteriorTarget


class BAOTarget(PosteriorTarget):
    """ln L + ln prior of one model, both normalised; made by :func:`bao_target`.

    Attributes
    ----------
    model : CosmologyModel
    data : BAOData
    prior : BoxUniform
    """

    prior: BoxUniform

    def __init__(self, model: CosmologyModel, data: BAOData):
        self.model, self.data = model, data
        self._integral = ComovingIntegral(data.redshifts)
        self._z = torch.from_numpy(data.redshifts)
        self._masks = [torch.tensor([kind == which for kind in data.kinds]) for which in ("DM_over_rs", "DH_over_rs")]
        factor = np.linalg.cholesky(data.covariance)
        self._whiten = torch.from_numpy(np.linalg.inv(factor))
        self._whitened = self._whiten @ torch.from_numpy(data.values)
        self._log_norm = -float(np.log(factor.diagonal()).sum()) - 0.5 * len(data.values) * math.log(2 * math.pi)
        super().__init__(lambda theta: self._log_norm - 0.5 * self.chi2(theta), model.prior, model.names)

    def shape(self, omega_m: Tensor, w0: Tensor, wa: Tensor) -> Tensor:
        """Every distance in units of c / (H0 r_d), ``(n, k)``, for parameters ``(n,)``."""
        rate, integral = self._integral(omega_m, w0, wa)
        radial = 1 / rate
        volume = (self._z * integral.square() * radial).pow(1 / 3)
        across, along = self._masks
        return torch.where(across, integral, torch.where(along, radial, volume))

    def distances(self, theta: Tensor) -> Tensor:
        """What the data measure, over r_d and in their order, ``(n, k)`` for ``theta (n, d)``; differentiable."""
        omega_m, h0_rd, w0, wa = self.model.physical(self._checked(theta))
        return SPEED_OF_LIGHT / h0_rd[:, None] * self.shape(omega_m, w0, wa)

    def chi2(self, theta: Tensor) -> Tensor:
        """Chi-squared ``(n,)`` of ``theta (n, d)``; differentiable."""
        return (self.distances(theta) @ self._whiten.T - self._whitened).square().sum(1)

    def whitened(self, values: Tensor) -> Tensor:
        """Distances ``(n, k)`` in units of independent errors."""
        return values @ self._whiten.T

    @property
    def whitened_data(self) -> Tensor:
        """The data ``(k,)`` in units of independent errors."""
        return self._whitened

    @property
    def log_norm(self) -> float:
        """ln L where chi-squared is zero."""
        return self._log_norm


def bao_target(model: str | CosmologyModel = "lcdm", data: BAOData | None = None) -> BAOTarget:
    """The posterior of a flat universe given distances from baryon acoustic oscillations.

    Parameters
    ----------
    model : str or CosmologyModel
        "lcdm" (Omega_m, H0_rd), "wcdm" (and w) or "w0wacdm" (and w0, wa), with the uniform priors of
        :class:`sbi_flows.physics.cosmology.models.CosmologyModel`; H0_rd in km/s.
    data : BAOData, optional
        DESI's second release by default.

    Returns
    -------
    BAOTarget
        Of float64 batches ``(n, d)``, differentiable.

    Raises
    ------
    ValueError
        For an unknown model.
    ConnectionError
        If the data are not at hand; the message names the registry entry and ``SBI_FLOWS_DATA``.

    Examples
    --------
    >>> data = BAOData([0.5, 0.5], ("DM_over_rs", "DH_over_rs"), [13.2, 22.5], [[0.03, 0.0], [0.0, 0.2]])
    >>> bao_target("lcdm", data).chi2(torch.tensor([[0.3, 10000.0]])).item() < 2
    True

    References
    ----------
    DESI Collaboration 2025, "DESI DR2 results II", arXiv:2503.14738.
    """
    return BAOTarget(get_cosmology(model), desi_dr2_bao() if data is None else data)
