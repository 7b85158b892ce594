"""The constants of a rational-quadratic spline.

With bin left end ``(x0, y0)``, sizes ``w, h``, slopes ``d0, d1`` at its ends, ``s = h / w``,
``xi = (x - x0) / w``, ``t = xi (1 - xi)``::

    D = s + (d0 + d1 - 2 s) t             r = (s xi^2 + d0 t) / D             z = y0 + h r
    M = d1 xi^2 + 2 s t + d0 (1 - xi)^2   ln dz/dx = ln(M (s / D)^2)

References
----------
Gregory & Delbourgo 1982, "Piecewise rational quadratic interpolation to monotonic data", IMA J. Numer. Anal. 2(2).
Durkan, Bekasov, Murray & Papamakarios 2019, "Neural spline flows", arXiv:1906.04032.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# Slopes at the knots are log2(1 + 2^raw), and at least MIN_SLOPE: one for a raw slope of zero.
MIN_SLOPE = 1e-3
LN2 = math.log(2)


class Shape(NamedTuple):
    """The constants of a spline: number of bins, half-width of its interval, smallest bin as a fraction of the interval."""

    bins: int
    bound: float
    min_size: float
    circular: bool

    @property
    def n_slopes(self) -> int:
        """Slopes at the inner knots, and on a circle one more for the seam."""
        return self.bins - (0 if self.circular else 1)

    @property
    def n_params(self) -> int:
        """The slopes, then a width and a height for each bin."""
        return self.n_slopes + 2 * self.bins

    @property
    def floor(self) -> float:
        """Smallest size of a bin."""
        return 2 * self.bound * self.min_size

    @property
    def scale(self) -> float:
        """What is left to share among the bins."""
        return 2 * self.bound * (1 - self.bins * self.min_size)
