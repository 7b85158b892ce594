"""The radiation era as the source spectra need it: constants, degrees of freedom, the expansion since a mode entered.

Natural units: energies in GeV, converted to Hz by hbar where a frequency is meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LITTLE_H = 0.674
HUBBLE_100 = 1e5 / 3.0856775814913673e22  # 100 km/s/Mpc in 1/s, so H0 / h
YEAR = 365.25 * 86400.0  # s
F_YEAR = 1.0 / YEAR  # Hz

BOLTZMANN = 8.617333e-14  # GeV/K
HBAR = 6.582119569e-25  # GeV s
PLANCK_MASS = 2.435323e18  # GeV, reduced
T_CMB = 2.7255 * BOLTZMANN  # GeV, today
T_EQUALITY = 3403 * T_CMB  # GeV, matter-radiation equality
HUBBLE_TODAY = LITTLE_H * HUBBLE_100 * HBAR  # H0 in GeV
OMEGA_RADIATION = 9.2188e-5


@dataclass(frozen=True)
class DegreesOfFreedom:
    """Effective relativistic degrees of freedom of the Standard Model, tabulated.

    Attributes
    ----------
    temperature : Tensor (m,)
        GeV, ascending.
    frequency : Tensor (m,)
        Hz today of the mode that was horizon-sized at that temperature, ascending.
    entropy, energy : Tensor (m,)
        g_s and g_rho.

    References
    ----------
    Saikawa & Shirai 2020, "Precise WIMP dark matter abundance and Standard Model thermodynamics", arXiv:2005.03544.
    """

    temperature: Tensor
    frequency: Tensor
    entropy: Tensor
    energy: Tensor

    @classmethod
    def from_columns(cls, table: np.ndarray) -> DegreesOfFreedom:
        """From an array ``(m, 4)`` with columns T [GeV], f [Hz], g_s, g_rho."""
        table = np.asarray(table, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != 4 or not np.all(np.diff(table[:, :2], axis=0) > 0):
            raise ValueError(
                "Expected the degrees of freedom as rows of T [GeV], f [Hz], g_s, g_rho with T and f ascending; "
                f"got an array of shape {table.shape}."
            )
        return cls(*(torch.from_numpy(column.copy()) for column in table.T))

    @classmethod
    def from_text(cls, path: str | Path) -> DegreesOfFreedom:
        """From the text file of those four columns, comments after ``#``."""
        return cls.from_columns(np.loadtxt(path))

    def g_entropy(self, temperature: Tensor) -> Tensor:
        """g_s at a temperature in GeV, linear between the rows and constant beyond the ends."""
        return interpolate(temperature, self.temperature, self.entropy)[0]

    def g_energy(self, temperature: Tensor) -> Tensor:
        """g_rho at a temperature in GeV."""
        return interpolate(temperature, self.temperature, self.energy)[0]

    @cached_property
    def entropy_today(self) -> float:
        return float(self.g_entropy(torch.tensor([T_CMB], dtype=torch.float64)))

    @cached_property
    def entropy_equality(self) -> float:
        return float(self.g_entropy(torch.tensor([T_EQUALITY], dtype=torch.float64)))

    @cached_property
    def energy_today(self) -> float:
        return float(self.g_energy(torch.tensor([T_CMB], dtype=torch.float64)))

    def log10_expansion(self, frequency: Tensor) -> Tensor:
        """log10 of p(f) = Omega_r (g_rho/g_rho0) (g_s0/g_s)^(4/3), the radiation-era transfer of a mode of frequency f [Hz]."""
        energy, entropy = interpolate(frequency, self.frequency, self.energy, self.entropy)
        ln_ratio = torch.log(energy / self.energy_today) - 4 / 3 * torch.log(entropy / self.entropy_today)
        return math.log10(OMEGA_RADIATION) + ln_ratio / math.log(10)

    def horizon_frequency(self, temperature: Tensor) -> Tensor:
        """aH/a0 at T [GeV]: (g_s(T_eq)/g_s)^(1/3) (pi^2 g_rho/90)^(1/2) T0 T/M_pl in Hz, over hbar and no 2 pi."""
        redshift = (self.entropy_equality / self.g_entropy(temperature)).pow(1 / 3)
        hubble = torch.sqrt(math.pi**2 / 90 * self.g_energy(temperature))
        return redshift * hubble * (T_CMB / PLANCK_MASS / HBAR) * temperature


def interpolate(x: Tensor, knots: Tensor, *columns: Tensor) -> list[Tensor]:
    """Each of ``columns (m,)``, given at ascending ``knots (m,)``, at ``x`` of any shape: linear, constant beyond the ends."""
    x = x.clamp(knots[0], knots[-1])
    upper = torch.searchsorted(knots, x.detach()).clamp_(1, len(knots) - 1)
    lower = upper - 1
    weight = (x - knots[lower]) / (knots[upper] - knots[lower])
    return [torch.lerp(column[lower], column[upper], weight) for column in columns]
