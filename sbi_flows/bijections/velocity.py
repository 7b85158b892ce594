"""A network for velocities whose divergence is exact at a cost that does not grow with the dimension.

A block of two hidden layers, ``v = W3 s(W2 s(W1 x + a) + b)``, has the divergence ``s2' [W2 o (W1 W3)^T] s1'`` with ``s1', s2'`` the
derivatives at the two layers: one more product of the size of ``W2``, whatever the dimension. A sum of blocks stays exact; time and
context enter through shifts and gains of the hidden layers, which may be any network of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sbi_flows._random import rand, randn
from sbi_flows.nn import ResidualNet

_TIME_WAVES = 3
TIME_FEATURES = 2 + 2 * _TIME_WAVES


class Conditions(NamedTuple):
    """What one solve needs that changes neither with time nor with x.

    Attributes
    ----------
    context : Tensor (e, n), (e, 1) or None
    in_weight : Tensor (blocks * h1, d)
    real, circular : Tensor (blocks, h2, h1) or None
        ``W2 o (W1 W3)^T`` of the real and of the circular columns.
    """

    context: Tensor | None
    in_weight: Tensor
    real: Tensor | None
    circular: Tensor | None

    def rows(self, rows: Tensor | None) -> Conditions:
        """The same for some rows of the batch."""
        if rows is None or self.context is None or self.context.shape[-1] == 1:
            return self
        return self._replace(context=self.context.index_select(-1, rows))


class VelocityField(Protocol):
    """What :class:`sbi_flows.bijections.continuous.Continuous` asks of a network; see the methods of :class:`VelocityNet`."""

    features: int
    is_real: Tensor
    rows_at_once: int

    def conditions(self, context: Tensor | None, divergence: bool = False) -> Any: ...

    def modulations(self, t: Tensor, conditions: Any) -> Callable[[int], Tensor]: ...

    def with_divergence(self, modulation: Tensor, x: Tensor, conditions: Any, factor: Tensor | float) -> tuple[Tensor, Tensor]: ...

    def __call__(self, t: Tensor, x: Tensor, conditions: Any) -> Tensor: ...


class VelocityNet(nn.Module):
    """``(t, x, context)`` to one number a column, with the exact divergence.

    Angles enter by units ``sin(k . x + phase)`` with fixed whole frequencies k, so the field is one on the torus; other columns by SiLU
    units. Besides the blocks there is an affine term, ``slope(t, c) x + offset(t, c)``. It starts at zero.

    Parameters
    ----------
    features, context : int
    blocks : int
    hidden : (int, int)
        Widths of the two hidden layers of a block.
    circular : sequence of int
        The columns that are angles.
    embedding : int
        Width of the joint embedding of time and context.
    generator : torch.Generator, optional

    Examples
    --------
    >>> net = VelocityNet(3, blocks=2, hidden=(8, 8))
    >>> net(torch.tensor(0.5), torch.zeros(3, 10), net.conditions(None)).shape
    torch.Size([3, 10])
    """

    frequencies: Tensor
    in_mask: Tensor
    is_real: Tensor
    rows_at_once = 2048

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        blocks: int = 2,
        hidden: Sequence[int] = (128, 128),
        circular: Sequence[int] = (),
        embedding: int = 64,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if len(hidden) != 2 or min(hidden) < 1:
            raise ValueError(f"Expected two hidden layers, of positive width, such as hidden=(128, 128); got {tuple(hidden)}.")
        self.features, self.blocks = features, blocks
        first, second = self.hidden = tuple(hidden)
        n_real = features - len(circular)
        # Units for angles come last in each block.
        self.waves = 0 if not circular else first if not n_real else max(first // 2, 1)

        def normal(*shape: int, fan_in: int) -> nn.Parameter:
            values = randn(shape, generator, dtype=torch.get_default_dtype(), device="cpu")
            return nn.Parameter(values / math.sqrt(fan_in))

        is_real = torch.ones(features, 1)
        is_real[list(circular)] = 0
        is_wave = (torch.arange(blocks * first) % first >= first - self.waves)[:, None]
        self.register_buffer("is_real", is_real, persistent=False)
        self.register_buffer("in_mask", is_real.mT * ~is_wave, persistent=False)
        self.register_buffer("frequencies", _frequencies(blocks * first, features, circular, generator) * is_wave)
        self.in_weight = normal(blocks * first, features, fan_in=max(n_real, 1)) if n_real else None
        self.mid_weight = normal(blocks, second, first, fan_in=first)
        self.out_weight = nn.Parameter(torch.zeros(features, blocks * second))
        self.time_weight = normal(embedding, TIME_FEATURES, fan_in=TIME_FEATURES)
        self.time_bias = nn.Parameter(torch.zeros(embedding, 1))
        self.time_out = normal(embedding, embedding, fan_in=embedding)
        self.context_net = ResidualNet(0, embedding, (first, first), context, generator) if context else None
        # Shift and gain of each hidden unit, then slope and offset of each column.
        self._sizes = [blocks * first, blocks * first, blocks * second, blocks * second, features, features]
        units = 2 * blocks * (first + second)
        self.film_weight = normal(units + 2 * features, embedding, fan_in=embedding)
        self.film_bias = nn.Parameter(torch.zeros(units + 2 * features, 1))
        with torch.no_grad():
            self.film_weight[units:] = 0
            shifts = randn((blocks * first, 1), generator, dtype=torch.get_default_dtype(), device="cpu")
            # A wave's phase may be anything; a SiLU unit bends within the data.
            self.film_bias[: blocks * first] = torch.where(is_wave, math.pi * shifts, shifts)

    def conditions(self, context: Tensor | None, divergence: bool = False) -> Conditions:
        """Prepare for many calls with one context, ``(n, c)``, ``(1, c)`` or None."""
        embedded = None
        if self.context_net is not None and context is not None:
            given = context.mT
            embedded = self.context_net(given[:0], given)
        weight = self.frequencies if self.in_weight is None else torch.addcmul(self.frequencies, self.in_weight, self.in_mask)
        if not divergence:
            return Conditions(embedded, weight, None, None)
        into = weight.view(self.blocks, self.hidden[0], self.features).mT
        out = self.out_weight.view(self.features, self.blocks, self.hidden[1]).permute(1, 2, 0)
        real = self.mid_weight * (out @ (into * self.is_real)) if self.in_weight is not None else None
        circular = self.mid_weight * (out @ (into * (1 - self.is_real))) if self.waves else None
        return Conditions(embedded, weight, real, circular)

    def forward(self, t: Tensor, x: Tensor, conditions: Conditions) -> Tensor:
        """``t`` () or (n,), ``x (d, n)`` to ``(d, n)``."""
        shift1, gain1, shift2, gain2, slope, offset = self._parts(self._modulation(self.embed_times(t), conditions))
        first = self._split(shift1 + conditions.in_weight @ x)
        h = torch.cat([silu(first[0]), torch.sin(first[1])], dim=1) if self.waves else silu(first[0])
        second = shift2 + self._mix(self.mid_weight, h * self._units(gain1, 0))
        return torch.addmm(offset, self.out_weight, silu(second) * gain2) + slope * x

    def with_divergence(self, modulation: Tensor, x: Tensor, conditions: Conditions, factor: Tensor | float) -> tuple[Tensor, Tensor]:
        """The same, and the sum over columns of ``dv_j/dx_j``, ``(n,)``, real columns counted ``factor`` times.

        ``modulation`` is what :meth:`modulations` gives for the time.
        """
        shift1, gain1, shift2, gain2, slope, offset = self._parts(modulation)
        first = self._split(shift1 + conditions.in_weight @ x)
        h, h_slope = silu_and_slope(first[0])
        if self.waves:
            h = torch.cat([h, torch.sin(first[1])], dim=1)
            h_slope = torch.cat([h_slope, torch.cos(first[1])], dim=1)
        gain = self._units(gain1, 0)
        second = shift2 + self._mix(self.mid_weight, h * gain)
        g, g_slope = silu_and_slope(second)
        products = [m for m in (None if conditions.real is None else factor * conditions.real, conditions.circular) if m is not None]
        jacobian = self._mix(products[0] if len(products) == 1 else products[0] + products[1], h_slope * gain)
        divergence = (g_slope * gain2 * jacobian).sum(0) + factor * slope.sum(0)
        return torch.addmm(offset, self.out_weight, g * gain2) + slope * x, divergence

    def modulations(self, t: Tensor, conditions: Conditions) -> Callable[[int], Tensor]:
        """For times ``t (k,)`` known beforehand, a function of their number: what does not depend on rows is computed for all at once."""
        embedded = self.embed_times(t)
        if conditions.context is not None:
            return lambda k: self._modulation(embedded[:, k : k + 1], conditions)
        every = self._modulation(embedded, conditions)
        return lambda k: every[:, k : k + 1]

    def embed_times(self, t: Tensor) -> Tensor:
        """``t`` () or (k,) to ``(e, 1)`` or ``(e, k)``."""
        return self.time_out @ silu(torch.addmm(self.time_bias, self.time_weight, time_features(t)))

    def _modulation(self, embedded: Tensor, conditions: Conditions) -> Tensor:
        """Shifts and gains of all units and columns, ``(units, n)`` or ``(units, 1)``."""
        if conditions.context is not None:
            embedded = embedded + conditions.context
        return torch.addmm(self.film_bias, self.film_weight, silu(embedded))

    def _parts(self, modulation: Tensor) -> list[Tensor]:
        shift1, gain1, shift2, gain2, slope, offset = modulation.split(self._sizes)
        return [shift1, 1 + gain1, shift2, 1 + gain2, slope * self.is_real, offset]

    def _units(self, flat: Tensor, layer: int) -> Tensor:
        return flat.view(self.blocks, self.hidden[layer], flat.shape[-1])

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """SiLU units and waves, each (blocks, units, n)."""
        units = self._units(flat, 0)
        plain = self.hidden[0] - self.waves
        return units[:, :plain], units[:, plain:]

    def _mix(self, matrices: Tensor, units: Tensor) -> Tensor:
        """Block by block ``(h2, h1) @ (h1, n)``; ``(blocks * h2, n)``."""
        return (matrices @ units).flatten(0, 1)


def time_features(t: Tensor) -> Tensor:
    """Smooth functions of ``t`` () or (k,) in [0, 1], ``(TIME_FEATURES, k)``."""
    t = t.reshape(1, -1)
    waves = [f(math.pi * k * t) for k in range(1, _TIME_WAVES + 1) for f in (torch.cos, torch.sin)]
    # The logarithm resolves the end, where sharp densities come to be.
    return torch.cat([2 * t - 1, torch.log(1.02 - t), *waves])


def silu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1 - gate)


def _frequencies(units: int, features: int, circular: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Whole frequency vectors ``(units, d)``: of one angle each, and every third unit of two; k = 1 half of the time, k = 2 a quarter."""
    out = torch.zeros(units, features)
    if not circular:
        return out
    columns = torch.tensor(list(circular))
    draws = rand((5, units), generator, dtype=torch.float64, device="cpu")
    size = 1 + torch.floor(-torch.log2(1 - draws[:2])).clamp(max=7)
    which = columns[torch.floor(draws[2:4] * len(columns)).long()]
    every = torch.arange(units)
    # Every column gets its share of units, however few there are.
    out[every, columns[every % len(columns)]] = size[0].float()
    second = (every % 3 == 2) & (which[1] != columns[every % len(columns)])
    sign = torch.where(draws[4] < 0.5, -1.0, 1.0)
    out[every[second], which[1][second]] = (size[1] * sign)[second].float()
    return out
