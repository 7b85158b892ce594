"""Where flows of rigid bodies start: normal positions and uniform orientations, as unit quaternions or as ones of any length."""

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


class FreeRigidNormal(Distribution):
    """The same with quaternions of any length, of which the direction alone means a rotation: squared lengths are gamma of mean one.

    A density on all of space has no constraint to keep, and this one a hole where quaternions have no direction, so samplers of real
    numbers can go where they like.
    """

    def __init__(self, bodies: int = 1):
        self.bodies = bodies
        super().__init__(bodies * 7)

    def sample(self, n, generator=None):
        rows = randn((n, self.bodies, 7), generator, dtype=self._anchor.dtype, device=self._anchor.device)
        # A chi-squared of 2 k degrees over 2 k is gamma of shape k and mean one.
        square = randn((2 * LENGTH_SHAPE, n, self.bodies), generator, dtype=rows.dtype, device=rows.device).square().mean(0)
        turn = rows[..., 3:]
        return torch.cat([rows[..., :3], square.sqrt()[..., None] * turn / turn.norm(dim=-1, keepdim=True)], -1).flatten(1)

    def log_prob(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (self.bodies, 7))
        place = -0.5 * rows[..., :3].square().sum((1, 2)) - 1.5 * self.bodies * LOG_2PI
        return place + log_length_density(rows[..., 3:]).sum(1) - self.bodies * LOG_SPHERE


def log_length_density(turn: Tensor) -> Tensor:
    """``ln`` of the density of quaternions ``(..., 4)`` whose direction is uniform, over that of their direction, ``(...)``.

    Times a density of directions, it is one of quaternions: a squared length s has the density ``k^k s^(k-1) exp(-k s) / Gamma(k)``, and
    the volume of four dimensions is ``s ds / 2`` times the area of directions.
    """
    square, k = turn.square().sum(-1), LENGTH_SHAPE
    return k * math.log(k) - math.lgamma(k) + math.log(2) + (k - 2) * square.log() - k * square


LENGTH_SHAPE = 8  # of the gamma density of squared lengths
TYPICAL_LENGTH = math.sqrt((LENGTH_SHAPE - 2) / LENGTH_SHAPE)  # where the density of quaternions is highest
