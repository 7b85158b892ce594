"""The score of the Ariel data challenge: how near a posterior is to the reference one, and what it says of the spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.physics.exoplanets.planets import Planets, expected_depths

_POSTERIOR, _SPECTRAL, _FULL = 0.8, 0.2, 1000.0
_HUBER = 100.0


@dataclass(frozen=True)
class ChallengeScore:
    """Out of 1000.

    Attributes
    ----------
    total, posterior, spectral : float
        The total is .8 of the second and .2 of the third.
    ks : ndarray (7,)
        Kolmogorov-Smirnov distance of each marginal.
    """

    total: float
    posterior: float
    spectral: float
    ks: np.ndarray


def challenge_score(planet: Planets, ours, reference, *, n_spectra: int = 1000, random_state: RandomState = None) -> ChallengeScore:
    """The data challenge's score of draws against those of a reference posterior.

    Parameters
    ----------
    planet : Planets
        A batch of one.
    ours, reference : array_like (m, 7), (k, 7)
        Draws of equal weight.
    n_spectra : int
        Draws whose spectra are compared; a thousand leave an error of a few tenths.
    random_state : optional
        Which draws.

    Returns
    -------
    ChallengeScore
        Posterior score: the mean over parameters of ``1000 (1 - KS)``. Spectral: 1000 less the mean of 100 times the Huber losses between
        log10 of the medians and between log10 of the interquartile ranges of the predicted spectra, each averaged over channels.

    Raises
    ------
    ValueError
        For draws of another shape, or none.

    Examples
    --------
    >>> from sbi_flows.physics.exoplanets import simulate_planets
    >>> planet = simulate_planets(1, random_state=0)
    >>> draws = planet.theta + np.random.default_rng(1).normal(size=(500, 7)) * [0.01, 50, 0.1, 0.1, 0.1, 0.1, 0.1]
    >>> challenge_score(planet, draws, draws, random_state=0).posterior
    1000.0

    References
    ----------
    Yip et al. 2022, "ESA-Ariel Data Challenge NeurIPS 2022: inferring physical properties of exoplanets from next-generation
    telescopes", arXiv:2206.14642.
    """
    sets = [np.asarray(draws, dtype=np.float64) for draws in (ours, reference)]
    for name, draws in zip(("ours", "reference"), sets, strict=True):
        if draws.ndim != 2 or draws.shape[1] != 7 or not len(draws):
            raise ValueError(f"Expected {name} to be draws of shape (m, 7); got {draws.shape}.")
    ks = np.array([ks_2samp(sets[0][:, j], sets[1][:, j], method="asymp").statistic for j in range(7)])
    rng = numpy_generator(random_state)
    medians, ranges = zip(*(_summary(planet, draws, n_spectra, rng) for draws in sets), strict=True)
    losses = [np.mean(_huber(np.log10(pair[0]) - np.log10(pair[1]))) for pair in (medians, ranges)]
    posterior, spectral = _FULL * (1 - ks.mean()), _FULL - _HUBER * np.mean(losses)
    return ChallengeScore(float(_POSTERIOR * posterior + _SPECTRAL * spectral), float(posterior), float(spectral), ks)


def _summary(planet: Planets, draws: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Median and interquartile range of the predicted depth in each channel."""
    chosen = draws[rng.permutation(len(draws))[:n]]
    ones = np.ones(len(chosen))
    spectra = expected_depths(chosen, planet.star_radius[0] * ones, planet.log_gravity[0] * ones)
    low, median, high = np.quantile(spectra, [0.25, 0.5, 0.75], axis=0)
    return median, np.maximum(high - low, 1e-12)


def _huber(difference: np.ndarray) -> np.ndarray:
    size = np.abs(difference)
    return np.where(size <= 1, 0.5 * size**2, size - 0.5)
