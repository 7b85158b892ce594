"""The radius at which a planet's limb is opaque, wavelength by wavelength: analytic, isothermal, synthetic opacities."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import exp1
from torch import Tensor

from sbi_flows.distributions import BoxUniform
from sbi_flows.physics.exoplanets.opacities import GASES, MOLAR_MASSES, cross_sections, rayleigh

BOLTZMANN, ATOMIC_MASS = 1.380649e-23, 1.66053906660e-27  # SI
JUPITER_RADIUS, SUN_RADIUS = 7.1492e7, 6.957e8  # m
_PRESSURE = 1e6  # Pa, of the level that the first parameter is the radius of: 10 bar
HYDROGEN_HELIUM = 2.3  # mean molar mass of what is not the five gases, g / mol
_NO_E1 = 34.0  # beyond, E1 is below 1e-16, and costs more than all else
_COLDEST = 1.0  # K: at zero there is no atmosphere, and no number

WAVELENGTHS = np.geomspace(0.55, 7.3, 52)  # micron
NAMES = ("radius", "temperature", *(f"log_{gas}" for gas in GASES))


def planet_prior() -> BoxUniform:
    """Uniform: radius at 10 bar [.1, 3] Jupiter radii, temperature [0, 7000] K, log10 of each gas's share of molecules [-12, -1]."""
    return BoxUniform([0.1, 0.0, *[-12.0] * len(GASES)], [3.0, 7000.0, *[-1.0] * len(GASES)], names=NAMES)


class _Ein(torch.autograd.Function):
    """``gamma_E + ln x + E1(x)``, the integral of (1 - exp(-t)) / t from 0 to x."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        series = x * (1 - x / 4 * (1 - 2 * x / 9))  # where the logarithm and E1 would cancel
        rest = np.zeros(x.shape)
        values = x.detach().cpu().numpy()
        near = values < _NO_E1
        rest[near] = exp1(values[near])
        exact = np.euler_gamma + torch.log(x) + torch.from_numpy(rest).to(x)
        return torch.where(x < 1e-4, series, exact)

    @staticmethod
    def backward(context, *gradients: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradients[0] * -torch.expm1(-x) / x


class TransitModel:
    """The forward model at fixed wavelengths.

    Parameters
    ----------
    wavelengths : array_like (k,)
        Micron.
    """

    def __init__(self, wavelengths=WAVELENGTHS):
        wavelengths = np.asarray(wavelengths, dtype=np.float64)
        if wavelengths.ndim != 1 or not (wavelengths > 0).all():
            raise ValueError(f"Expected positive wavelengths in micron, shape (k,); got shape {wavelengths.shape}.")
        self._gases = torch.from_numpy(cross_sections(wavelengths))
        self._rayleigh = torch.from_numpy(rayleigh(wavelengths))
        self._masses = torch.tensor([MOLAR_MASSES[gas] for gas in GASES], dtype=torch.float64)

    def radius(self, theta: Tensor, log_gravity: Tensor) -> Tensor:
        """Transit radius in Jupiter radii, ``(n, k)``, of ``theta (n, 7)`` and log10 of the gravity in m/s^2 ``(n,)``; differentiable."""
        reference, temperature, shares = theta[:, :1] * JUPITER_RADIUS, theta[:, 1:2].clamp_min(_COLDEST), 10 ** theta[:, 2:]
        gravity = 10 ** log_gravity[:, None]
        rest = 1 - shares.sum(1, keepdim=True)
        mass = ATOMIC_MASS * (rest * HYDROGEN_HELIUM + (shares * self._masses).sum(1, keepdim=True))
        opacity = (shares @ self._gases + rest * self._rayleigh) / mass
        height = BOLTZMANN * temperature / (mass * gravity)
        depth = _PRESSURE / gravity * opacity * torch.sqrt(2 * math.pi * reference / height)
        return (reference + height * _Ein.apply(depth)) / JUPITER_RADIUS


def transit_radius(theta, log_gravity, wavelengths=WAVELENGTHS) -> Tensor:
    """Radius at which the limb of an isothermal atmosphere of constant composition turns opaque.

    ``R = R0 + H (gamma_E + ln tau0 + E1(tau0))``, ``tau0 = (P0 kappa / g) sqrt(2 pi R0 / H)``, ``H = k T / (mu g)``, P0 = 10 bar, with the
    synthetic opacities of :mod:`sbi_flows.physics.exoplanets.opacities`.

    Parameters
    ----------
    theta : array_like (n, 7)
        :data:`NAMES`: radius R0 at 10 bar [Jupiter radii], temperature [K], log10 of the share of molecules of each gas.
    log_gravity : array_like (n,)
        log10 of the surface gravity [m/s^2].
    wavelengths : array_like (k,)
        Micron.

    Returns
    -------
    Tensor (n, k)
        Jupiter radii, float64.

    Raises
    ------
    ValueError
        For shapes that do not match.

    Examples
    --------
    >>> transit_radius([[1.0, 1200.0, -4, -6, -6, -6, -6]], [1.0]).shape
    torch.Size([1, 52])

    References
    ----------
    Heng & Kitzmann 2017, "The theory of transmission spectra revisited", arXiv:1702.02051.
    """
    theta, log_gravity = (torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in (theta, log_gravity))
    if theta.ndim != 2 or theta.shape[1] != len(NAMES) or log_gravity.shape != (len(theta),):
        raise ValueError(
            f"Expected theta (n, {len(NAMES)}) of {', '.join(NAMES)} and log_gravity (n,); got {tuple(theta.shape)} and "
            f"{tuple(log_gravity.shape)}. For a single planet pass theta[None]."
        )
    return TransitModel(wavelengths).radius(theta, log_gravity)
