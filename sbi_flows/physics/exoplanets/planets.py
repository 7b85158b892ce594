"""Observed planets: spectra with errors of their own, and what is known of star and planet beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import positive
from sbi_flows.physics.exoplanets.transit import (
    ATOMIC_MASS,
    BOLTZMANN,
    HYDROGEN_HELIUM,
    JUPITER_RADIUS,
    NAMES,
    SUN_RADIUS,
    WAVELENGTHS,
    TransitModel,
    planet_prior,
)

_SCALE_HEIGHT_AT = 1000.0  # K, for units of features only
_RADII = (0.15, 2.0)  # of stars, in solar radii
_LOG_GRAVITY = (0.5, 1.7)  # 3 to 50 m/s^2
_LOG_ERROR = (-0.7, 0.5)  # log10 of that in the best channel, in scale heights of hydrogen at 1000 K about a planet of Jupiter's radius
_GRAVITIES = (0.0, 2.2)  # beyond, it is no log10 of m/s^2
_WITH_ATMOSPHERE = 2.0  # times the largest radius at 10 bar
_SURELY = 10.0  # errors
_STARS = (3000.0, 7000.0)  # K
_READ_OUT = 0.3  # share of an error that does not depend on the wavelength
_SECOND_RADIATION = 14387.77  # micron K


@dataclass(frozen=True, eq=False)
class Planets:
    """A batch of observed planets, synthetic.

    Attributes
    ----------
    depths, errors : ndarray (n, 52)
        Of the transit in each channel of :data:`WAVELENGTHS`: the share of the star's disc that is covered, and its standard error.
    star_radius : ndarray (n,)
        In solar radii, known.
    log_gravity : ndarray (n,)
        log10 of the planet's gravity in m/s^2, known: transits and radial velocities give it without a model of the star.
    theta : ndarray (n, 7) or None
        What they were made with.

    References
    ----------
    Southworth, Wheatley & Sams 2007, "A method for the direct determination of the surface gravities of transiting extrasolar planets",
    arXiv:0704.1570.
    """

    depths: np.ndarray
    errors: np.ndarray
    star_radius: np.ndarray
    log_gravity: np.ndarray
    theta: np.ndarray | None = None

    def __post_init__(self):
        for name in ("depths", "errors", "star_radius", "log_gravity"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64, order="C"))  # torch refuses reversed views
        n, k = len(self.star_radius), len(WAVELENGTHS)
        shapes = [self.depths.shape, self.errors.shape, self.star_radius.shape, self.log_gravity.shape]
        if shapes != [(n, k), (n, k), (n,), (n,)]:
            raise ValueError(
                f"Expected depths and errors (n, {k}), star_radius and log_gravity (n,); got {', '.join(map(str, shapes))}. For one planet "
                "give every array a first axis of length one."
            )
        if not ((self.errors > 0).all() and (self.star_radius > 0).all() and all(np.isfinite(part).all() for part in self._parts)):
            raise ValueError("Expected finite depths with positive errors, and finite log_gravity and star_radius above zero; got others.")

    def check_units(self) -> None:
        """``ValueError`` where depths, stars or gravities are in units in which no planet of :func:`planet_prior` is observed."""
        low, high = _GRAVITIES
        strange = (self.log_gravity < low) | (self.log_gravity > high)
        if strange.any():
            raise ValueError(
                f"Expected log_gravity as log10 of m/s^2, {_LOG_GRAVITY[0]:g} to {_LOG_GRAVITY[1]:g} in simulations; got "
                f"{self.log_gravity[strange][0]:.4g}. Take log10 of a gravity in m/s^2, or subtract 2 from a logarithm in cgs units."
            )
        unit = (SUN_RADIUS / JUPITER_RADIUS * self.star_radius) ** 2
        weights = self.errors**-2 / (self.errors**-2).sum(1, keepdims=True)
        area, error = unit * (weights * self.depths).sum(1), unit * (self.errors**-2).sum(1) ** -0.5
        least, most = float(planet_prior().low[0]), _WITH_ATMOSPHERE * float(planet_prior().high[0])
        strange = (area + _SURELY * error < least**2) | (area - _SURELY * error > most**2)
        if strange.any():
            raise ValueError(
                "Expected depths as shares of the star's disc (not % or ppm) and star_radius in solar radii, so that radii are "
                f"{least:g} to {planet_prior().high[0]:g} of Jupiter's; got one whose squared radius is {area[strange][0]:.3g}."
            )

    @property
    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.depths, self.errors, self.star_radius, self.log_gravity

    def __len__(self) -> int:
        return len(self.star_radius)

    def __getitem__(self, rows) -> Planets:
        """Some of them; a single number gives a batch of one."""
        rows = np.atleast_1d(np.arange(len(self))[rows])
        depths, errors, star_radius, log_gravity = (part[rows] for part in self._parts)
        return Planets(depths, errors, star_radius, log_gravity, None if self.theta is None else self.theta[rows])

    def features(self) -> np.ndarray:
        """What a network sees, ``(n, 106)``: mean radius, radii about it and log10 of their errors in scale heights, log10 gravity.

        Depths become radii in Jupiter radii by the star's radius, which then says nothing more; deviations are in units of the scale
        height that hydrogen would have at 1000 K.
        """
        unit = (SUN_RADIUS / JUPITER_RADIUS * self.star_radius)[:, None]
        area, error = self.depths * unit**2, self.errors * unit**2
        weights = error**-2 / (error**-2).sum(1, keepdims=True)
        mean = (weights * area).sum(1, keepdims=True)
        radius = np.sqrt(np.maximum(mean, 1e-4))
        slope = 2 * radius * _scale_height(self.log_gravity)[:, None]
        return np.concatenate([radius, (area - mean) / slope, np.log10(error / slope), self.log_gravity[:, None]], axis=1)


def _scale_height(log_gravity: np.ndarray) -> np.ndarray:
    """Of hydrogen and helium at 1000 K, in Jupiter radii."""
    return BOLTZMANN * _SCALE_HEIGHT_AT / (HYDROGEN_HELIUM * ATOMIC_MASS * 10**log_gravity * JUPITER_RADIUS)


def expected_depths(theta: np.ndarray, star_radius: np.ndarray, log_gravity: np.ndarray) -> np.ndarray:
    """Noise-free depths ``(n, 52)`` of ``theta (n, 7)``."""
    with torch.no_grad():
        radius = TransitModel().radius(torch.from_numpy(theta), torch.from_numpy(log_gravity)).numpy()
    return (radius * JUPITER_RADIUS / (star_radius[:, None] * SUN_RADIUS)) ** 2


def simulate_planets(n: int, theta=None, *, random_state: RandomState = None) -> Planets:
    """Planets about stars of all kinds, observed with errors that differ from target to target.

    Parameters
    ----------
    n : int
    theta : array_like (n, 7), optional
        Drawn from :func:`planet_prior` by default.
    random_state : optional

    Returns
    -------
    Planets
        Stars of .15 to 2 solar radii and 3000 to 7000 K, gravities of 3 to 50 m/s^2, independent of theta. Each is observed for as long as
        it takes to reach the error, in the best channel, of .2 to 3 scale heights (log-uniform) of hydrogen at 1000 K on a planet of
        Jupiter's radius: 20 to 300 parts in a million at 10 m/s^2 and one solar radius. It grows where the star has fewer photons.

    Raises
    ------
    ValueError
        For theta of another shape.

    Examples
    --------
    >>> simulate_planets(3, random_state=0).features().shape
    (3, 106)
    """
    positive("n", n, integer=True)
    rng = numpy_generator(random_state)
    prior = planet_prior()
    if theta is None:
        low, high = prior.low.numpy(), prior.high.numpy()
        theta = low + (high - low) * rng.random((n, len(NAMES)))
    theta = np.asarray(theta, dtype=np.float64)
    if theta.shape != (n, len(NAMES)):
        raise ValueError(f"Expected theta of shape ({n}, {len(NAMES)}), columns {', '.join(NAMES)}; got {theta.shape}.")
    star_radius, log_gravity = rng.uniform(*_RADII, n), rng.uniform(*_LOG_GRAVITY, n)
    best = 10 ** rng.uniform(*_LOG_ERROR, n) * 2 * _scale_height(log_gravity) * (JUPITER_RADIUS / (star_radius * SUN_RADIUS)) ** 2
    errors = best[:, None] * _error_shape(rng.uniform(*_STARS, n))
    depths = expected_depths(theta, star_radius, log_gravity) + errors * rng.standard_normal(errors.shape)
    return Planets(depths, errors, star_radius, log_gravity, theta)


def _error_shape(star_temperature: np.ndarray) -> np.ndarray:
    """Errors over that of the best channel, ``(n, 52)``: photon noise of a black body in channels of equal width in ln(wavelength)."""
    x = _SECOND_RADIATION / (WAVELENGTHS * star_temperature[:, None])
    photons = 1 / (WAVELENGTHS**3 * np.expm1(x))
    noise = photons**-0.5
    return _READ_OUT + (1 - _READ_OUT) * noise / noise.min(1, keepdims=True)
