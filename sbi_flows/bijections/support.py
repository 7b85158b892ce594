"""Where each column lives: the support grammar, and (below) the elementwise bijection from it to the real line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SupportEntry = str | Sequence
KINDS = ("real", "interval", "lower", "upper", "circular", "heavy")
GRAMMAR = (
    "'real', 'heavy', 'circular' (period 2 pi on [-pi, pi)), ('circular', low, high), "
    "(low, high), (low, inf) or (-inf, high)"
)


@dataclass(frozen=True)
class ColumnSupport:
    """The support of one column.

    Attributes
    ----------
    kind : str
        "real", "interval" (two finite ends), "lower" (a lower end only), "upper", "circular" or "heavy" (heavy-tailed real).
    low, high : float
        The ends; infinite where there is none.
    """

    kind: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def entry(self) -> str | list:
        """The same in the grammar, as plain data for JSON: None stands for an infinite end."""
        if self.kind in ("real", "heavy"):
            return self.kind
        if self.kind == "circular":
            return ["circular", self.low, self.high]
        return [end if math.isfinite(end) else None for end in (self.low, self.high)]


def parse_support(
    support: SupportEntry | Mapping[str, SupportEntry] | None, features: int, names: Sequence[str] | None = None
) -> tuple[ColumnSupport, ...]:
    """One :class:`ColumnSupport` a column.

    Parameters
    ----------
    support
        One entry for all columns, a list with one entry a column, a dict by column name (columns left out are real), or None
        (all real). An entry is ``"real"``, ``"heavy"``, ``"circular"`` (period 2 pi on [-pi, pi)), ``("circular", low, high)``,
        ``(low, high)``, ``(low, inf)`` or ``(-inf, high)``; None as an end means infinite.
    features : int
        Number of columns.
    names : sequence of str, optional
        Column names, needed for a dict.

    Raises
    ------
    ValueError
        If an entry is not in the grammar, or the number of entries is not ``features``.

    Examples
    --------
    >>> parse_support([(0, 1), "real"], 2)[0].kind
    'interval'
    """
    if support is None:
        return (ColumnSupport("real"),) * features
    support = _listed(support)
    if isinstance(support, Mapping):
        return _parse_mapping(support, features, names)
    if _is_entry(support):
        return (_parse_entry(support),) * features
    if isinstance(support, str) or not isinstance(support, Sequence):
        raise ValueError(f"Expected a support of the form {GRAMMAR}, or a list of these; got {support!r}.")
    if len(support) != features:
        raise ValueError(
            f"Expected one support entry for each of the {features} columns; got {len(support)}. "
            "Pass a list with one entry a column, or a single entry for all."
        )
    return tuple(_parse_entry(entry) for entry in support)


def _parse_mapping(support, features, names):
    if names is None:
        raise ValueError("A support given by column name needs named columns: pass a DataFrame, or one entry a column.")
    unknown = sorted(set(support) - set(names))
    if unknown:
        raise ValueError(f"The support names columns that are not there: {', '.join(unknown)}. Columns: {', '.join(names)}.")
    if len(names) != features:
        raise ValueError(f"Expected {features} column names; got {len(names)}: {', '.join(names)}.")
    return tuple(_parse_entry(_listed(support.get(name, "real"))) for name in names)


def _listed(value):
    """An array as nested lists, also one inside a list; anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(_listed(item) for item in value)
    return value


def _is_end(value) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool)) or hasattr(value, "__float__")


def _is_entry(entry) -> bool:
    if isinstance(entry, ColumnSupport):
        return True
    if isinstance(entry, str):
        return entry in ("real", "heavy", "circular")
    if not isinstance(entry, Sequence):
        return False
    if len(entry) == 3 and isinstance(entry[0], str) and entry[0] == "circular":
        return all(_is_end(end) for end in entry[1:])
    return len(entry) == 2 and all(_is_end(end) for end in entry)


def _parse_entry(entry) -> ColumnSupport:
    if not _is_entry(entry):
        raise ValueError(f"Expected a support entry of the form {GRAMMAR}; got {entry!r}.")
    if isinstance(entry, ColumnSupport):
        return entry
    if isinstance(entry, str):
        return ColumnSupport(entry, -math.pi, math.pi) if entry == "circular" else ColumnSupport(entry)
    low, high = entry[-2:]
    low = -math.inf if low is None else float(low)
    high = math.inf if high is None else float(high)
    if not low < high:
        raise ValueError(f"Expected low < high in the support {tuple(entry)!r}.")
    if len(entry) == 3:
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"A circular support needs two finite ends; got {tuple(entry)!r}.")
        return ColumnSupport("circular", low, high)
    kind = {(True, True): "interval", (True, False): "lower", (False, True): "upper", (False, False): "real"}
    return ColumnSupport(kind[math.isfinite(low), math.isfinite(high)], low, high)
