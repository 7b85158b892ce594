"""Arrays whose axes are not what they were taken for: (draw, chain, d), or walkers flattened step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FEWEST_CHAINS = 20
# Of a chain, below which its autocorrelation and its halves would no longer show whether it has mixed.
_LEAST_LENGTH = 200


def every_so_many(lengths: np.ndarray, most: int) -> tuple[int, np.ndarray]:
    """One draw in so many of each chain, and which, ``(n,)`` bool, that at most ``most`` are left, but `_LEAST_LENGTH` of a chain.

    Each chain keeps its end and its order, so that what is left shows the same autocorrelation, in longer steps.
    """
    step = min(-(-int(lengths.sum()) // most), max(int(lengths.min()) // _LEAST_LENGTH, 1))
    return step, np.concatenate([np.arange(n)[::-1] for n in lengths]) % step == 0


def layout_reasons(x: np.ndarray, lengths: np.ndarray, names: Sequence[str]) -> list[str]:
    """What speaks against rows ``(n, d)`` being chains of these ``lengths``, one after the other: correlation where none should be."""
    if len(lengths) > max(lengths[0], _FEWEST_CHAINS - 1) and len(np.unique(lengths)) == 1:
        return _swapped(x.reshape(len(lengths), lengths[0], -1))
    return _flattened(x, names) if len(lengths) == 1 else []


def _swapped(chains: np.ndarray) -> list[str]:
    """More chains than draws, and each chain like the next: these are the draws."""
    centred = chains - chains.mean(axis=(0, 1))
    power = (centred**2).mean(axis=(0, 1))
    moving = power > 0
    if not moving.any():
        return []
    neighbours = ((centred[1:] * centred[:-1]).mean(axis=(0, 1))[moving] / power[moving]).max()
    if neighbours <= 0.2 + 5 / np.sqrt(chains[..., 0].size):
        return []
    return [
        f"neighbouring chains are correlated ({neighbours:.2f}): the array looks like (draw, chain, d). Pass (chain, draw, d): for emcee "
        "as_chains(sampler, burn=...), or numpy.swapaxes(sampler.get_chain(), 0, 1)"
    ]


def _flattened(x: np.ndarray, names: Sequence[str]) -> list[str]:
    for name, column in zip(names, x.T, strict=True):
        lag = _late_correlation(column)
        if lag:
            return [
                f"'{name}' is correlated at lag {lag} and not before: the rows look like chains flattened step by step. Pass "
                "(chain, draw, d), for emcee as_chains(sampler, burn=...)"
            ]
    return []


def _late_correlation(values: np.ndarray) -> int:
    """The lag at which a series that had lost its memory finds it again, 0 if it never does."""
    n = len(values)
    spectrum = np.abs(np.fft.rfft(values - values.mean(), 2 * n)) ** 2
    rho = np.fft.irfft(spectrum)[: n // 4]
    if not len(rho) or rho[0] <= 0:
        return 0
    rho = rho / rho[0]
    noise = 6 / np.sqrt(n)
    forgotten = np.flatnonzero(rho < noise)
    if not len(forgotten):
        return 0
    late = forgotten[0] + np.flatnonzero(rho[forgotten[0] :] > max(0.2, 2 * noise))
    return int(late[0]) if len(late) else 0
