"""What densities of discrete columns followed by continuous ones share: which columns are which, and the flow of the latter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sbi_flows._validation import choose
from sbi_flows.bijections.linear import Whiten
from sbi_flows.bijections.support import ColumnSupport, parse_support
from sbi_flows.flows.base import Flow
from sbi_flows.flows.discrete import maf, nsf, realnvp

_CONTINUOUS: dict[str, Callable[..., Flow]] = {"nsf": nsf, "maf": maf, "realnvp": realnvp}


class PartlyDiscrete(nn.Module, ABC):
    """Base of :class:`sbi_flows.flows.MixedFlow` and :class:`sbi_flows.flows.CountFlow`: p(k_1) p(k_2 | k_1) ... p(y | k).

    Parameters
    ----------
    features, context : int
    discrete : collection of int
        The columns that have probabilities instead of densities.
    continuous : Flow or None
        Of the other columns.
    spec : mapping
        What :func:`sbi_flows.flows.build` makes it from again.

    Attributes
    ----------
    columns : tuple of ColumnSupport
        Where the columns live; discrete ones count as real.
    rest : list of int
        The continuous columns.
    """

    data_dtype = torch.float64

    def __init__(self, features: int, context: int, discrete: Collection[int], continuous: Flow | None, spec: Mapping[str, Any]):
        super().__init__()
        self.features, self.context_features, self.spec = features, context, dict(spec)
        self.rest = [j for j in range(features) if j not in discrete]
        self.continuous = continuous
        self.context_scaling = Whiten(context, method="standard") if context else None
        real = parse_support(None, features)
        inner = iter(continuous.support.support if continuous is not None else ())
        self.columns: tuple[ColumnSupport, ...] = tuple(next(inner) if j in self.rest else real[j] for j in range(features))

    @abstractmethod
    def fit_scaling(
        self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None, *, regress: bool = True
    ) -> Self:
        """Set the standardisation from rows ``x (n, features)``, as :meth:`sbi_flows.flows.Flow.fit_scaling` does."""

    @abstractmethod
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log of probability times density ``(n,)``; -inf where a discrete column has a value that it cannot have."""

    @abstractmethod
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log density, ``(n, features)`` and ``(n,)``."""

    @abstractmethod
    def _seen_by_rest(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The context of the continuous part, for rows ``x (n, features)``."""

    def log_prob_error(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The integration error of the continuous part, ``(n,)``; zeros for flows that integrate nothing."""
        if self.continuous is None:
            return torch.zeros_like(x[:, 0])
        x = x.to(self._device, self.data_dtype)
        return self.continuous.log_prob_error(x[:, self.rest], self._seen_by_rest(x, context))

    def sample(self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """``(n, features)`` draws in float64; context ``(1, c)`` is shared, ``(n, c)`` gives one draw a row."""
        return self.sample_and_log_prob(n, context, generator=generator)[0]

    def _scaled(self, context: Tensor | None) -> Tensor | None:
        """The standardised context ``(n, c)`` in float64."""
        if context is None or self.context_scaling is None:
            return None
        return self.context_scaling.forward_and_log_det(context.to(self._device))[0]

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


def continuous_part(
    flow: str, places: Sequence[ColumnSupport], discrete: Collection[int], seen: int, settings: Mapping[str, Any]
) -> Flow | None:
    """The flow ("nsf", "maf" or "realnvp") of the columns that are not discrete, given ``seen`` numbers; None where none is left."""
    choose("flow", flow, list(_CONTINUOUS))
    rest = [j for j in range(len(places)) if j not in discrete]
    if not rest:
        return None
    return _CONTINUOUS[flow](len(rest), seen, support=[places[j].entry for j in rest], **settings)
