"""Exact values of two-dimensional U(1) gauge theory on a periodic lattice, whose plaquettes are independent but for their sum."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ive

_MOST_ORDERS = 200  # orders of Bessel functions and windings summed; terms fall off faster than exponentially for beta below a hundred
_NODES = 600


def exact_plaquette(size: int, beta: float) -> float:
    """Mean of ``cos P`` on ``size x size`` sites.

    ``sum_n r_n^(V-1) (I_(n-1) + I_(n+1)) / (2 I_0) / sum_n r_n^V`` with ``r_n = I_n(beta) / I_0(beta)`` and V plaquettes.

    Examples
    --------
    >>> round(exact_plaquette(8, 4.0), 6)
    0.86353
    """
    volume, order = size**2, np.abs(np.arange(-_MOST_ORDERS, _MOST_ORDERS + 1))
    ratio = ive(order, beta) / ive(0, beta)
    around = (ive(np.abs(order - 1), beta) + ive(order + 1, beta)) / (2 * ive(0, beta))
    return float((ratio ** (volume - 1) * around).sum() / (ratio**volume).sum())


def exact_susceptibility(size: int, beta: float) -> float:
    """Topological susceptibility ``<Q^2> / V`` on ``size x size`` sites.

    From ``Z(t) = sum_n J(n + t / 2 pi)^V``, ``J(v) = (1 / 2 pi) int exp(beta cos p) cos(v p) dp``: ``<Q^2> = -Z''(0) / Z(0)``.

    Examples
    --------
    >>> round(exact_susceptibility(8, 7.0), 6)
    0.003392
    """
    volume = size**2
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    p, weight = math.pi * nodes, math.pi * weights * np.exp(beta * (np.cos(math.pi * nodes) - 1))
    order = np.arange(-_MOST_ORDERS // 2, _MOST_ORDERS // 2 + 1)[:, None]
    j = (weight * np.cos(order * p)).sum(1)
    first = (weight * -p * np.sin(order * p)).sum(1)
    second = (weight * -(p**2) * np.cos(order * p)).sum(1)
    j, first, second = j / weight.sum(), first / weight.sum(), second / weight.sum()
    curvature = volume * ((volume - 1) * j ** (volume - 2) * first**2 + j ** (volume - 1) * second)
    return float(-curvature.sum() / (j**volume).sum() / (4 * math.pi**2) / volume)


def exact_log_z(size: int, beta: float) -> float:
    """Natural log of the integral of ``exp(-S)`` over all links.

    Examples
    --------
    >>> bool(np.isclose(exact_log_z(2, 0.0), 8 * math.log(2 * math.pi)))
    True
    """
    volume, order = size**2, np.abs(np.arange(-_MOST_ORDERS, _MOST_ORDERS + 1))
    ratio = ive(order, beta) / ive(0, beta)
    return 2 * volume * math.log(2 * math.pi) + volume * (math.log(ive(0, beta)) + beta) + math.log((ratio**volume).sum())
