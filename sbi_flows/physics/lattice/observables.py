"""Means and autocorrelation times of Markov chains with their errors (the Gamma method), and the susceptibility by the jackknife."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sbi_flows.results import Reliability

_S = 1.5  # how many times longer the slowest mode is taken to be than the integrated time, in choosing the window
_SHORTEST = 50  # a chain of fewer integrated times than this knows neither its error nor its time
_FEWEST = 30  # changes of a series, all chains together, below which its time is known to worse than a fifth
_FROZEN = 0.25  # share of chains that never change above which their mean is that of the starts
_BLOCKS = 100  # of the jackknife, all chains together


@dataclass(frozen=True)
class Estimate:
    """A mean over Markov chains.

    Attributes
    ----------
    value, error : float
        The mean and one standard error, autocorrelation included.
    tau, tau_err : float
        Integrated autocorrelation time in draws, ``1/2 + sum of rho(t)`` (one half for independent draws), and its standard error.
    window : int
        Lag at which the sum was cut.
    reliability : Reliability
        Whether the chains are long enough for ``error`` and ``tau``.
    """

    value: float
    error: float
    tau: float
    tau_err: float
    window: int
    reliability: Reliability

    def __repr__(self) -> str:
        return f"Estimate({self.value:.6g} +- {self.error:.2g}, tau={self.tau:.3g} +- {self.tau_err:.1g})   {self.reliability}"


def gamma_method(series: np.ndarray) -> Estimate:
    """Mean, error and integrated autocorrelation time of a stationary series.

    Parameters
    ----------
    series : array_like (draw,) or (chain, draw)
        Several chains are replica: they share one autocorrelation function about their common mean.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        For other shapes, fewer than four draws, or values that are not finite.

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal(size=(4, 10_000))
    >>> bool(abs(gamma_method(draws).tau - 0.5) < 0.05)
    True

    References
    ----------
    Wolff 2004, "Monte Carlo errors with less errors", Comput. Phys. Commun. 156, arXiv:hep-lat/0306017.
    """
    series = _checked(series)
    mean = series.mean()
    total = series.size
    gamma = _autocovariance(series - mean)
    if gamma[0] <= 0:
        never = Reliability(False, (f"it never changed in {total} draws: nothing is known of its time",))
        return Estimate(float(mean), 0.0, np.inf, np.inf, 0, never)
    window, found = _window(gamma / gamma[0], total)
    # Subtracting the sample's own mean biases every term by about minus the variance of that mean.
    gamma = gamma + (gamma[0] + 2 * gamma[1 : window + 1].sum()) / total
    tau = 0.5 + gamma[1 : window + 1].sum() / gamma[0]
    tau_err = tau * 2 * np.sqrt(max(window + 0.5 - tau, 0.0) / total)
    error = np.sqrt(2 * max(tau, 0.0) * gamma[0] / total)
    return Estimate(float(mean), float(error), float(tau), float(tau_err), window, _verdict(series, tau, found))


def susceptibility(charge: np.ndarray, volume: int) -> Estimate:
    """``<Q^2> / V`` with a blocked jackknife error; the mean charge, zero by symmetry, is not subtracted.

    Parameters
    ----------
    charge : array_like (draw,) or (chain, draw)
    volume : int
        Number of plaquettes.

    Returns
    -------
    Estimate
        ``tau`` is that of the charge itself, the slower of the two.

    Examples
    --------
    >>> charge = np.random.default_rng(0).integers(-1, 2, size=(20, 500))
    >>> bool(abs(susceptibility(charge, 64).value - 2 / 3 / 64) < 0.001)
    True
    """
    charge = _checked(charge)
    time = gamma_method(charge)
    values = charge**2 / volume
    mean, error = jackknife(values)
    return Estimate(mean, error, time.tau, time.tau_err, time.window, time.reliability)


def jackknife(values: np.ndarray) -> tuple[float, float]:
    """Mean of ``values (chain, draw)`` and its standard error from about a hundred blocks, leaving out one at a time."""
    chains, n = values.shape
    per_chain = int(np.clip(round(_BLOCKS / chains), 1, n))
    blocks = np.concatenate([part.mean(axis=1) for part in np.array_split(values, per_chain, axis=1)])
    if len(blocks) < 2:
        return float(values.mean()), float("nan")
    without = (blocks.sum() - blocks) / (len(blocks) - 1)
    error = np.sqrt((len(blocks) - 1) * np.mean((without - without.mean()) ** 2))
    return float(values.mean()), float(error)


def _checked(series) -> np.ndarray:
    series = np.atleast_2d(np.asarray(series, dtype=np.float64))
    if series.ndim != 2 or series.shape[1] < 4:
        raise ValueError(f"Expected a series of shape (draw,) or (chain, draw) with at least 4 draws; got {series.shape}.")
    if not np.isfinite(series).all():
        raise ValueError(f"Expected finite values; got {int((~np.isfinite(series)).sum())} NaN or infinite ones in the series.")
    return series


def _autocovariance(centred: np.ndarray) -> np.ndarray:
    """Mean over chains of the products at each lag, ``(draw,)``."""
    _, n = centred.shape
    size = 2 ** int(np.ceil(np.log2(2 * n)))
    power = np.mean(np.abs(np.fft.rfft(centred, size, axis=1)) ** 2, axis=0)
    return np.fft.irfft(power, size)[:n] / np.arange(n, 0, -1)


def _window(rho: np.ndarray, total: int) -> tuple[int, bool]:
    """Wolff's automatic window: where the truncation error falls below the growth of the noise; and whether there is such a lag."""
    limit = max(len(rho) // 2, 1)
    integrated = 0.5 + np.cumsum(rho[1 : limit + 1])
    lags = np.arange(1, limit + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slowest = np.where(integrated > 0.5, _S / np.log((2 * integrated + 1) / (2 * integrated - 1)), 1e-12)
    stop = np.exp(-lags / slowest) - slowest / np.sqrt(lags * total) < 0
    return (int(lags[stop.argmax()]), True) if stop.any() else (limit, False)


def _verdict(series: np.ndarray, tau: float, found: bool) -> Reliability:
    reasons, n = [], series.shape[1]
    if not found or n < _SHORTEST * tau:
        reasons.append(f"chains of {n} draws are shorter than {_SHORTEST} times tau={tau:.3g}, so that error and time come out too small")
    changes = int((np.diff(series, axis=1) != 0).sum())
    if changes < _FEWEST:
        reasons.append(f"it changed only {changes} times in {series.size} draws, too rarely to know its time or its error: run longer")
    frozen = int((np.ptp(series, axis=1) == 0).sum())
    if frozen > _FROZEN * len(series):
        reasons.append(f"in {frozen} of {len(series)} chains it never changed: they show where they started, and no error bar covers that")
    return Reliability.from_reasons(reasons)
