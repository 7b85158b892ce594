"""Conditioner networks, residual and masked.

Activations are ``(units, n)``: one row a unit, the batch along the contiguous axis (see
:mod:`sbi_flows.bijections.base`). The last layer starts at zero, so a conditioner starts by asking its
transformer for the identity. Parameters may have a leading axis of members, and then activations have it too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

# Whether a function transform (vmap, grad) is running; where torch cannot say, assume so: that is only slower.
transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


class ResidualNet(nn.Module):
    """Dense layers with SiLU, each added to the one before where the widths agree.

    Parameters
    ----------
    inputs, outputs : int
    hidden : sequence of int
        Width of each hidden layer.
    context : int
        Context features, added to the first layer.
    generator : torch.Generator, optional
        Draws the initial weights.

    Examples
    --------
    >>> ResidualNet(3, 5, (16, 16))(torch.zeros(3, 100)).shape
    torch.Size([5, 100])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int],
        context: int = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _check_hidden(hidden)
        # Without anything to look at, hidden layers would only be a roundabout constant.
        self.widths = list(hidden) if inputs + context else []
        sizes = [inputs + context, *self.widths]
        self.weights = nn.ParameterList(_weight(rows, columns, columns, generator) for columns, rows in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(rows, 1)) for rows in self.widths)
        self.out_weight = nn.Parameter(torch.zeros(outputs, sizes[-1])) if self.widths else None
        self.out_bias = nn.Parameter(torch.zeros(outputs, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x (inputs, n)``, ``context (c, n)`` or ``(c, 1)`` to ``(outputs, n)``."""
        if self.out_weight is None:
            return self.out_bias.expand(*x.shape[:-2], -1, x.shape[-1])
        return _dense(_joined(x, context), list(self.weights), list(self.biases), self.out_weight, self.out_bias)


def _joined(x: Tensor, context: Tensor | None) -> Tensor:
    """Inputs, then context, ``(inputs + c, n)``."""
    return x if context is None else torch.cat([x, context.expand(*x.shape[:-2], -1, x.shape[-1])], dim=-2)


def affine(bias: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """``bias + weight @ x``, of matrices or of as many of them as there are members."""
    return torch.addmm(bias, weight, x) if x.dim() == 2 else torch.baddbmm(bias, weight, x)


def _dense(x: Tensor, weights: list[Tensor], biases: list[Tensor], out_weight: Tensor, out_bias: Tensor) -> Tensor:
    h = affine(biases[0], weights[0], x)
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        a = silu(h)
        h = affine(h, weight, a) + bias if weight.shape[-2] == a.shape[-2] else affine(bias, weight, a)
    return affine(out_bias, out_weight, silu(h))


class MaskedNet(nn.Module):
    """The residual net with weights masked so that an output of degree m sees only inputs of degree below m.

    Hidden units are sorted by degree. So the units of one degree form a contiguous block that depends only on blocks before
    it, and an autoregressive inverse can compute every unit exactly once (:meth:`fill`).

    Parameters
    ----------
    in_degrees : sequence of int
        Degree of each input, from 1.
    out_degrees : sequence of int
        Degree of each output, from 1.
    hidden, context, generator
        As in :class:`ResidualNet`. The context is seen by every unit.

    References
    ----------
    Germain, Gregor, Murray & Larochelle 2015, "MADE", arXiv:1502.03509; Nash & Durkan 2019, arXiv:1904.05626 (residual blocks).
    """

    in_mask: Tensor
    out_mask: Tensor

    def __init__(
        self,
        in_degrees: Sequence[int],
        out_degrees: Sequence[int],
        hidden: Sequence[int],
        context: int = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _check_hidden(hidden)
        self.highest = max(out_degrees)
        # A unit of degree m sees inputs of degree up to m; degree 0 is of use only where there is context to see.
        degrees = list(range(0 if context else 1, self.highest))
        self.widths = list(hidden) if degrees else []
        self.unit_degrees = [[degrees[k * len(degrees) // width] for k in range(width)] for width in self.widths]
        self.in_order = sorted(range(len(in_degrees)), key=lambda i: in_degrees[i])
        self.out_bias = nn.Parameter(torch.zeros(len(out_degrees), 1))
        self.out_weight = None
        if not self.widths:
            return
        seen = torch.tensor(in_degrees)
        masks = []
        for unit_degrees in self.unit_degrees:
            own = torch.tensor(unit_degrees)
            masks.append(own[:, None] >= seen)
            seen = own
        # The context columns, after those of x, are open to all.
        masks[0] = torch.cat([masks[0], torch.ones(self.widths[0], context, dtype=torch.bool)], dim=1)
        self.register_buffer("in_mask", masks[0].float(), persistent=False)
        for i, mask in enumerate(masks[1:]):
            self.register_buffer(f"mask_{i}", mask.float(), persistent=False)
        self.register_buffer("out_mask", (torch.tensor(out_degrees)[:, None] > seen).float(), persistent=False)
        self.weights = nn.ParameterList(
            _weight(mask.shape[0], mask.shape[1], mask.sum(1, keepdim=True), generator) for mask in masks
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width, 1)) for width in self.widths)
        self.out_weight = nn.Parameter(torch.zeros(len(out_degrees), self.widths[-1]))

    def _masked(self, out_weight: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden weights and ``out_weight`` with their masks applied: once a call, not once a row."""
        masks = [self.in_mask, *(getattr(self, f"mask_{i}") for i in range(len(self.widths) - 1))]
        return [w * m for w, m in zip(self.weights, masks, strict=True)], out_weight * self.out_mask

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x (inputs, n)``, ``context (c, n)`` or ``(c, 1)`` to ``(outputs, n)``."""
        if self.out_weight is None:
            return self.out_bias.expand(*x.shape[:-2], -1, x.shape[-1])
        weights, out_weight = self._masked(self.out_weight)
        return _dense(_joined(x, context), weights, list(self.biases), out_weight, self.out_bias)

    def fill(self, context: Tensor | None, n: int) -> Fill:
        """Start an evaluation of ``n`` rows degree by degree."""
        return Fill(self, context, n)


class Fill:
    """A :class:`MaskedNet` evaluated one degree at a time, every unit once: together the work of one forward pass.

    Call :meth:`step` for degrees 0, 1, 2, ... with the inputs of that degree; after step m the outputs of degree m + 1 are
    available from :meth:`outputs`.
    """

    def __init__(self, net: MaskedNet, context: Tensor | None, n: int):
        self._net, self._n = net, n
        if net.out_weight is None:
            return
        weights, self._out_weight = net._masked(net.out_weight)
        self._start = net.biases[0]
        if context is not None:
            self._start = torch.addmm(net.biases[0], weights[0][:, len(net.in_order) :], context)
        if net.in_order != list(range(len(net.in_order))):
            weights[0] = torch.stack([weights[0][:, i] for i in net.in_order], dim=1)
        self._weights = weights
        rows = _Rows if torch.is_grad_enabled() or transforms_active() else _RowsInPlace
        self._inputs = rows(len(net.in_order), n, self._start)
        self._units = [rows(width, n, self._start) for width in net.widths]
        # Units of degree m are those from bounds[m] to bounds[m + 1].
        self._bounds = [[bisect_left(degrees, m) for m in range(net.highest + 1)] for degrees in net.unit_degrees]
        self._residual = [a == b for a, b in zip([0, *net.widths], net.widths, strict=False)]

    def step(self, degree: int, inputs: Tensor | None = None) -> None:
        """Compute the hidden units of ``degree``; ``inputs (k, n)`` are the net's inputs of that degree, none for degree 0."""
        if not self._net.widths:
            return
        if inputs is not None:
            self._inputs.append(inputs)
        h, below = None, self._inputs
        for layer, bounds in enumerate(self._bounds):
            low, high = bounds[degree], bounds[degree + 1]
            units = self._units[layer]
            if low < high:
                new = (self._start if layer == 0 else self._net.biases[layer])[low:high]
                if h is not None and self._residual[layer]:
                    new = new + h
                if below.count:
                    new = torch.addmm(new, self._weights[layer][low:high, : below.count], below.all())
                h = new
                units.append(silu(h))
            else:
                h = None
            below = units

    def outputs(self, rows: slice) -> Tensor:
        """Outputs ``rows`` (of the degree after the last step), ``(len(rows), n)``."""
        bias = self._net.out_bias[rows]
        if not self._net.widths or not self._units[-1].count:
            return bias.expand(-1, self._n)
        units = self._units[-1]
        return torch.addmm(bias, self._out_weight[rows, : units.count], units.all())


class _Rows:
    """Rows gathered one after another, where gradients may flow through them."""

    def __init__(self, capacity: int, n: int, like: Tensor):
        self.count, self._n = 0, n
        self._blocks: list[Tensor] = []

    def append(self, rows: Tensor) -> None:
        self._blocks.append(rows.expand(-1, self._n))
        self.count += len(rows)

    def all(self) -> Tensor:
        return torch.cat(self._blocks)


class _RowsInPlace:
    """The same in one buffer, where no gradients flow: nothing is copied twice."""

    def __init__(self, capacity: int, n: int, like: Tensor):
        self.count, self._buffer = 0, like.new_empty((capacity, n))

    def append(self, rows: Tensor) -> None:
        self._buffer[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def all(self) -> Tensor:
        return self._buffer[: self.count]


def _weight(rows: int, columns: int, fan_in, generator: torch.Generator | None) -> nn.Parameter:
    """Normal weights that keep the variance, given how many inputs a unit really sees (a number, or one a row)."""
    scale = torch.as_tensor(fan_in, dtype=torch.get_default_dtype()).clamp(min=1).rsqrt()
    return nn.Parameter(torch.randn(rows, columns, generator=generator) * scale)


def _check_hidden(hidden: Sequence[int]) -> None:
    if len(hidden) == 0 or any(width < 1 for width in hidden):
        raise ValueError(f"Expected at least one hidden layer, of positive width, such as hidden=(64, 64); got {tuple(hidden)}.")
