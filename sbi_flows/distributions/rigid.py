"""Where flows of rigid bodies start: normal positions and uniform orientations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows.distributions.base import LOG_2PI, Distribution

LOG_SPHERE = math.log(2 * math.pi**2)  # area of the unit sphere in four dimensions


class RigidNormal(Distribution):
    """Standard normal positions, if any, and quaternions uniform on the unit sphere; ``(x, y, z, qw, qx, qy, qz)`` a body.

    The density is per volume and per area of the sphere.
    """

    def __init__(self, bodies: int = 1, positions: bool = True):
        self.bodies, self.places = bodies, 3 if positions else 0
        super().__init__(bodies * (self.places + 4))

    def sample(self, n, generator=None):
        rows = randn((n, self.bodies, self.places + 4), generator, dtype=self._anchor.dtype, device=self._anchor.device)
        turn = rows[..., self.places :]
        return torch.cat([rows[..., : self.places], turn / turn.norm(dim=-1, keepdim=True)], -1).flatten(1)

    def log_prob(self, x: Tensor) -> Tensor:
        place = x.unflatten(1, (self.bodies, self.places + 4))[..., : self.places]
        return -0.5 * place.square().sum((1, 2)) - self.bodies * (0.5 * self.places * LOG_2PI + LOG_SPHERE)
