"""A source model confronted with a free spectrum: likelihood, prior, posterior."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sbi_flows.physics.pta.cosmology import DegreesOfFreedom
from sbi_flows.physics.pta.free_spectrum import FreeSpectrum, FreeSpectrumLikelihood
from sbi_flows.physics.pta.models import Model
from sbi_flows.physics.pta.spectra import Background, log10_rho
from sbi_flows.physics.pta.tables import GridSpectrum


class FreeSpectrumTarget:
    """ln L + ln prior of one model, both normalised.

    Parameters
    ----------
    model : Model
    data : FreeSpectrum
        Every bin it holds enters; :meth:`FreeSpectrum.first` chooses fewer.
    dof : DegreesOfFreedom
    tables : mapping of str to GridSpectrum
        Tabulated spectra at the data's frequencies; must hold ``model.table`` where the model has one.

    Examples
    --------
    >>> from sbi_flows.physics.pta import pta_target
    >>> target = pta_target("power_law")
    >>> target.log_posterior(np.array([[-14.2, 3.2]])).shape
    (1,)
    """

    def __init__(self, model: Model, data: FreeSpectrum, dof: DegreesOfFreedom, tables: Mapping[str, GridSpectrum]):
        if model.table is not None and model.table not in tables:
            raise ValueError(f"Model {model.name!r} needs the table {model.table!r}; got {sorted(tables) or 'none'}.")
        self.model = model
        self.data = data
        self.prior = model.prior
        self._frequencies = torch.from_numpy(data.frequencies)
        self._background = Background(self._frequencies, dof, tables)
        self._likelihood = FreeSpectrumLikelihood(data)

    @property
    def features(self) -> int:
        return self.prior.features

    @property
    def names(self) -> tuple[str, ...]:
        return self.model.parameter_names

    @property
    def support(self) -> list:
        return self.prior.support

    def log10_h2_omega(self, theta: Tensor) -> Tensor:
        """``theta (n, d)`` to log10 h^2 Omega in every bin, ``(n, n_bins)``, float64, differentiable."""
        return self.model.spectrum(theta.double(), self._background)

    def log10_rho(self, theta: Tensor) -> Tensor:
        """``theta (n, d)`` to log10 of rho [s] in every bin, ``(n, n_bins)``."""
        return log10_rho(self.log10_h2_omega(theta), self._frequencies, self.data.span)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """ln L ``(n,)`` of ``theta (n, d)`` inside the prior's support; differentiable."""
        return self._likelihood(self.log10_rho(theta))

    def log_prob(self, theta: Tensor) -> Tensor:
        """ln L + ln prior ``(n,)``, -inf outside the prior's support; differentiable inside."""
        log_prior = self.prior.log_prob(theta)
        inside = torch.isfinite(log_prior)
        # A formula may have no value outside its prior, so a point inside stands in there and its value is dropped.
        safe = torch.where(inside[:, None], theta, self._somewhere_inside(theta))
        return torch.where(inside, self.log_likelihood(safe) + log_prior, -torch.inf)

    def log_posterior(self, theta: np.ndarray) -> np.ndarray:
        """The same for numpy: ``theta (n, d)`` to ``(n,)`` float64. Only rows inside the prior are computed."""
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float64))
            result = self.prior.log_prob(rows)
            inside = torch.isfinite(result)
            # Blocks that stay in the cache are several times faster than one large batch.
            for block in inside.nonzero()[:, 0].split(_BLOCK):
                result[block] += self.log_likelihood(rows[block])
            return result.numpy()

    def prior_log_prob(self, theta: np.ndarray) -> np.ndarray:
        """ln prior for numpy: ``theta (n, d)`` to ``(n,)``."""
        with torch.inference_mode():
            return self.prior.log_prob(torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float64))).numpy()

    def _somewhere_inside(self, theta: Tensor) -> Tensor:
        ends = [[p.low, p.high] if p.low is not None and p.high is not None else [0.0, 0.0] for p in self.model.parameters]
        return torch.tensor(ends, dtype=theta.dtype).mean(dim=1)


_BLOCK = 1024
