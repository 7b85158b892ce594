"""Rational-quadratic spline transformers: on the line with linear tails, and on the circle."""

import math

import torch

from sbi_flows.bijections._spline_kernel import pulled_back, spline
from sbi_flows.bijections._spline_shape import Shape
from sbi_flows.bijections.base import Transformer


class Spline(Transformer):
    """Monotone rational-quadratic spline on ``[-bound, bound]``, the identity beyond.

    Parameters
    ----------
    bins : int
        Number of bins, at least 2.
    bound : float
        Half-width of the interval, in units of the standardised data.
    min_size : float
        Smallest width and height of a bin, as a fraction of the interval.

    Examples
    --------
    >>> import torch
    >>> t = Spline(bins=8)
    >>> z, log_det = t.forward(torch.zeros(5), torch.zeros(t.n_params, 5))

    References
    ----------
    Durkan, Bekasov, Murray & Papamakarios 2019, "Neural spline flows", arXiv:1906.04032.
    """

    def __init__(self, bins: int = 8, bound: float = 5.0, min_size: float = 1e-3):
        self._shape = _checked(bins, bound, min_size, circular=False)
        self.n_params = self._shape.n_params

    @property
    def shape(self) -> Shape:
        """The constants of the spline."""
        return self._shape

    def forward(self, x, params):
        return spline(x, params, self._shape, inverse=False)

    def inverse(self, z, params):
        return spline(z, params, self._shape, inverse=True)

    def pull(self, method, x, params, value, score):
        found = pulled_back(value, score)
        return found if found is not None else super().pull(method, x, params, value, score)


class CircularSpline(Transformer):
    """Rational-quadratic spline of the circle [-pi, pi), then a rotation.

    The slope at the seam is learned and is the same on both sides, so the density is continuous there; the rotation frees
    the seam from the place where the angle happens to be cut.

    Parameters
    ----------
    bins : int
        Number of bins, at least 2.
    min_size : float
        Smallest width and height of a bin, as a fraction of the circle.

    References
    ----------
    Rezende et al. 2020, "Normalizing flows on tori and spheres", arXiv:2002.02428.
    """

    circular = True

    def __init__(self, bins: int = 8, min_size: float = 1e-3):
        self._shape = _checked(bins, math.pi, min_size, circular=True)
        self.n_params = self._shape.n_params + 1

    def forward(self, x, params):
        z, log_det = spline(wrap(x), params[:-1], self._shape, inverse=False)
        return wrap(z + params[-1]), log_det

    def inverse(self, z, params):
        return spline(wrap(z - params[-1]), params[:-1], self._shape, inverse=True)


def wrap(angle: torch.Tensor) -> torch.Tensor:
    """The same angle on [-pi, pi)."""
    # floor keeps angles already inside unchanged to the last bit; the clamp catches -pi - tiny rounding up to pi.
    return angle - 2 * math.pi * torch.floor((angle + math.pi) / (2 * math.pi))


def _checked(bins, bound, min_size, circular):
    if bins < 2:
        raise ValueError(f"Expected at least 2 bins; got bins={bins}.")
    if not (bound > 0 and math.isfinite(bound)):
        raise ValueError(f"Expected a finite bound > 0; got {bound}.")
    if not 0 < min_size * bins < 1:
        raise ValueError(f"Expected 0 < min_size < 1 / bins = {1 / bins:.3g}; got {min_size}.")
    return Shape(bins, float(bound), float(min_size), circular)
