"""Likelihoods with a box prior and a known evidence, in numpy alone: peers in their own environments run the very same functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from scipy.special import erf, logsumexp

Array = np.ndarray
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class BoxProblem:
    """A likelihood under a uniform prior.

    Attributes
    ----------
    name : str
    features : int
    half_width : float
        The prior is uniform on ``[-half_width, half_width]`` in every parameter.
    log_likelihood : callable
        ``(n, d)`` float64 to ``(n,)``.
    log_z : float
        Exact, with the prior normalised.
    modes : callable or None
        ``(n, d)`` to ``(n, m)``: responsibilities of the modes, for problems with several.
    masses : ndarray (m,) or None
        Their exact posterior masses.
    """

    name: str
    features: int
    half_width: float
    log_likelihood: Callable[[Array], Array]
    log_z: float
    modes: Callable[[Array], Array] | None = None
    masses: Array | None = None


def rosenbrock(d: int = 10) -> BoxProblem:
    """A curved ridge a fraction .07 wide, a corner of which is a second, faint mode. Quadrature gives ln Z at these d."""
    log_z = {2: -5.804132, 4: -15.101691, 8: -33.721616, 10: -43.108355}[d]

    def log_likelihood(x: Array) -> Array:
        return -np.sum(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2, axis=1)

    return BoxProblem(f"rosenbrock-{d}", d, 5.0, log_likelihood, log_z)


def funnel(d: int = 10, half_width: float = 30.0) -> BoxProblem:
    """``x0 ~ N(0, 9)``, the others ``N(0, e^x0)``; what the box cuts off is taken off the truth."""

    def log_likelihood(x: Array) -> Array:
        v, rest = x[:, 0], x[:, 1:]
        own = -0.5 * v**2 / 9 - 0.5 * np.log(9) - 0.5 * LOG_2PI
        return own - 0.5 * np.sum(rest**2, axis=1) * np.exp(-v) - 0.5 * (d - 1) * (v + LOG_2PI)

    def slab(v: float) -> float:
        return np.exp(-0.5 * v**2 / 9) / np.sqrt(2 * np.pi * 9) * erf(half_width * np.exp(-v / 2) / np.sqrt(2)) ** (d - 1)

    inside = quad(slab, -half_width, half_width, points=[0.0, 5.0], limit=200)[0]
    return BoxProblem(f"funnel-{d}", d, half_width, log_likelihood, float(np.log(inside) - d * np.log(2 * half_width)))


def mixture(d: int = 16, half_width: float = 10.0) -> BoxProblem:
    """Four unit normals at (+-5, +-5) in the first two parameters, of weights .4 .3 .2 .1."""
    centres = np.zeros((4, d))
    centres[:, :2] = [[5, 5], [-5, 5], [-5, -5], [5, -5]]
    masses = np.array([0.4, 0.3, 0.2, 0.1])

    def parts(x: Array) -> Array:
        away = ((x[:, None, :] - centres) ** 2).sum(-1)
        return np.log(masses) - 0.5 * away - 0.5 * d * LOG_2PI

    def modes(x: Array) -> Array:
        log = parts(x)
        return np.exp(log - logsumexp(log, axis=1, keepdims=True))

    return BoxProblem(
        f"mixture-{d}", d, half_width, lambda x: logsumexp(parts(x), axis=1), -d * np.log(2 * half_width), modes, masses
    )


def many_well(pairs: int = 16, half_width: float = 5.0) -> BoxProblem:
    """Independent pairs ``-(x1^4 - 6 x1^2 - x1/2 + x2^2/2)``, each with two wells: 2^16 modes in 32 dimensions."""
    total = 164.695675 / 16  # of one pair over the whole plane; the box cuts off 6e-7 of it

    def log_likelihood(x: Array) -> Array:
        first, second = x[:, ::2], x[:, 1::2]
        return -np.sum(first**4 - 6 * first**2 - 0.5 * first + 0.5 * second**2, axis=1)

    log_z = pairs * (total - 2 * np.log(2 * half_width))
    return BoxProblem(
        f"manywell-{2 * pairs}", 2 * pairs, half_width, log_likelihood, log_z,
        modes=lambda x: (x[:, ::2] > 0).astype(float), masses=np.full(pairs, 0.844307),
    )


PROBLEMS: dict[str, Callable[[], BoxProblem]] = {
    "rosenbrock-10": rosenbrock,
    "funnel-10": funnel,
    "mixture-16": mixture,
    "manywell-32": many_well,
}
