"""A pulsar timing array that nobody observed, for tests and examples where the real one is out of reach."""

from __future__ import annotations

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.physics.pta.embedded import embedded_free_spectrum
from sbi_flows.physics.pta.timing_arrays import PulsarArray

_WHITE_NOISE = (1e-7, 1e-6)  # s, of one time of arrival
SYNTHETIC = "synthetic"


def synthetic_pulsars(
    n_pulsars: int = 5, *, n_times: int = 300, n_frequencies: int = 30, random_state: RandomState = None
) -> PulsarArray:
    """Made-up pulsars over the span of the NANOGrav 15-year data: white noise only, none of it real.

    Directions are isotropic, times of arrival random, errors of 0.1 to 1 microsecond differ by pulsar; a quadratic in time and an annual
    sine and cosine are marginalised, as spin-down and position are. Simulate a sky by
    :meth:`sbi_flows.physics.pta.TimingTarget.simulate`.

    Parameters
    ----------
    n_pulsars, n_times, n_frequencies : int
    random_state : int, generator or None

    Examples
    --------
    >>> synthetic_pulsars(3, random_state=0).source
    'synthetic'
    """
    rng = numpy_generator(random_state)
    span = 1 / float(embedded_free_spectrum().frequencies[0])
    positions = rng.normal(size=(n_pulsars, 3))
    positions /= np.linalg.norm(positions, axis=1, keepdims=True)
    low, high = np.log(_WHITE_NOISE).tolist()
    errors = np.exp(rng.uniform(low, high, size=n_pulsars))
    statistics = [_statistics(np.sort(rng.uniform(0, span, n_times)), span, error, n_frequencies, rng) for error in errors]
    tnt, tnr = (np.stack(arrays) for arrays in zip(*statistics, strict=True))
    names = tuple(f"S{i:04d}" for i in range(n_pulsars))
    return PulsarArray(names, positions, span, tnt, tnr, SYNTHETIC)


def _statistics(
    times: np.ndarray, span: float, error: float, n_frequencies: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """TNT and TNr of white-noise residuals at these times [s]."""
    phase = 2 * np.pi * times[:, None] * np.arange(1, n_frequencies + 1) / span
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(len(times), -1)
    x, year = 2 * times / span - 1, 2 * np.pi * times / (365.25 * 86400)
    timing_model = np.linalg.qr(np.stack([np.ones_like(x), x, x**2, np.sin(year), np.cos(year)], axis=1))[0]
    free = basis - timing_model @ (timing_model.T @ basis)
    residuals = error * rng.normal(size=len(times))
    return free.T @ free / error**2, free.T @ residuals / error**2
