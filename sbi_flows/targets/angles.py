"""Columns that are angles: which they are, their range, and priors whose two ends are one point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sbi_flows.bijections.spline import wrap
from sbi_flows.bijections.support import ColumnSupport, SupportEntry, parse_support
from sbi_flows.distributions import Distribution
from sbi_flows.distributions.base import grammar

if TYPE_CHECKING:
    from sbi_flows.targets.base import Target


def circular_columns(target: Target) -> Tensor:
    """Which columns are angles, ``(d,)`` bool. Kernels see them on [-pi, pi) (:func:`sbi_flows.targets.unconstrained`)."""
    return torch.tensor([column.kind == "circular" for column in target._columns])


def wrap_angles(x: Tensor, circular: Tensor) -> Tensor:
    """``x (n, d)`` with its ``circular`` columns brought back to [-pi, pi)."""
    return torch.where(circular, wrap(x), x) if bool(circular.any()) else x


def with_angles(prior: Distribution, support: Any, names: Sequence[str] | None) -> list[SupportEntry]:
    """A prior's support with the angles that a user names; ``ValueError`` where the two do not agree."""
    own = parse_support(prior.support, prior.features, names)
    if isinstance(support, Mapping):
        support = [support.get(name, grammar(column)) for name, column in zip(_known(support, names), own, strict=True)]
    entries = [support] * prior.features if isinstance(support, str) else list(support)
    asked = parse_support(entries, prior.features, names)
    labels = names or [f"column {j}" for j in range(prior.features)]
    return [_joined(*column) for column in zip(labels, entries, asked, own, strict=True)]


def _known(support: Mapping[str, Any], names: Sequence[str] | None) -> Sequence[str]:
    if names is None or not set(support) <= set(names):
        known = "none, as the prior has no names" if names is None else ", ".join(names)
        raise ValueError(f"Expected support of the parameters by name ({known}); got {', '.join(map(str, support))}.")
    return names


def _joined(name: str, entry: Any, asked: ColumnSupport, own: ColumnSupport) -> SupportEntry:
    bounded = math.isfinite(own.low) and math.isfinite(own.high)
    same_period = isinstance(entry, str) or math.isclose(asked.high - asked.low, own.high - own.low)
    if bounded and asked.kind == "circular" and same_period:
        return ("circular", own.low, own.high)
    if (asked.kind, asked.low, asked.high) != (own.kind, own.low, own.high):
        raise ValueError(
            f"Expected the support of {name} to be the prior's, {grammar(own)!r}, or 'circular' where that has two ends; got {entry!r}. "
            "Change the prior."
        )
    return grammar(own)
