"""The two contracts of the flow core: elementwise transformers, and bijections of whole rows.

Memory layout. A batch is ``(n, d)`` for the caller, but every bijection computes on its transpose ``(d, n)`` and hands back a
transposed view: then each column, each hidden unit and each spline parameter is one contiguous run over the batch, and the
transposes between bijections cost nothing.

Several flows of one architecture can be trained as one (:mod:`sbi_flows.flows.together`): a bijection with ``stackable = True`` also
takes ``(members, n, d)``, where its parameters have the same leading axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Transformer(ABC):
    """An elementwise monotone map, stateless: its parameters come from a conditioner.

    Attributes
    ----------
    n_params : int
        Parameters an element. They lead: ``x (*shape)`` goes with ``params (n_params, *shape)``. All zero means the identity.
    circular : bool
        Whether elements are angles on [-pi, pi).
    """

    n_params: int
    circular = False

    @abstractmethod
    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``x (*shape)``, ``params (n_params, *shape)`` to ``z`` and ``ln |dz/dx|``, both ``(*shape)``."""

    @abstractmethod
    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``z (*shape)``, ``params (n_params, *shape)`` to ``x`` and ``ln |dx/dz|``, both ``(*shape)``."""


    def pull(self, method: str, x: Tensor, params: Tensor, value: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(score, 1)`` on value and log derivative of the way back from ``value``, taken back to ``value`` and to ``params``.

        ``value`` is what ``method``, "forward" or "inverse", made of x. The general way goes there and differentiates.
        """
        back = self.inverse if method == "forward" else self.forward
        with torch.enable_grad():
            value, params = value.detach().requires_grad_(), params.detach().requires_grad_()
            origin, log_det = back(value, params)
            return torch.autograd.grad([origin, log_det], [value, params], [score, torch.ones_like(log_det)])  # type: ignore[return-value]


