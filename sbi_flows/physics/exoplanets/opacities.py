"""Synthetic opacities: smooth bands where the molecules absorb, with strengths of the right order of magnitude, and Rayleigh scattering.

These are **not** measured opacities, whose tables are too large to be shipped: a spectrum made with them must not be compared with a
real planet. They keep what makes retrieval hard: bands that overlap, strengths that span six decades, wings that fill the windows.
"""

from __future__ import annotations

import numpy as np

# Centre [micron], cross-section at the centre [cm^2 a molecule], width in ln(wavelength).
_BANDS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "H2O": (
        (0.94, 3e-23, 0.035), (1.13, 6e-23, 0.04), (1.38, 8e-22, 0.05), (1.87, 9e-22, 0.05), (2.70, 1e-20, 0.06), (6.30, 1e-20, 0.11),
    ),
    "CO2": ((1.43, 2e-23, 0.02), (1.60, 1e-23, 0.02), (2.01, 3e-22, 0.02), (2.70, 2e-20, 0.025), (4.30, 2e-19, 0.03)),
    "CO": ((1.58, 3e-24, 0.02), (2.34, 3e-22, 0.025), (4.67, 2e-20, 0.035)),
    "CH4": (
        (0.89, 1e-23, 0.03), (1.16, 6e-23, 0.035), (1.38, 1e-22, 0.035), (1.68, 4e-22, 0.04), (2.32, 2e-21, 0.05), (3.32, 4e-20, 0.05),
        (7.66, 2e-20, 0.08),
    ),
    "NH3": ((1.51, 3e-22, 0.04), (1.98, 5e-22, 0.04), (2.26, 3e-22, 0.035), (2.96, 1e-20, 0.05), (6.15, 2e-20, 0.09), (10.4, 5e-20, 0.12)),
}  # fmt: skip
GASES = tuple(_BANDS)
MOLAR_MASSES = {"H2O": 18.015, "CO2": 44.010, "CO": 28.010, "CH4": 16.043, "NH3": 17.031}  # g / mol
_RAYLEIGH, _RAYLEIGH_AT = 2.52e-28, 0.75  # cm^2 a molecule of H2 and the wavelength [micron] it is for
_CM2 = 1e-4


def cross_sections(wavelengths) -> np.ndarray:
    """Absorption cross-section of each of :data:`GASES` at wavelengths [micron], ``(5, k)`` in m^2 a molecule.

    A band is ``sigma / cosh(ln(lambda / centre) / width)``: smooth, with exponential wings.

    Examples
    --------
    >>> cross_sections([4.3]).argmax()                       # carbon dioxide
    1
    """
    at = np.log(np.asarray(wavelengths, dtype=np.float64))
    bands = [sum(peak / np.cosh((at - np.log(centre)) / width) for centre, peak, width in _BANDS[gas]) for gas in GASES]
    return _CM2 * np.stack(bands)


def rayleigh(wavelengths) -> np.ndarray:
    """Scattering cross-section of molecular hydrogen at wavelengths [micron], ``(k,)`` in m^2: the inverse fourth power.

    References
    ----------
    Lecavelier des Etangs et al. 2008, "Rayleigh scattering in the transit spectrum of HD 189733b", arXiv:0802.3228.
    """
    return _CM2 * _RAYLEIGH * (_RAYLEIGH_AT / np.asarray(wavelengths, dtype=np.float64)) ** 4
