"""A continuous flow on a product of spheres, circles, rotations, boxes and lines, with an exact divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from sbi_flows.bijections.framed import Framed
from sbi_flows.bijections.manifolds import Factor
from sbi_flows.bijections.velocity import silu_and_slope
from sbi_flows.nn import transforms_active


class ManifoldContinuous(Framed):
    """The flow of points from data at t = 1 to noise at t = 0; rows are the columns of the factors, one after another.

    A network of two hidden layers sees each point as its factor shows it and gives the numbers of its frame. Derivatives along the moves go
    through it as tangents, one a move.

    Parameters
    ----------
    factors : sequence of Factor
    hidden : (int, int)
    steps : int
        Of the integration, each of 11 evaluations.
    tolerance : float or None
        Rows whose error of the log-density is above it, in nats, get more steps.
    generator : torch.Generator, optional

    References
    ----------
    Chen & Lipman 2024, "Flow matching on general geometries", arXiv:2302.03660; Mathieu & Nickel 2020, "Riemannian continuous normalizing
    flows", arXiv:2006.10605.
    """

    def __init__(
        self,
        factors: Sequence[Factor],
        *,
        hidden: Sequence[int] = (128, 128),
        steps: int = 8,
        tolerance: float | None = 1e-3,
        generator: torch.Generator | None = None,
    ):
        super().__init__(steps, tolerance)
        self.factors = tuple(factors)
        self.columns = [part.columns for part in self.factors]
        self.moves = [part.moves for part in self.factors]
        self.features = sum(self.columns)
        seen, moves = sum(part.seen for part in self.factors), sum(self.moves)
        self._start_network(seen, moves, hidden, generator)

    # --- The field ---------------------------------------------------------------------------------------------------------

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """``(n, features)`` at times ``t`` () or (n,) and points ``x (n, features)``: tangent, in the columns of x."""
        shift1, gain1, shift2, gain2, offset = self._parts(self._modulation(t.to(x)))
        parts = self.split(x.mT)
        h = silu(self.in_weight @ self._seen(parts) + shift1) * gain1
        h = silu(self.mid_weight @ h + shift2) * gain2
        return self._velocity(parts, self.out_weight @ h + offset).mT

    def _slope(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivative of ``x (features, n)`` and the divergence ``(n,)``."""
        shift1, gain1, shift2, gain2, offset = self._parts(self._modulation(torch.tensor(t, dtype=x.dtype, device=x.device)))
        parts = self.split(x)
        h, slope1 = silu_and_slope(self.in_weight @ self._seen(parts) + shift1)
        g, slope2 = silu_and_slope(self.mid_weight @ (h * gain1) + shift2)
        u = self.out_weight @ (g * gain2) + offset
        divergence = u.new_zeros(u.shape[-1])
        into = self.in_weight.split([part.seen for part in self.factors], 1)
        outof = self.out_weight.split(self.moves)
        own = u.split(self.moves)
        for i, part in enumerate(self.factors):
            # (units, moves, n): how hidden units change along each move of this factor.
            tangent = torch.einsum("hs,smn->hmn", into[i], part.seen_along(parts[i])) * (slope1 * gain1)[:, None]
            tangent = torch.einsum("gh,hmn->gmn", self.mid_weight, tangent) * (slope2 * gain2)[:, None]
            divergence = divergence + torch.einsum("mg,gmn->n", outof[i], tangent)
            divergence = divergence + (own[i] * part.frame_divergence(parts[i])).sum(0)
        return self._velocity(parts, u), divergence

    def split(self, x: Tensor) -> list[Tensor]:
        """``(features, n)`` by factor."""
        return list(x.split(self.columns))

    def _seen(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([part.seen_of(x) for part, x in zip(self.factors, parts, strict=True)])

    def _velocity(self, parts: list[Tensor], u: Tensor) -> Tensor:
        each = zip(self.factors, parts, u.split(self.moves), strict=True)
        return torch.cat([part.velocity(x, own) for part, x, own in each])

    # --- The map -----------------------------------------------------------------------------------------------------------

    def path(self, start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Shortest paths from ``start (n, features)`` to ``end`` at times ``t (n,)``: points and velocities, ``(n, features)`` each."""
        both = zip(self.factors, self.split(start.mT), self.split(end.mT), strict=True)
        points, velocities = zip(*(part.path(a, b, t) for part, a, b in both), strict=True)
        return torch.cat(points).mT, torch.cat(velocities).mT

    def settled(self, x: Tensor) -> Tensor:
        """Rows ``(n, features)`` exactly on the manifold."""
        return torch.cat([part.settled(own) for part, own in zip(self.factors, self.split(x.mT), strict=True)]).mT

    def outside(self, x: Tensor) -> Tensor:
        """Which rows are beyond a wall, ``(n,)``; ``ValueError`` where numbers are no points of the manifold at all."""
        parts = self.split(x.mT)
        if not transforms_active():
            for part, own in zip(self.factors, parts, strict=True):
                told = part.off(own)
                if told is not None:
                    raise ValueError(f"Expected {told}. Divide each by its length.")
        return torch.stack([part.outside(own) for part, own in zip(self.factors, parts, strict=True)]).any(0)

    def forward_and_log_det(self, x, context=None):
        return self.forward_with_error(x, context)[:2]

    def forward_with_error(self, x, context=None):
        outside = self.outside(x)
        z, log_det, error = self._map(self.settled(x), 1.0, 0.0)
        return z, torch.where(outside, -math.inf, log_det), error

    def inverse_and_log_det(self, z, context=None):
        return self._map(z, 0.0, 1.0)[:2]

    def _map(self, x: Tensor, start: float, end: float) -> tuple[Tensor, Tensor, Tensor]:
        solution = self._solution(x, start, end)
        end_row, log_det = solution.state
        return self.settled(end_row.mT), log_det, solution.error
