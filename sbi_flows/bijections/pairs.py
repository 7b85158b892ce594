"""A velocity of few alike particles, from networks of their pairs: it sees the whole configuration.

Every pair of particles has features, which layers update from those of the pairs it meets at a particle and from triangles: ``sum_k p_ik
p_jk`` over all third particles k. At the end a pair pulls its two particles together or apart, ``v_i = sum_j gain_ij (x_i - x_j)``.
A gain depends on all distances, so the divergence takes one tangent a column; with few particles that is little. Values and tangents
go through the layers together: axis 2 of every array below has the value first and the tangents after it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sbi_flows._validation import positive
from sbi_flows.bijections.between_particles import SOFT, BetweenParticles, NoConditions
from sbi_flows.bijections.modulated import normal_parameter
from sbi_flows.bijections.velocity import silu_and_slope

_NUMBERS_AT_ONCE = 2**19  # features of pairs and their tangents: more would leave the cache
_LEAST_ROWS = 8
_OVERLAP = 4  # radial functions that a distance sees


class PairNet(BetweenParticles):
    """``(t, y)`` to a velocity of the mean-free coordinates ``y`` of particles, equivariant under rotations, reflections and permutations.

    Its parameters are not bound to the number of particles. It has the methods of :class:`sbi_flows.bijections.velocity.VelocityNet` that
    :class:`sbi_flows.bijections.continuous.Continuous` calls.

    Parameters
    ----------
    particles, dimensions : int
    radial : int
        Radial functions of a distance.
    width : int
        Features of a pair.
    layers : int
    triangles : int
        Features of a pair that are multiplied around triangles.
    embedding : int
        Width of the embedding of time.
    generator : torch.Generator, optional

    Examples
    --------
    >>> net = PairNet(4, 2, radial=8, width=16, layers=1)
    >>> net(torch.tensor(0.5), torch.zeros(6, 10), net.conditions(None)).shape
    torch.Size([6, 10])

    References
    ----------
    Maron, Ben-Hamu, Serviansky & Lipman 2019, "Provably powerful graph networks", arXiv:1905.11136 (products over third nodes);
    Satorras, Hoogeboom, Fuchs, Posner & Welling 2021, "E(n) equivariant normalizing flows", arXiv:2105.09016.
    """

    ends: Tensor
    _left: Tensor
    _right: Tensor

    def __init__(
        self,
        particles: int,
        dimensions: int,
        *,
        radial: int = 32,
        width: int = 64,
        layers: int = 3,
        triangles: int = 32,
        embedding: int = 64,
        generator: torch.Generator | None = None,
    ):
        counts = {"dimensions": dimensions, "radial": radial, "width": width, "layers": layers, "triangles": triangles}
        for name, value in counts.items():
            positive(name, value, integer=True)
        super().__init__(particles, dimensions, radial)
        self.layers = layers
        self._place_triangles()
        self.rows_at_once = max(_LEAST_ROWS, _NUMBERS_AT_ONCE // (width * len(self._first) * (self.features + 1)))

        def normal(*shape: int, fan_in: int) -> nn.Parameter:
            return normal_parameter(*shape, fan_in=fan_in, generator=generator)

        # The last radial function is the logarithm of the distance: particles far away are seen too.
        self.in_weight = normal(width, radial + 1, fan_in=_OVERLAP)
        self.own_weight = normal(layers, width, width, fan_in=width)
        self.meeting_weight = normal(layers, width, width, fan_in=width)
        self.factor_weight = normal(layers, triangles, width, fan_in=width)
        self.triangle_weight = normal(layers, width, triangles, fan_in=triangles)
        self.back_weight = normal(layers, width, width, fan_in=width)
        self.out_weight = nn.Parameter(torch.zeros(1, width))
        self._start_modulation((width,) * (layers + 1), 1, embedding, generator)

    def _place_triangles(self) -> None:
        """Which pairs meet at a particle, and which make a triangle with a pair."""
        n, first, second = self.particles, self._first, self._second
        number = torch.zeros(n, n, dtype=torch.long)
        number[first, second] = number[second, first] = torch.arange(len(first))
        others = torch.tensor([[k for k in range(n) if k not in pair] for pair in zip(first.tolist(), second.tolist(), strict=True)])
        others = others.long().reshape(len(first), n - 2)
        # Of triangle (i, j, k): the pairs (i, k) and (j, k).
        self.register_buffer("_left", number[first[:, None], others].flatten(), persistent=False)
        self.register_buffer("_right", number[second[:, None], others].flatten(), persistent=False)
        self.register_buffer("ends", self.signed.abs() / math.sqrt(2), persistent=False)

    # --- What Continuous calls ---------------------------------------------------------------------------------------------

    def forward(self, t: Tensor, x: Tensor, conditions: NoConditions) -> Tensor:
        """``t`` () or (n,), ``y (d, n)`` to ``(d, n)``."""
        return self._velocity(self._modulation(t), self._apart(x))[:, 0]

    def with_divergence(
        self, modulation: Tensor, x: Tensor, conditions: NoConditions, factor: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """The same, and ``factor`` times the sum over columns of ``dv_j/dy_j``, ``(n,)``."""
        directions = torch.eye(self.features, dtype=x.dtype, device=x.device)
        moves = self._apart(directions)[:, :, 0, :, None].expand(-1, -1, -1, x.shape[1])
        velocity = self._velocity(modulation, torch.cat([self._apart(x), moves], 2))
        return velocity[:, 0], factor * velocity[:, 1:].diagonal(dim1=0, dim2=1).sum(-1)

    # --- Parts -------------------------------------------------------------------------------------------------------------

    def _apart(self, x: Tensor) -> Tensor:
        """Differences of all pairs, ``(dimensions, pairs, 1, n)``, linear in ``y (d, n)``."""
        return self._differences(x).transpose(0, 1)[:, :, None]

    def _velocity(self, modulation: Tensor, apart: Tensor) -> Tensor:
        """Velocity and its change along the tangents of ``apart``: ``(d, 1 + tangents, n)``."""
        *parts, offset = self._parts(modulation)
        units = self._unit(self._mix(self.in_weight, self._radial(apart)), parts[0], parts[1])
        for k in range(self.layers):
            news = self._mix(self.own_weight[k], units) + self._meetings(self.meeting_weight[k], units)
            news = news + self._mix(self.triangle_weight[k], self._triangles(self._mix(self.factor_weight[k], units)))
            units = units + self._mix(self.back_weight[k], self._unit(news, parts[2 * k + 2], parts[2 * k + 3]))
        gain = self._mix(self.out_weight, units)
        gain = torch.cat([gain[:, :, :1] + offset, gain[:, :, 1:]], 2)
        pull = torch.tensordot(self.signed, _product(gain, apart), ([1], [1]))
        return self._mean_free(pull)

    def _radial(self, apart: Tensor) -> Tensor:
        """What is seen of distances, ``(radial + 1, pairs, 1 + tangents, n)``."""
        here = apart[:, :, :1]
        distance = (here.square().sum(0, keepdim=True) + SOFT**2).sqrt()
        inverse, centres = torch.exp(-self.log_widths)[..., None, None], self.centres[..., None, None]
        off = (distance - centres) * inverse
        value = torch.exp(-0.5 * off.square())
        seen = torch.cat([value, distance.log()])
        if apart.shape[2] == 1:
            return seen
        change = (here * apart[:, :, 1:]).sum(0, keepdim=True) / distance
        return torch.cat([seen, torch.cat([-value * off * inverse, 1 / distance]) * change], 2)

    def _meetings(self, weight: Tensor, units: Tensor) -> Tensor:
        """Sums over the pairs of either particle of a pair."""
        at_particles = self._mix(weight, (self.ends @ units.flatten(2)).unflatten(2, units.shape[2:]))
        return at_particles[:, self._first] + at_particles[:, self._second]

    def _triangles(self, factors: Tensor) -> Tensor:
        """Sums over third particles of products along the two other sides."""
        products = _product(factors[:, self._left], factors[:, self._right])
        return products.unflatten(1, (factors.shape[1], -1)).sum(2) / math.sqrt(max(self.particles - 2, 1))

    @staticmethod
    def _unit(before: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
        """SiLU of the value, shifted and scaled by what time says, and the tangents after it."""
        shift, gain = shift[:, None, None], gain[:, None, None]
        if before.shape[2] == 1:
            return silu(before + shift) * gain
        value, slope = silu_and_slope(before[:, :, :1] + shift)
        return torch.cat([value, slope * before[:, :, 1:]], 2) * gain

    @staticmethod
    def _mix(weight: Tensor, units: Tensor) -> Tensor:
        """``(a, b)`` and ``(b, ..., n)`` to ``(a, ..., n)``."""
        return (weight @ units.flatten(1)).unflatten(1, units.shape[1:])


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of values, and the tangents of the product."""
    here, there = a[:, :, :1], b[:, :, :1]
    if a.shape[2] == 1:
        return here * there
    return torch.cat([here * there, here * b[:, :, 1:] + there * a[:, :, 1:]], 2)
