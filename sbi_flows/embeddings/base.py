"""What every embedding does: flat rows with masks to standardised values in the shape of the data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Embedding(nn.Module, ABC):
    """A network from flat rows ``(n, inputs)`` to ``(n, outputs)`` that knows the shape its rows are flattened from.

    It acts row by row, in any float dtype, and under ``torch.func.vmap``, so that it can be a member of an ensemble. It standardises its
    inputs itself (:meth:`fit_scaling`), as only it knows which columns must share one scale.

    Parameters
    ----------
    shape : sequence of int
        Shape of one observation.
    outputs : int
        Numbers it makes of an observation.
    missing : sequence of int
        Flat indices of the values that may be missing. A row is then the flattened values followed by one column for each of these, one
        where the value is missing and zero where it is there; a NaN means missing as well.
    shared : sequence of int
        Axes of ``shape`` along which all values have one location and scale.

    Attributes
    ----------
    exchangeable : bool
        Whether the first axis of ``shape`` is that of exchangeable trials.
    regressable : int
        Outputs, the first ones, that mean something before any training: a flow may begin with its regression on them.
    shared : tuple of int
    inputs : int
        Columns of a row: those of ``shape`` and of ``missing``.
    spec : dict
        Plain data from which :func:`sbi_flows.embeddings.build_embedding` makes the same architecture again.
    """

    exchangeable = False
    regressable = 0
    location: Tensor
    scale: Tensor
    _mask_of: Tensor

    def __init__(self, shape: Sequence[int], outputs: int, missing: Sequence[int], shared: Sequence[int]):
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        self.outputs = outputs
        self.missing = sorted(int(j) for j in missing)
        self._columns = math.prod(self.shape)
        self.inputs = self._columns + len(self.missing)
        if self._columns < 1 or outputs < 1:
            raise ValueError(f"Expected a shape of at least one value and at least one output; got shape={self.shape}, outputs={outputs}.")
        if self.missing and not 0 <= self.missing[0] <= self.missing[-1] < self._columns:
            raise ValueError(f"Expected missing to hold flat indices below {self._columns}; got {self.missing[0]} to {self.missing[-1]}.")
        self.shared = tuple(shared)
        kept = [1 if axis in shared else size for axis, size in enumerate(self.shape)]
        self.register_buffer("location", torch.zeros(kept))
        self.register_buffer("scale", torch.ones(kept))
        # Each value's column among the masks; values without a mask look at a column of zeros put after the masks.
        where = {j: i for i, j in enumerate(self.missing)}
        mask_of = torch.tensor([where.get(j, len(self.missing)) for j in range(self._columns)])
        self.register_buffer("_mask_of", mask_of, persistent=False)
        self.spec: dict[str, Any] = {}

    @abstractmethod
    def embed(self, values: Tensor, present: Tensor) -> Tensor:
        """``(n, *shape)`` standardised values, zero where missing, and ones and zeros for what is there, to ``(n, outputs)``."""

    def forward(self, rows: Tensor) -> Tensor:
        """``(n, inputs)`` to ``(n, outputs)``."""
        values, present = self.split(rows)
        values = (values - self.location) / self.scale * present
        return self.embed(values, present)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(n, *shape)``, zero where missing, and what is there, of the same shape."""
        if rows.ndim != 2 or rows.shape[1] != self.inputs:
            raise ValueError(
                f"Expected rows of shape (n, {self.inputs}): {self._columns} values of shape {self.shape} and {len(self.missing)} masks; "
                f"got {tuple(rows.shape)}. Flatten each observation."
            )
        flat = rows[:, : self._columns]
        present = 1.0 - torch.isnan(flat).to(rows)
        if self.missing:
            masks = torch.cat([rows[:, self._columns :], torch.zeros_like(rows[:, :1])], dim=1)
            present = present * (1.0 - masks.index_select(1, self._mask_of))
        flat = torch.where(present > 0, flat, 0.0)
        return flat.unflatten(1, self.shape), present.unflatten(1, self.shape)

    @torch.no_grad()
    def fit_scaling(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Set location and scale from rows ``(n, inputs)``: mean and standard deviation of what is there."""
        values, present = self.split(rows.double())
        axes = [0, *(1 + axis for axis in self.shared)]
        there = present if weights is None else present * weights.to(present).reshape(-1, *[1] * len(self.shape))
        count = there.sum(axes, keepdim=True)
        some = count > 0
        count = torch.where(some, count, 1.0)
        mean = (there * values).sum(axes, keepdim=True) / count
        spread = (there * (values - mean).square()).sum(axes, keepdim=True).div(count).sqrt()
        self.location.copy_(mean[0])
        self.scale.copy_(torch.where(spread > 0, spread, 1.0)[0])

    def with_flags(self, values: Tensor, present: Tensor) -> Tensor:
        """Values and, where some may be missing, what is there, side by side on the last axis."""
        return torch.cat([values, present], dim=-1) if self.missing else values


class Dense(nn.Module):
    """Layers with SiLU between them on the last axis, each added to the one before where the widths agree.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden widths, outputs.
    generator : torch.Generator, optional
        Draws the initial weights.
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None):
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b, generator) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers[0](x)
        for layer in self.layers[1:]:
            new = layer(nn.functional.silu(h))
            h = h + new if new.shape[-1] == h.shape[-1] else new
        return h


