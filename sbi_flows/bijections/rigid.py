"""A continuous flow of rigid bodies: positions, and orientations as unit quaternions, with an exact divergence.

The network sees rotation matrices, which do not tell q from -q, and gives each body a velocity and an angular velocity in its own frame;
quaternions move by ``dq/dt = q (0, rate) / 2``. So the flow is one of rotations: it takes -q to minus where it takes q, on the sphere it
never leaves. The divergence is the sum of derivatives of each rate along its own turn, six tangents a body through the network, because
turns about the axes of a body keep the volume of the rotation group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from sbi_flows._validation import positive
from sbi_flows.bijections.base import Bijection
from sbi_flows.bijections.framed import Framed
from sbi_flows.bijections.quaternions import CROSS, multiply, to_matrix
from sbi_flows.bijections.velocity import silu_and_slope
from sbi_flows.nn import transforms_active

_UNIT = 1e-3  # how far from one the length of a quaternion may be


class RigidContinuous(Framed):
    """The flow of bodies from data at t = 1 to noise at t = 0; rows are ``(x, y, z, qw, qx, qy, qz)`` a body, or ``(qw, ...)`` alone.

    Densities are with respect to volume, for positions, and to the area of the unit sphere in four dimensions (``2 pi^2`` in all), for
    quaternions: q and -q each hold half of the mass.

    Parameters
    ----------
    bodies : int
    positions : bool
        Whether bodies have positions besides orientations.
    length : float
        Typical spread of positions, by which they are divided.
    hidden : (int, int)
    steps : int
        Of the integration, each of 11 evaluations.
    tolerance : float or None
        Rows whose error of the log-density is above it, in nats, get more steps.
    generator : torch.Generator, optional

    References
    ----------
    Koehler, Invernizzi, de Haan & Noe 2023, "Rigid body flows for sampling molecular crystal structures", arXiv:2301.11355; Chen & Lipman
    2024, "Flow matching on general geometries", arXiv:2302.03660; Falorsi & Forre 2020, arXiv:2006.06663 (divergence on Lie groups).
    """

    def __init__(
        self,
        bodies: int = 1,
        *,
        positions: bool = True,
        length: float = 1.0,
        hidden: Sequence[int] = (128, 128),
        steps: int = 4,
        tolerance: float | None = 1e-2,
        generator: torch.Generator | None = None,
    ):
        super().__init__(steps, tolerance)
        positive("bodies", bodies, integer=True)
        positive("length", length)
        self.bodies, self.places, self.length = int(bodies), 3 if positions else 0, float(length)
        self.width = self.places + 4
        self.features = bodies * self.width
        self._start_network(bodies * (self.places + 9), bodies * (self.places + 3), hidden, generator)

    # --- The field ---------------------------------------------------------------------------------------------------------

    def rates(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """At times ``t`` () or (n,) and rows ``x (n, features)``, velocities ``(bodies, 0 or 3, n)`` and rates ``(bodies, 3, n)``.

        Positions, and so velocities, are in units of ``length``.
        """
        place, turn = self._split(x.mT)
        shift1, gain1, shift2, gain2, offset = self._parts(self._modulation(t.to(x)))
        h = silu(self.in_weight @ _seen(place, to_matrix(turn.movedim(1, 0))) + shift1) * gain1
        h = silu(self.mid_weight @ h + shift2) * gain2
        return self._moves(self.out_weight @ h + offset)

    def _slope(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivative of ``x (features, n)`` and the divergence ``(n,)``."""
        place, turn = self._split(x)
        matrix = to_matrix(turn.movedim(1, 0))
        shift1, gain1, shift2, gain2, offset = self._parts(self._modulation(torch.tensor(t, dtype=x.dtype, device=x.device)))
        h, slope1 = silu_and_slope(self.in_weight @ _seen(place, matrix) + shift1)
        g, slope2 = silu_and_slope(self.mid_weight @ (h * gain1) + shift2)
        velocity, rate = self._moves(self.out_weight @ (g * gain2) + offset)
        # (units, moves, n): how hidden units change along each move.
        tangent = _product(self.in_weight, self._moved(matrix)) * (slope1 * gain1)[:, None]
        tangent = _product(self.mid_weight, tangent) * (slope2 * gain2)[:, None]
        divergence = torch.einsum("ah,han->n", self.out_weight, tangent)
        spin = multiply(turn.movedim(1, 0), torch.cat([torch.zeros_like(rate[:, :1]), rate], 1).movedim(1, 0)).movedim(0, 1)
        return torch.cat([velocity, 0.5 * spin], 1).flatten(0, 1), divergence

    def _moved(self, matrix: Tensor) -> Tensor:
        """Derivative of what the network sees along each move, ``(seen, moves, n)``: places along axes, matrices along turns."""
        bodies, places, n = self.bodies, self.places, matrix.shape[-1]
        out = matrix.new_zeros(bodies, places + 9, bodies, places + 3, n)
        # d(R)/d(turn about own axis a) = R times the cross product with a: column b of R [a]x.
        turned = torch.einsum("ijbn,jka->ikabn", matrix, CROSS.to(matrix))
        for b in range(bodies):
            for i in range(places):
                out[b, i, b, i] = 1.0
            out[b, places:, b, places:] = turned[:, :, :, b].flatten(0, 1)
        return out.flatten(2, 3).flatten(0, 1)

    def _moves(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        each = flat.unflatten(0, (self.bodies, self.places + 3))
        return each[:, : self.places], each[:, self.places :]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        each = x.unflatten(0, (self.bodies, self.width))
        return each[:, : self.places], each[:, self.places :]

    # --- The map -----------------------------------------------------------------------------------------------------------

    def scaled(self, x: Tensor) -> Tensor:
        """Rows with positions in units of ``length`` and quaternions of length one."""
        place, turn = self._split(x.mT)
        norm = turn.square().sum(1, keepdim=True).sqrt()
        if not transforms_active() and bool(((norm - 1).abs() > _UNIT).any()):
            raise ValueError(
                f"Expected unit quaternions; got lengths from {float(norm.min()):.4g} to {float(norm.max()):.4g}. Rows are "
                f"{'x, y, z, ' if self.places else ''}qw, qx, qy, qz a body: divide each quaternion by its length."
            )
        return torch.cat([place / self.length, turn / norm], 1).flatten(0, 1).mT

    def forward_and_log_det(self, x, context=None):
        return self.forward_with_error(x, context)[:2]

    def forward_with_error(self, x, context=None):
        z, log_det, error = self._map(self.scaled(x), 1.0, 0.0)
        return z, log_det - self._log_length, error

    def inverse_and_log_det(self, z, context=None):
        x, log_det, _ = self._map(z, 0.0, 1.0)
        place, turn = self._split(x.mT)
        return torch.cat([self.length * place, turn], 1).flatten(0, 1).mT, log_det + self._log_length

    def unit(self, z: Tensor) -> Tensor:
        """Latent rows with quaternions of length one: as they are."""
        return z

    @property
    def _log_length(self) -> float:
        return self.bodies * self.places * math.log(self.length)

    def _map(self, x: Tensor, start: float, end: float) -> tuple[Tensor, Tensor, Tensor]:
        solution = self._solution(x, start, end)
        end_row, log_det = solution.state
        place, turn = self._split(end_row)
        turn = turn / turn.square().sum(1, keepdim=True).sqrt()
        return torch.cat([place, turn], 1).flatten(0, 1).mT, log_det, solution.error


class FreeRigid(Bijection):
    """The same flow of quaternions of any length, which it keeps: their directions are rotations.

    Where a unit quaternion has the density f, one of length r has f times a density of lengths, which the flow leaves as the base has it.

    Parameters
    ----------
    rigid : RigidContinuous
        With positions.
    """

    def __init__(self, rigid: RigidContinuous):
        super().__init__()
        self.rigid, self.rows_at_once = rigid, rigid.rows_at_once

    def rates(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """As of the flow inside, at rows of unit quaternions."""
        return self.rigid.rates(t, x)

    def unit(self, z: Tensor) -> Tensor:
        """Latent rows with quaternions of length one."""
        return self._stretched(z, self._lengths(z).reciprocal())

    def scaled(self, x: Tensor) -> Tensor:
        """Rows with positions in units of the flow's length and quaternions of length one."""
        return self.rigid.scaled(self.unit(x))

    def forward_and_log_det(self, x, context=None):
        return self.forward_with_error(x, context)[:2]

    def forward_with_error(self, x, context=None):
        z, log_det, error = self.rigid.forward_with_error(self.unit(x))
        return self._stretched(z, self._lengths(x)), log_det, error

    def inverse_and_log_det(self, z, context=None):
        x, log_det = self.rigid.inverse_and_log_det(self.unit(z))
        return self._stretched(x, self._lengths(z)), log_det

    def _lengths(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.rigid.bodies, 7))[..., 3:].norm(dim=-1, keepdim=True)

    def _stretched(self, x: Tensor, factor: Tensor) -> Tensor:
        place, turn = x.unflatten(1, (self.rigid.bodies, 7)).split([3, 4], -1)
        return torch.cat([place, factor * turn], -1).flatten(1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.rigid._split(x)


def _seen(place: Tensor, matrix: Tensor) -> Tensor:
    """``(bodies, 0 or 3, n)`` and ``(3, 3, bodies, n)`` to ``(seen, n)``."""
    return torch.cat([place, matrix.flatten(0, 1).movedim(0, 1)], 1).flatten(0, 1)


def _product(weight: Tensor, tangent: Tensor) -> Tensor:
    return (weight @ tangent.flatten(1)).unflatten(1, tangent.shape[1:])
