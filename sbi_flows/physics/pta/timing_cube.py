"""Sources of different parameters on one unit cube, so that one network can serve them all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows.distributions import BoxUniform, Distribution, MultivariateNormal, Product
from sbi_flows.physics.pta.timing import OWN, TimingTarget


class Cube:
    """The parameters of a target with the source's mapped to ``width`` numbers between 0 and 1, uniform under its prior.

    A source of fewer parameters leaves the last numbers without meaning: they stay uniform, and integrate to one.

    Parameters
    ----------
    target : TimingTarget
        Its source's prior is a ``BoxUniform`` or a ``MultivariateNormal``.
    width : int

    Attributes
    ----------
    features : int
        ``width`` and two a pulsar.

    Examples
    --------
    >>> from sbi_flows.physics.pta import synthetic_pulsars, timing_likelihood
    >>> cube = Cube(timing_likelihood(synthetic_pulsars(1, random_state=0)), 3)
    >>> cube.to_user(torch.tensor([[0.5, 0.5, 0.1, -14.0, 3.0]])).tolist()
    [[-14.5, 3.5, -14.0, 3.0]]
    """

    def __init__(self, target: TimingTarget, width: int):
        self.target, self.width, self.used = target, width, target.model.prior.features
        prior = target.model.prior
        if not isinstance(prior, BoxUniform | MultivariateNormal) or self.used > width:
            raise ValueError(
                f"Expected a source of at most {width} parameters whose prior is uniform in a box or normal; {target.model.name} has "
                f"{self.used} and a {type(prior).__name__}."
            )
        self._source: BoxUniform | MultivariateNormal = prior
        self.features = width + target.features - self.used

    def to_user(self, rows: Tensor) -> Tensor:
        """``(n, features)`` to theta ``(n, d)``."""
        u, own = rows[:, : self.used].double(), rows[:, self.width :].double()
        if isinstance(self._source, BoxUniform):
            source = torch.lerp(self._source.low, self._source.high, u)
        else:
            tiny = torch.finfo(torch.float64).tiny
            normal = math.sqrt(2.0) * torch.erfinv((2 * u - 1).clamp(tiny - 1, 1 - 2**-53))
            source = self._source.mean + normal @ self._source.cholesky.T
        return torch.cat([source, own], dim=-1)

    def from_user(self, theta: Tensor) -> Tensor:
        """Theta ``(n, d)`` to rows ``(n, features)``; what has no meaning is one half."""
        source, own = theta[:, : self.used].double(), theta[:, self.used :].double()
        if isinstance(self._source, BoxUniform):
            u = (source - self._source.low) / (self._source.high - self._source.low)
        else:
            normal = torch.linalg.solve_triangular(self._source.cholesky, (source - self._source.mean).mT, upper=False).mT
            u = torch.special.ndtr(normal)
        return torch.cat([u, u.new_full((len(u), self.width - self.used), 0.5), own], dim=-1)

    def log_likelihood(self, rows: Tensor) -> Tensor:
        """ln L ``(n,)`` of ``rows (n, features)`` inside the cube."""
        return self.target.log_likelihood(self.to_user(rows))


def cube_prior(width: int, n_pulsars: int) -> Distribution:
    """Uniform on the cube, and on each pulsar's own noise."""
    source = BoxUniform([0.0] * width, [1.0] * width, names=[f"u{i}" for i in range(width)])
    names = [f"{name}_{i}" for i in range(n_pulsars) for name, _, _ in OWN]
    own = BoxUniform([low for _, low, _ in OWN] * n_pulsars, [high for _, _, high in OWN] * n_pulsars, names=names)
    return Product([source, own])
