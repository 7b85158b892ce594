"""Parameters as what a density of x is conditioned on: half-lines and heavy tails mapped to the line, angles by cosine and sine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_flows.bijections.support import ColumnSupport
from sbi_flows.bijections.unconstrain import Unconstrain


class Conditions:
    """A map of theta ``(n, d)`` to rows ``(n, c)`` of about normal size for a network; differentiable.

    Columns with two ends are left as they are (a network is at home in a box); the others would have tails.

    Parameters
    ----------
    columns : sequence of ColumnSupport
        Where theta lives.
    theta : Tensor (n, d)
        Draws, which place half-lines and heavy tails.
    """

    def __init__(self, columns: Sequence[ColumnSupport], theta: Tensor):
        self._map = Unconstrain([ColumnSupport("real") if column.kind == "interval" else column for column in columns])
        self._map.fit(theta)
        self._angles = [i for i, column in enumerate(columns) if column.kind == "circular"]
        self._rest = [i for i, column in enumerate(columns) if column.kind != "circular"]

    def to_data(self) -> list[list[float]]:
        """Where half-lines and heavy tails were placed; the columns are the prior's."""
        return [self._map.location[:, 0].tolist(), self._map.scale[:, 0].tolist()]

    @classmethod
    def from_data(cls, columns: Sequence[ColumnSupport], data: list[list[float]]) -> Conditions:
        """What :meth:`to_data` wrote."""
        conditions = cls(columns, torch.zeros(1, len(columns), dtype=torch.float64))
        location, scale = torch.tensor(data, dtype=torch.float64)
        conditions._map.location.copy_(location[:, None])
        conditions._map.scale.copy_(scale[:, None])
        return conditions

    def __call__(self, theta: Tensor) -> Tensor:
        z = self._map.forward_and_log_det(theta)[0]
        if not self._angles:
            return z
        return torch.cat([z[:, self._rest], torch.cos(z[:, self._angles]), torch.sin(z[:, self._angles])], dim=1)
