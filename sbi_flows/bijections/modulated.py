"""What networks share whose units are shifted and scaled by functions of time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sbi_flows._random import randn
from sbi_flows.bijections.velocity import TIME_FEATURES, time_features


class TimeModulated(nn.Module):
    """Base of :class:`sbi_flows.bijections.between_particles.BetweenParticles` and :class:`sbi_flows.bijections.framed.Framed`."""

    _sizes: list[int]

    def _start_modulation(self, hidden: tuple[int, ...], outputs: int, embedding: int, generator: torch.Generator | None) -> None:
        """Parameters of a shift and a gain of each hidden unit, and of an offset of each output, which starts at zero."""
        self._sizes = [width for width in hidden for _ in ("shift", "gain")] + [outputs]
        self.time_weight = normal_parameter(embedding, TIME_FEATURES, fan_in=TIME_FEATURES, generator=generator)
        self.time_bias = nn.Parameter(torch.zeros(embedding, 1))
        self.film_weight = normal_parameter(sum(self._sizes), embedding, fan_in=embedding, generator=generator)
        self.film_bias = nn.Parameter(torch.zeros(sum(self._sizes), 1))
        with torch.no_grad():
            self.film_weight[-outputs:] = 0

    def _modulation(self, t: Tensor) -> Tensor:
        """At times ``t`` () or (k,), all shifts, gains and offsets, ``(units, 1)`` or ``(units, k)``."""
        embedded = silu(torch.addmm(self.time_bias, self.time_weight, time_features(t)))
        return torch.addmm(self.film_bias, self.film_weight, embedded)

    def _parts(self, modulation: Tensor) -> list[Tensor]:
        """Shift and gain of the first layer, of the second and so on, and the offset."""
        *parts, offset = modulation.split(self._sizes)
        return [1 + part if k % 2 else part for k, part in enumerate(parts)] + [offset]


def two_layers(hidden: Sequence[int]) -> tuple[int, int]:
    """Two widths, checked."""
    if len(hidden) != 2 or min(hidden) < 1:
        raise ValueError(f"Expected two hidden layers, of positive width, such as hidden=(128, 128); got {tuple(hidden)}.")
    first, second = hidden
    return first, second


def normal_parameter(*shape: int, fan_in: int, generator: torch.Generator | None) -> nn.Parameter:
    """Normal numbers of variance ``1 / fan_in``."""
    return nn.Parameter(randn(shape, generator, dtype=torch.get_default_dtype(), device="cpu") / math.sqrt(fan_in))
