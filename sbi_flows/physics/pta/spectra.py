"""Source spectra: each function takes ``theta (n, d)`` and a :class:`Background` and returns log10 h^2 Omega, ``(n, n_bins)``.

All are batched, float64 and differentiable. Where a source emits nothing the value is :data:`SILENT`, far below any data, so
that gradients stay finite. Formulae and priors follow the NANOGrav 15-year search for new physics (Afzal et al. 2023,
arXiv:2306.16219) except where noted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbi_flows.physics.pta.cosmology import F_YEAR, HUBBLE_100, HUBBLE_TODAY, LITTLE_H, PLANCK_MASS, T_CMB, DegreesOfFreedom
from sbi_flows.physics.pta.tables import GridSpectrum

SILENT = -99.0  # log10 h^2 Omega of a source that emits nothing at this frequency
_LOG10_H2 = 2 * math.log10(LITTLE_H)
_CMB_PIVOT = 7.7314e-17  # Hz, 0.05 / Mpc
_SCALAR_AMPLITUDE = math.exp(3.044) * 1e-10


@dataclass(frozen=True)
class Background:
    """What every spectrum shares: the data's frequencies, the thermal history, and the tables taken at those frequencies.

    Attributes
    ----------
    frequencies : Tensor (n_bins,)
        Hz.
    dof : DegreesOfFreedom
    tables : mapping of str to GridSpectrum
    """

    frequencies: Tensor
    dof: DegreesOfFreedom
    tables: Mapping[str, GridSpectrum]

    @cached_property
    def log10_f(self) -> Tensor:
        return torch.log10(self.frequencies)

    @cached_property
    def log10_expansion(self) -> Tensor:
        return self.dof.log10_expansion(self.frequencies)


def log10_rho(log10_h2_omega: Tensor, frequencies: Tensor, span: float) -> Tensor:
    """log10 of the timing residual rho [s] in a bin of width 1/span: rho^2 = (H0/h)^2 h^2 Omega / (8 pi^4 f^5 T)."""
    log10_factor = 2 * math.log10(HUBBLE_100) - math.log10(8 * math.pi**4 * span) - 5 * torch.log10(frequencies)
    return 0.5 * (log10_h2_omega + log10_factor)


def power_law(theta: Tensor, background: Background) -> Tensor:
    """Strain h_c = A (f/f_yr)^((3-gamma)/2); theta = log10 A, gamma."""
    log10_amplitude, gamma = theta[:, :1], theta[:, 1:2]
    log10_f = background.log10_f
    omega_of_strain = math.log10(2 * math.pi**2 / 3) - 2 * math.log10(HUBBLE_100) + 2 * log10_f
    return omega_of_strain + 2 * log10_amplitude + (3 - gamma) * (log10_f - math.log10(F_YEAR))


def igw(theta: Tensor, background: Background) -> Tensor:
    """Inflationary tensors with a blue tilt, cut by reheating; theta = n_t, log10 r, log10 T_rh/GeV."""
    tilt, log10_ratio, log10_reheating = theta[:, :1], theta[:, 1:2], theta[:, 2:3]
    dof = background.dof
    reheating = torch.pow(10.0, log10_reheating)
    # horizon_frequency redshifts from g_s at equality; g_s has been constant since, so today's value is the same.
    f_reheating = dof.horizon_frequency(reheating) / (2 * math.pi)
    x = background.frequencies / f_reheating
    transfer = 1 - 0.22 * x.pow(1.5) + 0.65 * x.square()
    log10_expansion = dof.log10_expansion(torch.minimum(background.frequencies, f_reheating))
    log10_primordial = log10_ratio + math.log10(_SCALAR_AMPLITUDE / 24) + tilt * (background.log10_f - math.log10(_CMB_PIVOT))
    return _LOG10_H2 + log10_expansion + log10_primordial - torch.log10(transfer)


def sigw_delta(theta: Tensor, background: Background) -> Tensor:
    """Waves induced at second order by a delta peak of scalar power; theta = log10 f*/Hz, log10 A. Kohri & Terada 2018."""
    s = background.frequencies / torch.pow(10.0, theta[:, :1])
    heard = s < 2  # beyond twice the peak, momentum conservation forbids emission
    s = torch.where(heard, s, torch.ones_like(s))
    c = 2 - 3 * s.square()
    resonance = (1 - 4 / (3 * s.square())).abs().clamp(min=1e-300)
    bracket = (c * torch.log(resonance) - 4).square() + torch.where(
        s < 2 / math.sqrt(3), (math.pi * c).square(), torch.zeros_like(s)
    )
    shape = 3 / 64 * s.square() * (1 - s.square() / 4).square() * c.square() * bracket
    # The bracket's prefactor c^2 vanishes at s = sqrt(2/3); a floor there keeps the logarithm and its gradient finite.
    loud = _LOG10_H2 + background.log10_expansion + 2 * theta[:, 1:2] + torch.log10(shape.clamp(min=10.0**SILENT))
    return torch.where(heard, loud, torch.full_like(loud, SILENT))


def sigw_gauss(theta: Tensor, background: Background) -> Tensor:
    """The same from a log-normal peak; theta = width in ln f, log10 f_peak/Hz, log10 A."""
    shape = background.tables["sigw_gauss"](theta[:, :2])
    return _LOG10_H2 + background.log10_expansion + 2 * theta[:, 2:3] + shape


def sigw_box(theta: Tensor, background: Background) -> Tensor:
    """The same from a box between two frequencies; theta = log10 f_min/Hz, log10 f_max/Hz, log10 A."""
    shape = background.tables["sigw_box"](theta[:, :2])
    return _LOG10_H2 + background.log10_expansion + 2 * theta[:, 2:3] + shape


def domain_walls(theta: Tensor, background: Background) -> Tensor:
    """Walls annihilating into Standard-Model particles; theta = log10 alpha, log10 T/GeV, b, c."""
    log10_alpha, b, c = theta[:, :1], theta[:, 2:3], theta[:, 3:4]
    temperature = torch.pow(10.0, theta[:, 1:2])
    ln_x = torch.log(background.frequencies / background.dof.horizon_frequency(temperature))
    log10_peak = math.log10(0.7 * math.pi / 960) + 2 * log10_alpha + _log10_redshifted_energy(temperature, background.dof)
    return _LOG10_H2 + log10_peak + log_broken_power_law(ln_x, torch.full_like(b, 3.0), b, c) / math.log(10)


def pt_bubble(theta: Tensor, background: Background) -> Tensor:
    """A first-order transition, bubble collisions; theta = log10 alpha, log10 T/GeV, log10 H R, a, b, c."""
    alpha = torch.pow(10.0, theta[:, :1])
    return _phase_transition(theta, background, alpha / (1 + alpha), delta=0.48 / 11.3, peak=0.35 / 1.759, rate_power=2)


def pt_sound(theta: Tensor, background: Background) -> Tensor:
    """A first-order transition, sound waves with their finite lifetime; theta as for :func:`pt_bubble`."""
    alpha = torch.pow(10.0, theta[:, :1])
    size = torch.pow(10.0, theta[:, 2:3])
    efficiency = alpha / (0.73 + 0.083 * alpha.sqrt() + alpha)
    kinetic = efficiency * alpha / (1 + alpha)
    lifetime = 1 - torch.rsqrt(1 + 2 * size / torch.sqrt(0.75 * kinetic))
    loudness = _phase_transition(theta, background, kinetic, delta=0.036 * (8 * math.pi) ** (1 / 3), peak=0.54, rate_power=1)
    return loudness + torch.log10(lifetime)


def strings_stable(theta: Tensor, background: Background) -> Tensor:
    """Stable strings, numerical loop distribution; theta = log10 G mu."""
    return background.tables["stable_n"](theta[:, :1])


def strings_meta_l(theta: Tensor, background: Background) -> Tensor:
    """Metastable strings, waves from loops; theta = log10 G mu, sqrt kappa."""
    return background.tables["meta_l"](theta[:, :2])


def strings_meta_ls(theta: Tensor, background: Background) -> Tensor:
    """Metastable strings, waves from loops and segments; theta = log10 G mu, sqrt kappa."""
    return background.tables["meta_ls"](theta[:, :2])


def strings_super(theta: Tensor, background: Background) -> Tensor:
    """Superstrings that reconnect with probability P; theta = log10 G mu, log10 P."""
    return background.tables["stable_n"](theta[:, :1]) - theta[:, 1:2]


def log_broken_power_law(ln_x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """ln of S(x) = (a+b)^c / (b x^(-a/c) + a x^(b/c))^c: x^a below the peak at x = 1, x^-b above, width c."""
    return c * (torch.log(a + b) - torch.logaddexp(torch.log(b) - a / c * ln_x, torch.log(a) + b / c * ln_x))


def log_broken_power_law_integral(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """ln of the integral of S over ln x."""
    n = (a + b) / c
    gammas = torch.lgamma(a / n) + torch.lgamma(b / n) - torch.lgamma(c)
    return a / n * torch.log(b / a) + c * torch.log(n * c / b) + gammas - torch.log(n)


def _phase_transition(theta, background, kinetic, *, delta: float, peak: float, rate_power: int) -> Tensor:
    """Common part of both: ``kinetic`` is the fraction kappa alpha/(1+alpha) that moves; ``peak`` is f_peak/beta."""
    temperature = torch.pow(10.0, theta[:, 1:2])
    a, b, c = theta[:, 3:4], theta[:, 4:5], theta[:, 5:6]
    log10_h_over_beta = theta[:, 2:3] - math.log10(8 * math.pi) / 3
    f_peak = background.dof.horizon_frequency(temperature) * peak * torch.pow(10.0, -log10_h_over_beta)
    ln_x = torch.log(background.frequencies / f_peak)
    ln_shape = log_broken_power_law(ln_x, a, b, c) - log_broken_power_law_integral(a, b, c)
    # pi^2/90 g T^4 is rho / (3 M_pl^2); the redshifted energy carries the rest, T0^4/(M_pl H0)^2.
    log10_energy = math.log10(math.pi**2 / 90) + _log10_redshifted_energy(temperature, background.dof)
    log10_source = math.log10(delta) + rate_power * log10_h_over_beta + 2 * torch.log10(kinetic)
    return _LOG10_H2 + log10_energy + log10_source + ln_shape / math.log(10)


def _log10_redshifted_energy(temperature: Tensor, dof: DegreesOfFreedom) -> Tensor:
    """log10 of g_rho (g_s(T_eq)/g_s)^(4/3) T0^4 / (M_pl H0)^2: radiation's share today of what was radiation at T."""
    dilution = 4 / 3 * torch.log10(dof.entropy_equality / dof.g_entropy(temperature))
    today = 4 * math.log10(T_CMB) - 2 * math.log10(PLANCK_MASS * HUBBLE_TODAY)
    return torch.log10(dof.g_energy(temperature)) + dilution + today