class AttentionPool(nn.Module):
    """Items of a set to one vector: attention with learned queries, the mean, and how many there are.

    Parameters
    ----------
    width : int
        Numbers an item has.
    heads : int
        Learned queries; each attends with the whole item.
    """

    def __init__(self, width: int, heads: int = 4, generator: torch.Generator | None = None):
        super().__init__()
        self.score = Linear(width, heads, generator)
        self.outputs = width * (heads + 1) + 2

    def forward(self, items: Tensor, present: Tensor) -> Tensor:
        """``items (n, k, width)`` of which those with ``present (n, k)`` of one count: ``(n, outputs)``."""
        there = present[..., None]
        scores = torch.where(there > 0, self.score(items), -1e9)
        # Without any item the scores are all alike: what they would weigh is taken off again.
        weights = torch.softmax(scores, dim=1) * there
        attended = torch.einsum("nkh,nkw->nhw", weights, items).flatten(1)
        count = present.sum(1, keepdim=True)
        mean = (items * there).sum(1) / count.clamp(min=1.0)
        share = count / present.shape[1]
        # The precision of what is learned from a set grows as the root of its size.
        return torch.cat([attended, mean, share.sqrt(), torch.log1p(count) / math.log1p(present.shape[1])], dim=1)


class _Layer(nn.Module):
    """Weights drawn from ``generator`` alone such that the layer keeps the variance."""

    def __init__(self, shape: Sequence[int], fan_in: float, generator: torch.Generator | None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape, generator=generator) * fan_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(shape[0]))


class Linear(_Layer):
    """A linear map of the last axis."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator | None = None):
        super().__init__((outputs, inputs), inputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Convolution(_Layer):
    """A padded convolution over one or two axes.

    Parameters
    ----------
    axes, inputs, outputs, kernel : int
    stride : tuple of int
        One number an axis.
    """

    def __init__(
        self, axes: int, inputs: int, outputs: int, kernel: int, stride: tuple[int, ...], generator: torch.Generator | None = None
    ):
        # Half of what a convolution sees was lost in the activation before it.
        super().__init__((outputs, inputs, *[kernel] * axes), inputs * kernel**axes / 2, generator)
        self._stride, self._padding = stride, kernel // 2
        self._convolve = nn.functional.conv1d if axes == 1 else nn.functional.conv2d

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight, self.bias, self._stride, self._padding)


def spec_of(name: str, embedding: Embedding, **settings: Any) -> dict[str, Any]:
    """The call as plain JSON-able data."""
    return {"embedding": name, "shape": list(embedding.shape), "outputs": embedding.outputs, "missing": embedding.missing, **settings}
