"""Where flows on manifolds start: uniform on spheres, circles, rotations and boxes, normal on lines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sbi_flows.bijections.manifolds import Factor
from sbi_flows.distributions.base import Distribution


class ManifoldBase(Distribution):
    """Independent factors; the density is with respect to length, area and volume of each, of rotations that of unit quaternions."""

    def __init__(self, factors: Sequence[Factor]):
        self.factors = tuple(factors)
        super().__init__(sum(part.columns for part in factors))

    def sample(self, n, generator=None):
        return torch.cat([part.sample(n, generator, self._anchor) for part in self.factors]).mT

    def log_prob(self, x):
        parts = x.mT.split([part.columns for part in self.factors])
        return torch.stack([part.log_prob(own) for part, own in zip(self.factors, parts, strict=True)]).sum(0)
