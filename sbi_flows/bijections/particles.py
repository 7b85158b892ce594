"""A velocity of alike particles that knows neither place, direction nor order, with an exact and cheap divergence.

Particle i sees its surroundings through ``rho_k = sum_j f_k(r_ij)``, the vectors ``V_k = sum_j f_k(r_ij) (x_i - x_j)`` and inner products
of these; a network of the invariants gives gains, and ``v_i = sum_k gain_k V_k``. What particle i does depends on its own place through
its own surroundings alone, so the divergence needs, for each particle, only the derivatives along its own few directions: ``d`` tangents
through the network of a particle, whatever their number, in closed form. The radial functions are trained, as is everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sbi_flows._validation import positive
from sbi_flows.bijections.between_particles import SOFT, BetweenParticles, NoConditions
from sbi_flows.bijections.modulated import normal_parameter, two_layers
from sbi_flows.bijections.velocity import silu_and_slope


class Surroundings(NamedTuple):
    """What particles see, each with its batch last.

    Attributes
    ----------
    density : Tensor (particles, k, n)
        ``rho``.
    pull : Tensor (particles, k, d, n)
        ``V``.
    """

    density: Tensor
    pull: Tensor


class ParticleNet(BetweenParticles):
    """``(t, y)`` to a velocity of the mean-free coordinates ``y`` of particles, equivariant under rotations, reflections and permutations.

    It has the methods of :class:`sbi_flows.bijections.velocity.VelocityNet` that :class:`sbi_flows.bijections.continuous.Continuous` calls.

    Parameters
    ----------
    particles, dimensions : int
    radial : int
        Radial functions.
    products : int
        Inner products of vectors that a particle's network sees.
    hidden : (int, int)
        Widths of the network of a particle.
    embedding : int
        Width of the embedding of time.
    generator : torch.Generator, optional

    Examples
    --------
    >>> net = ParticleNet(4, 2, radial=8, hidden=(16, 16))
    >>> net(torch.tensor(0.5), torch.zeros(6, 10), net.conditions(None)).shape
    torch.Size([6, 10])

    References
    ----------
    Koehler, Klein & Noe 2020, arXiv:2006.02425 (radial velocities with a closed divergence); Satorras, Hoogeboom, Fuchs, Posner & Welling
    2021, "E(n) equivariant normalizing flows", arXiv:2105.09016.
    """

    unsigned: Tensor
    # Tangents of all particles are many numbers a row: more rows would leave the cache (13 particles: 2.5 times as slow at 2048).
    rows_at_once = 128

    def __init__(
        self,
        particles: int,
        dimensions: int,
        *,
        radial: int = 32,
        products: int = 16,
        hidden: Sequence[int] = (128, 128),
        embedding: int = 64,
        generator: torch.Generator | None = None,
    ):
        for name, value in (("dimensions", dimensions), ("radial", radial), ("products", products)):
            positive(name, value, integer=True)
        super().__init__(particles, dimensions, radial)
        self.hidden = two_layers(hidden)

        def normal(*shape: int, fan_in: int) -> nn.Parameter:
            return normal_parameter(*shape, fan_in=fan_in, generator=generator)

        self.register_buffer("unsigned", self.signed.abs(), persistent=False)
        first, second = self.hidden
        # The last function is constant: of everything, at any distance.
        self.left = normal(products, radial + 1, fan_in=radial + 1)
        self.right = normal(products, radial + 1, fan_in=radial + 1)
        self.in_weight = normal(first, radial + products, fan_in=radial + products)
        self.mid_weight = normal(second, first, fan_in=first)
        self.out_weight = nn.Parameter(torch.zeros(radial + 1, second))
        self._start_modulation(self.hidden, radial + 1, embedding, generator)

    # --- What Continuous calls ---------------------------------------------------------------------------------------------

    def forward(self, t: Tensor, x: Tensor, conditions: NoConditions) -> Tensor:
        """``t`` () or (n,), ``y (d, n)`` to ``(d, n)``."""
        apart, square = self._pairs(x)
        seen = self._seen(apart, self._radial(square)[0])
        shift1, gain1, shift2, gain2, offset = self._parts(self._modulation(t))
        h = silu(self._mix(self.in_weight, self._inputs(seen)) + shift1) * gain1
        h = silu(self._mix(self.mid_weight, h) + shift2) * gain2
        return self._out(self._mix(self.out_weight, h) + offset, seen)

    def with_divergence(
        self, modulation: Tensor, x: Tensor, conditions: NoConditions, factor: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """The same, and ``factor`` times the sum over columns of ``dv_j/dy_j``, ``(n,)``."""
        apart, square = self._pairs(x)
        value, slope = self._radial(square)
        seen, change = self._seen(apart, value), self._changes(apart, square, value, slope)
        shift1, gain1, shift2, gain2, offset = self._parts(modulation)
        h, slope1 = silu_and_slope(self._mix(self.in_weight, self._inputs(seen)) + shift1)
        g, slope2 = silu_and_slope(self._mix(self.mid_weight, h * gain1) + shift2)
        gain = self._mix(self.out_weight, g * gain2) + offset
        # One tangent for each direction of a particle's own motion: (particles, units, d, n).
        tangent = self._tangents(self.in_weight, self._input_changes(seen, change)) * (slope1 * gain1)[:, :, None]
        tangent = self._tangents(self.mid_weight, tangent) * (slope2 * gain2)[:, :, None]
        gain_change = self._tangents(self.out_weight, tangent)
        own = change.pull.diagonal(dim1=2, dim2=3).sum(-1)
        divergence = (gain * own).sum((0, 1)) + (gain_change * seen.pull).sum((0, 1, 2))
        return self._out(gain, seen), factor * divergence

    # --- Parts -------------------------------------------------------------------------------------------------------------

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Differences ``(pairs, d, n)`` and softened squared distances ``(pairs, 1, n)``."""
        apart = self._differences(x)
        return apart, apart.square().sum(1, keepdim=True) + SOFT**2

    def _radial(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(pairs, k, n)`` and derivatives with respect to the distance, over the distance; the constant comes last."""
        distance = square.sqrt()
        inverse = torch.exp(-self.log_widths)
        off = (distance - self.centres) * inverse
        value = torch.exp(-0.5 * off.square())
        return torch.cat([value, torch.ones_like(distance)], 1), -value * off * inverse / distance

    def _seen(self, apart: Tensor, value: Tensor) -> Surroundings:
        pull = _gathered(self.signed, value[:, :, None] * apart[:, None])
        return Surroundings(_gathered(self.unsigned, value[:, :-1]), pull)

    def _changes(self, apart: Tensor, square: Tensor, value: Tensor, slope: Tensor) -> Surroundings:
        """Derivatives of what a particle sees along its own motion: ``(particles, k, d, n)`` and ``(particles, k, d, d, n)``."""
        density = _gathered(self.signed, slope[:, :, None] * apart[:, None])
        stretch = slope[:, :, None, None] * (apart[:, :, None] * apart[:, None])[:, None]
        eye = torch.eye(self.dimensions, dtype=value.dtype, device=value.device)[..., None]
        shear = torch.cat([stretch, torch.zeros_like(stretch[:, :1])], 1)
        return Surroundings(density, _gathered(self.unsigned, shear) + _gathered(self.unsigned, value)[:, :, None, None] * eye)

    def _inputs(self, seen: Surroundings) -> Tensor:
        product = (self._tangents(self.left, seen.pull) * self._tangents(self.right, seen.pull)).sum(2)
        # Their logarithm, for large ones: a gain that grew as the square of distances would throw far particles to infinity.
        return torch.cat([seen.density, torch.asinh(product)], 1)

    def _input_changes(self, seen: Surroundings, change: Surroundings) -> Tensor:
        left, right = self._tangents(self.left, seen.pull), self._tangents(self.right, seen.pull)
        moved_left, moved_right = self._tangents(self.left, change.pull), self._tangents(self.right, change.pull)
        product = (left * right).sum(2, keepdim=True)
        change_of_product = (moved_left * right[:, :, None] + moved_right * left[:, :, None]).sum(3)
        return torch.cat([change.density, change_of_product * (1 + product.square()).rsqrt()], 1)

    def _out(self, gain: Tensor, seen: Surroundings) -> Tensor:
        return self._mean_free((gain[:, :, None] * seen.pull).sum(1))

    @staticmethod
    def _mix(weight: Tensor, units: Tensor) -> Tensor:
        """``(a, b)`` and ``(particles, b, n)`` to ``(particles, a, n)``."""
        return weight @ units

    @staticmethod
    def _tangents(weight: Tensor, units: Tensor) -> Tensor:
        """``(a, b)`` and ``(particles, b, ..., n)`` to ``(particles, a, ..., n)``."""
        return (weight @ units.flatten(2)).unflatten(2, units.shape[2:])


def _gathered(incidence: Tensor, on_pairs: Tensor) -> Tensor:
    """Sums over the pairs of each particle: ``(particles, pairs)`` and ``(pairs, ...)`` to ``(particles, ...)``."""
    return (incidence @ on_pairs.flatten(1)).unflatten(1, on_pairs.shape[1:])