class Bijection(nn.Module, ABC):
    """An invertible map of rows ``x (n, d)`` to ``z (n, d)``, possibly given ``context (n, c)`` or ``(1, c)``.

    Attributes
    ----------
    stackable : bool
        Whether the forward map also takes a leading axis of members, with parameters that have one.
    rows_at_once : int
        Rows of one piece on a CPU where no gradient is kept: few where each has many numbers that should stay in the cache.
    """

    stackable = False
    rows_at_once: int = 2048

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent: ``(n, d)`` and ``ln |det dz/dx|``, ``(n,)``."""

    @abstractmethod
    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data: ``(n, d)`` and ``ln |det dx/dz|``, ``(n,)``."""

    def forward_with_score(self, x: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`forward_and_log_det`, and the score of the image of a density whose score at x is ``score (n, d)``; detached.

        Scores are gradients of log-densities. Here they come from a pass back from where x went; subclasses override what can do without.
        """
        z, log_det = self.forward_and_log_det(x, context)
        return z, log_det, pulled_back_score(self.inverse_and_log_det, z, score, context)

    def inverse_with_score(self, z: Tensor, score: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`inverse_and_log_det`, and the score of the image of a density whose score at z is ``score (n, d)``; detached."""
        x, log_det = self.inverse_and_log_det(z, context)
        return x, log_det, pulled_back_score(self.forward_and_log_det, x, score, context)

    def forward_with_error(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`forward_and_log_det`, and the error ``(n,)`` of the log-density in nats: zero where the map is exact."""
        z, log_det = self.forward_and_log_det(x, context)
        return z, log_det, torch.zeros_like(log_det)


def pulled_back_score(
    back: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], point: Tensor, score: Tensor, context: Tensor | None
) -> Tensor:
    """Score at ``point`` of the density whose score is ``score (n, d)`` where ``back`` leads, that map's log-determinant included."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        origin, log_det = back(point, context)
        ends = (origin, log_det) if log_det.requires_grad else (origin,)
        weights = (score, torch.ones_like(log_det)) if log_det.requires_grad else (score,)
        return torch.autograd.grad(ends, point, weights)[0]


class Boundary(Bijection):
    """A bijection between a user's columns and the network's: fixed numbers, set from data, that stay float64 whatever the flow's dtype.

    An offset of a million with a spread of a thousandth (a date, a frequency) survives float64 and not float32; behind the boundary
    all columns are of order one, and float32 is enough.
    """

    def _apply(self, fn, recurse=True):
        kept = {name: value for name, value in self._buffers.items() if value is not None}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            self._buffers[name] = value.to(fn(value).device)
        return self


class Chain(Bijection):
    """Bijections one after another; the first is nearest to the data."""

    stackable = True

    def __init__(self, bijections: Sequence[Bijection]):
        super().__init__()
        self.bijections = cast(Sequence[Bijection], nn.ModuleList(bijections))

    def forward_and_log_det(self, x, context=None):
        log_dets = []
        for bijection in self.bijections:
            x, log_det = bijection.forward_and_log_det(x, context)
            log_dets.append(log_det)
        return x, torch.stack(log_dets).sum(0)

    def inverse_and_log_det(self, z, context=None):
        log_dets = []
        for bijection in reversed(self.bijections):
            z, log_det = bijection.inverse_and_log_det(z, context)
            log_dets.append(log_det)
        return z, torch.stack(log_dets).sum(0)

    def forward_with_score(self, x, score, context=None):
        log_dets = []
        for bijection in self.bijections:
            x, log_det, score = bijection.forward_with_score(x, score, context)
            log_dets.append(log_det)
        return x, torch.stack(log_dets).sum(0), score

    def inverse_with_score(self, z, score, context=None):
        log_dets = []
        for bijection in reversed(self.bijections):
            z, log_det, score = bijection.inverse_with_score(z, score, context)
            log_dets.append(log_det)
        return z, torch.stack(log_dets).sum(0), score


class Rows:
    """A choice of rows of a ``(d, n)`` tensor, read without index tensors (no host transfer, cheap gradients)."""

    def __init__(self, columns: Sequence[int]):
        self.columns = list(columns)
        self._runs: list[tuple[int, int]] = []
        for column in self.columns:
            if self._runs and self._runs[-1][1] == column:
                self._runs[-1] = (self._runs[-1][0], column + 1)
            else:
                self._runs.append((column, column + 1))

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, x: Tensor) -> Tensor:
        """Rows ``columns`` of ``x (d, n)``."""
        if len(self._runs) == 1:
            low, high = self._runs[0]
            return x if (low, high) == (0, x.shape[-2]) else x[..., low:high, :]
        return torch.cat([x[..., low:high, :] for low, high in self._runs], dim=-2)


def merge_rows(blocks: Sequence[tuple[Rows, Tensor]]) -> Tensor:
    """The inverse of taking: blocks of rows put back in the order of their columns, ``(d, n)``."""
    if len(blocks) == 1 and blocks[0][0].columns == list(range(len(blocks[0][0]))):
        return blocks[0][1]
    pieces = {}
    for rows, values in blocks:
        start = 0
        for low, high in rows._runs:
            pieces[low] = values[..., start : start + high - low, :]
            start += high - low
    return torch.cat([pieces[low] for low in sorted(pieces)], dim=-2)


class Columnwise:
    """Which transformer acts on which column, and how a conditioner's output is laid out for them.

    Columns that share a transformer form one block of parameters ``(n_params, columns, n)``; the blocks follow each other.

    Parameters
    ----------
    transformer : Transformer or sequence of Transformer
        One for all columns, or one a column.
    columns : sequence of int
        The columns transformed.
    """

    def __init__(self, transformer: Transformer | Sequence[Transformer], columns: Sequence[int]):
        each = [transformer] * len(columns) if isinstance(transformer, Transformer) else list(transformer)
        if len(each) != len(columns):
            raise ValueError(f"Expected one transformer, or one for each of {len(columns)} columns; got {len(each)}.")
        unique = list(dict.fromkeys(each))
        self.blocks = [(t, Rows([c for c, own in zip(columns, each, strict=True) if own is t])) for t in unique]
        self.sizes = [t.n_params * len(rows) for t, rows in self.blocks]
        self.n_params = sum(self.sizes)
        # The column each output row of the conditioner belongs to.
        self.owners = [c for t, rows in self.blocks for _ in range(t.n_params) for c in rows.columns]

    def apply(self, method: str, x: Tensor, params: Tensor) -> tuple[list[tuple[Rows, Tensor]], Tensor]:
        """Transform ``x (d, n)`` given ``params (n_params, n)``; blocks of new rows, and the summed log-derivative ``(n,)``."""
        blocks, log_dets = [], []
        for (transformer, rows), flat in zip(self.blocks, params.split(self.sizes, dim=-2), strict=True):
            leading = flat.unflatten(-2, (transformer.n_params, len(rows))).movedim(-3, 0)
            values, log_each = getattr(transformer, method)(rows.take(x), leading)
            blocks.append((rows, values))
            log_dets.append(log_each.sum(-2))
        return blocks, log_dets[0] if len(log_dets) == 1 else torch.stack(log_dets).sum(0)


    def pull(
        self, method: str, x: Tensor, params: Tensor, values: Sequence[tuple[Rows, Tensor]], score: Tensor
    ) -> tuple[list[tuple[Rows, Tensor]], Tensor]:
        """:meth:`Transformer.pull` of every block: blocks of the pulled score, and weights on the parameters ``(n_params, n)``."""
        pulled, weights = [], []
        for (transformer, rows), flat, (_, value) in zip(self.blocks, params.split(self.sizes, dim=-2), values, strict=True):
            leading = flat.unflatten(-2, (transformer.n_params, len(rows)))
            through, own = transformer.pull(method, rows.take(x), leading, value, rows.take(score))
            pulled.append((rows, through))
            weights.append(own.flatten(0, 1))
        return pulled, weights[0] if len(weights) == 1 else torch.cat(weights)


def circular_columns(transformer: Transformer | Sequence[Transformer], features: int) -> list[bool]:
    """Which of ``features`` columns are angles."""
    each = [transformer] * features if isinstance(transformer, Transformer) else list(transformer)
    if len(each) != features:
        raise ValueError(f"Expected one transformer, or one for each of {features} columns; got {len(each)}.")
    return [t.circular for t in each]
