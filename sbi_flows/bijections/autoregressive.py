"""Masked autoregressive bijections, whose inverse costs one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sbi_flows.bijections.base import Bijection, Columnwise, Rows, Transformer, circular_columns, merge_rows
from sbi_flows.nn import MaskedNet


class Autoregressive(Bijection):
    """Each column transformed given the columns before it.

    Parameters
    ----------
    transformer : Transformer or sequence of Transformer
        One for all columns or one a column; circular ones mark angles, which reach the conditioner as cosine and sine.
    features, context : int
        Columns of x, and of the context.
    hidden : sequence of int
        Widths of the conditioner's hidden layers.
    order : sequence of int, optional
        The columns in the order they are conditioned; 0, 1, 2, ... by default.
    generator : torch.Generator, optional
        Draws the initial weights.

    Examples
    --------
    >>> import torch
    >>> from sbi_flows.bijections.spline import Spline
    >>> z, log_det = Autoregressive(Spline(), 3).forward_and_log_det(torch.randn(10, 3))

    References
    ----------
    Papamakarios, Pavlakou & Murray 2017, arXiv:1705.07057.
    """

    stackable = True

    def __init__(
        self,
        transformer: Transformer | Sequence[Transformer],
        features: int,
        context: int = 0,
        *,
        hidden: Sequence[int] = (64, 64),
        order: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.order = list(range(features)) if order is None else list(order)
        if sorted(self.order) != list(range(features)):
            raise ValueError(f"Expected order to hold each of the columns 0..{features - 1} once; got {self.order}.")
        self._columnwise = Columnwise(transformer, range(features))
        self._outputs = _output_rows(self._columnwise)
        self._inputs = Inputs(circular_columns(transformer, features), range(features))
        degree = {column: position + 1 for position, column in enumerate(self.order)}
        self.net = MaskedNet(
            [degree[c] for c in self._inputs.owners],
            [degree[c] for c in self._columnwise.owners],
            hidden,
            context,
            generator,
        )

    def forward_and_log_det(self, x, context=None):
        xt = x.mT
        params = self.net(self._inputs(xt), None if context is None else context.mT)
        blocks, log_det = self._columnwise.apply("forward", xt, params)
        return merge_rows(blocks).mT, log_det

    def inverse_and_log_det(self, z, context=None):
        """One pass over the columns: each hidden unit of the conditioner is computed once, when its inputs are known."""
        zt = z.mT.unbind(0)
        fill = self.net.fill(None if context is None else context.mT, z.shape[0])
        fill.step(0)
        solved: dict[int, torch.Tensor] = {}
        log_dets = []
        for degree, column in enumerate(self.order, start=1):
            transformer, rows = self._outputs[column]
            x, log_det = transformer.inverse(zt[column], fill.outputs(rows))
            solved[column] = x
            log_dets.append(log_det)
            if degree < len(self.order):
                fill.step(degree, self._inputs.of_column(column, x[None]))
        return torch.stack([solved[column] for column in range(len(self.order))]).mT, torch.stack(log_dets).sum(0)


def _output_rows(columnwise: Columnwise) -> dict[int, tuple[Transformer, slice]]:
    """For each column its transformer and its rows in the conditioner's output."""
    found, start = {}, 0
    for (transformer, rows), size in zip(columnwise.blocks, columnwise.sizes, strict=True):
        for position, column in enumerate(rows.columns):
            found[column] = transformer, slice(start + position, start + size, len(rows))
        start += size
    return found


class Inputs:
    """What a conditioner sees of chosen columns: real ones as they are, angles as cosine and sine, which have no seam.

    Attributes
    ----------
    owners : list of int
        The column behind each input.
    """

    def __init__(self, circular: Sequence[bool], columns: Sequence[int]):
        self._circular = list(circular)
        self._real = Rows([c for c in columns if not circular[c]])
        self._angles = Rows([c for c in columns if circular[c]])
        self.owners = self._real.columns + 2 * self._angles.columns

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x (d, n)`` to ``(inputs, n)``."""
        if not len(self._angles):
            return self._real.take(x) if len(self._real) else x[..., :0, :]
        angles = self._angles.take(x)
        parts = [torch.cos(angles), torch.sin(angles)]
        return torch.cat([self._real.take(x), *parts] if len(self._real) else parts, dim=-2)

    def of_column(self, column: int, x: torch.Tensor) -> torch.Tensor:
        """The inputs of one column ``x (1, n)``, in the order of :attr:`owners`."""
        return torch.cat([torch.cos(x), torch.sin(x)]) if self._circular[column] else x
