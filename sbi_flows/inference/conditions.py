"""Parameters as what a density of x is conditioned on: half-lines and heavy tails mapped to the line, angles by cosine and sine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_flows.bijections.support import ColumnSupport
from sbi_flows.bijections.unconstrain import Unconstrain

_END = 1e-9


class Conditions:
    """A map of theta ``(n, d)`` to rows ``(n, c)`` of about normal size for a network; differentiable.

    Columns with two ends are left as they are (a network is at home in a box); the others would have tails. Where probabilities are to be
    learned, they come a second time stretched near their ends: probabilities of counts change with the logarithm or the root of a rate,
    and rates near zero are a small part of the box.

    Parameters
    ----------
    columns : sequence of ColumnSupport
        Where theta lives.
    theta : Tensor (n, d)
        Draws, which place half-lines and heavy tails.
    stretched : bool
        Whether columns with two ends come a second time.
    """

    def __init__(self, columns: Sequence[ColumnSupport], theta: Tensor, *, stretched: bool = False):
        self._map = Unconstrain([ColumnSupport("real") if column.kind == "interval" else column for column in columns])
        self._map.fit(theta)
        self._angles = [i for i, column in enumerate(columns) if column.kind == "circular"]
        self._boxed = [i for i, column in enumerate(columns) if stretched and column.kind == "interval"]
        self._ends = torch.tensor([[columns[i].low, columns[i].high] for i in self._boxed], dtype=torch.float64)
        self._rest = [i for i, column in enumerate(columns) if column.kind != "circular"]

    def to_data(self) -> dict[str, Any]:
        """Where half-lines and heavy tails were placed, and whether ends are stretched; the columns are the prior's."""
        location, scale = self._map.location[:, 0].tolist(), self._map.scale[:, 0].tolist()
        return {"location": location, "scale": scale, "stretched": bool(self._boxed)}

    @classmethod
    def from_data(cls, columns: Sequence[ColumnSupport], data: dict[str, Any]) -> Conditions:
        """What :meth:`to_data` wrote."""
        conditions = cls(columns, torch.zeros(1, len(columns), dtype=torch.float64), stretched=data["stretched"])
        conditions._map.location.copy_(torch.tensor(data["location"], dtype=torch.float64)[:, None])
        conditions._map.scale.copy_(torch.tensor(data["scale"], dtype=torch.float64)[:, None])
        return conditions

    def __call__(self, theta: Tensor) -> Tensor:
        z = self._map.forward_and_log_det(theta)[0]
        parts = [z[:, self._rest]]
        if self._boxed:
            low, high = self._ends.T
            # The slope of the arc sine is infinite at the ends.
            parts.append(torch.asin(((theta[:, self._boxed] - low) / (high - low)).clamp(_END, 1 - _END).sqrt()))
        if self._angles:
            parts += [torch.cos(z[:, self._angles]), torch.sin(z[:, self._angles])]
        return torch.cat(parts, dim=1)
