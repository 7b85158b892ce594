"""What every density is: columns with a support, ``sample`` and ``log_prob``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sbi_flows.bijections.support import ColumnSupport, parse_support

_TOLD = 6  # columns that a repr tells of

LOG_2PI = math.log(2 * math.pi)


class Distribution(nn.Module, ABC):
    """A density over ``features`` columns.

    Attributes
    ----------
    features : int
    names : tuple of str or None
        Parameter names, where the columns have any.
    support : list
        One entry a column in the grammar of :func:`sbi_flows.bijections.support.parse_support`.
    box : bool
        Whether the density is known to be positive everywhere inside ``support``. Otherwise parts of it may be forbidden (a triangle in
        a square), and only ``log_prob`` tells which.
    discrete : dict of int to tuple of float
        The values of columns that have only some, which count as real in ``support``; their probabilities are part of ``log_prob``.
    notes : tuple of str
        What was found out about a density that came as functions, for the reports of those who use it.
    """

    box = True
    discrete: Mapping[int, tuple[float, ...]] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    def __init__(self, features: int, names: Sequence[str] | None = None, support=None):
        super().__init__()
        if features < 1:
            raise ValueError(f"Expected at least one column; got features={features}.")
        if isinstance(names, str):
            raise ValueError(f"Expected names as a list, one a column; got the text {names!r}. For one column pass [{names!r}].")
        if names is not None and len(names) != features:
            raise ValueError(f"Expected {features} names, one a column; got {len(names)}: {', '.join(names)}.")
        self.features = features
        self.names = None if names is None else tuple(names)
        self._columns = parse_support(support, features, self.names)
        # Carries the dtype and device of densities that have no other number to carry them.
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    _anchor: Tensor

    def __repr__(self) -> str:
        names = [f"column {j}" for j in range(self.features)] if self.names is None else self.names
        told = [f"{name}: {self._told(j)}" for j, name in zip(range(_TOLD), names, strict=False)]
        more = [] if self.features <= _TOLD else [f"and {self.features - _TOLD} more"]
        return f"{type(self).__name__}({', '.join([*told, *more])})"

    def _told(self, j: int) -> str:
        return f"one of {len(self.discrete[j])} values" if j in self.discrete else str(self.support[j])

    @property
    def support(self) -> list:
        return [grammar(column) for column in self._columns]

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``(n, d)`` draws."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised natural-log density of ``x (n, d)``, shape ``(n,)``; -inf outside the support."""

    def _check(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x)
        if x.ndim != 2 or x.shape[1] != self.features:
            hint = "For a single point pass x[None]." if x.ndim == 1 and x.shape[0] == self.features else "Rows are points."
            raise ValueError(f"Expected x of shape (n, {self.features}); got {tuple(x.shape)}. {hint}")
        return x.to(self._anchor)


def grammar(column: ColumnSupport):
    """The entry of the support grammar that :func:`parse_support` read, with infinite ends written out."""
    entry = column.entry
    if isinstance(entry, str):
        return entry
    return ("circular", column.low, column.high) if column.kind == "circular" else (column.low, column.high)
