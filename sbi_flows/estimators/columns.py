"""What columns of data may look like before a density is fitted to them: errors for the hopeless, notes for the odd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbi_flows._validation import column_names
from sbi_flows.bijections.support import ColumnSupport

_TIED = 0.5  # a column with fewer distinct values than this share of the rows counts as discrete
_ATOM = 0.1  # as does one with a single value in more than this share of the rows
_STUCK = 0.05  # a whole row may fill this share of the rows ...
_STANDS_OUT = 10  # ... or more, as long as the others repeat alike: the longest of n geometric stays is about ln n mean ones
_DEPENDENT = 1e-12  # smallest eigenvalue of the correlation matrix, of which rounding in float64 leaves about 1e-16 d
_CELLS = 100  # a grid has at most this many steps a distinct value: the steps of float32 itself are many more
_FLOAT32_STEPS = 1000  # a column should span at least this many float32 steps


def check_modelled(x: np.ndarray, name: str, names: Sequence[str] | None, dtype: str) -> tuple[list[str], list[str]]:
    """Look at the columns that a density is to be fitted to.

    Parameters
    ----------
    x : ndarray (n, d)
        Finite, float64.
    name : str
        What the user calls it, for messages.
    names : sequence of str or None
        Column names.
    dtype : str
        What the flow will compute in.

    Returns
    -------
    reasons : list of str
        Why the fit cannot be relied on.
    notes : list of str
        What is worth recording.

    Raises
    ------
    ValueError
        For constant columns, and for columns that are linear combinations of others: neither has a density.
    """
    labels = column_names(x.shape[1], names)
    _refuse_constant(x, name, labels, dtype)
    _refuse_dependent(x, name, labels)
    reasons, notes = [], []
    n, d = x.shape
    if n <= d:
        reasons.append(
            f"{name} has n={n} rows for d={d} columns: the correlations between columns cannot be learned from so few; "
            "pass more rows or fewer columns"
        )
    distinct, counts = np.unique(x, axis=0, return_counts=True)
    if len(distinct) < n:
        notes.append(
            f"{1 - len(distinct) / n:.0%} of the rows repeat others (as in MCMC); copies stay on one side of the validation split"
        )
    reasons += _discrete(x if _on_grid(distinct) else distinct, name, labels) or _atom(distinct, counts, name, labels)
    if dtype == "float32":
        reasons += _coarse(x, name, labels)
    return reasons, notes


def names_of(table: Any) -> list[str] | None:
    """Column names of a DataFrame, the name of a Series that has one, else None."""
    if hasattr(table, "columns"):
        return [str(name) for name in table.columns]
    name = getattr(table, "name", None)
    return None if name is None or not hasattr(table, "to_frame") else [str(name)]


def check_names(table: Any, names: Sequence[str] | None, called: str) -> None:
    """``ValueError`` for a DataFrame whose columns are not those of the fit, in their order; what has no names is taken as it comes."""
    if names is None or not hasattr(table, "columns"):
        return
    given = names_of(table)
    if given == list(names):
        return
    what = "in another order" if sorted(given or []) == sorted(names) else "others"
    raise ValueError(
        f"Expected {called} with the columns of the fit, {', '.join(names)}; got {what}: {', '.join(given or [])}. "
        f"Pass {called}[{list(names)!r}]."
    )


def check_condition(x: np.ndarray, name: str, names: Sequence[str] | None) -> list[str]:
    """Notes on the columns a density is conditioned on: constant ones carry nothing, and do no harm."""
    labels = column_names(x.shape[1], names)
    constant = [labels[j] for j in np.flatnonzero(np.ptp(x, axis=0) == 0)]
    if not constant:
        return []
    which = ", ".join(constant[:5]) + (f" and {len(constant) - 5} more" if len(constant) > 5 else "")
    return [f"{name}: {which} constant, so nothing can depend on it; at other values the density is a guess"]


def check_support(x: np.ndarray, columns: Sequence[ColumnSupport], name: str, names: Sequence[str] | None) -> list[str]:
    """Notes on rows at the very edge of the support; ``ValueError`` for rows outside it."""
    labels = column_names(x.shape[1], names)
    notes = []
    for j, column in enumerate(columns):
        outside = (x[:, j] < column.low) | (x[:, j] > column.high)
        if outside.any() and column.kind != "circular":
            row = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"Expected {name} inside its declared support; {labels[j]} has {outside.sum()} of {len(x)} values outside "
                f"({column.low:g}, {column.high:g}), the first {x[row, j]:g} in row {row}. Widen support=, or drop those rows."
            )
        if outside.any():
            notes.append(
                f"{name}: {outside.sum()} angles of {labels[j]} outside [{column.low:g}, {column.high:g}) "
                "are taken modulo the period"
            )
        edge = ((x[:, j] == column.low) | (x[:, j] == column.high)).sum()
        if edge and column.kind != "circular":
            notes.append(
                f"{name}: {edge} values of {labels[j]} lie exactly on the edge of the support and are moved inside by rounding"
            )
    return notes


def _refuse_constant(x: np.ndarray, name: str, labels: list[str], dtype: str) -> None:
    constant = np.flatnonzero(np.ptp(x, axis=0) == 0)
    if len(constant):
        which = ", ".join(f"{labels[j]} = {x[0, j]:g}" for j in constant[:3])
        raise ValueError(f"Expected columns of {name} that vary; got constant {which}. A constant has no density: drop it.")
    stuck = np.flatnonzero(np.ptp(x.astype(dtype), axis=0) == 0)
    if len(stuck):
        which = ", ".join(labels[j] for j in stuck[:3])
        raise ValueError(
            f"Expected columns of {name} that vary; {which} vary by less than {dtype} can hold. "
            "Subtract an offset first, or pass dtype='float64'."
        )


def _refuse_dependent(x: np.ndarray, name: str, labels: list[str]) -> None:
    n, d = x.shape
    if n <= d or d == 1:
        return
    values, vectors = np.linalg.eigh(np.corrcoef(x, rowvar=False))
    if values[0] > _DEPENDENT:
        return
    involved = [labels[j] for j in np.flatnonzero(np.abs(vectors[:, 0]) > 1e-3)]
    what = "are copies of each other up to scale and shift" if len(involved) == 2 else "are linearly dependent"
    raise ValueError(
        f"Expected columns of {name} that are independent of each other; {', '.join(involved)} {what}, "
        "so that no density over all of them exists. Drop one of them."
    )


def _on_grid(distinct: np.ndarray) -> bool:
    """Whether sorted distinct values of one column are whole steps apart: then they repeat by being discrete, not as in MCMC."""
    if distinct.shape[1] > 1:
        return False
    steps = np.diff(distinct[:, 0])
    steps = steps / steps.min()
    if steps.sum() > _CELLS * len(distinct):
        return False
    return np.allclose(steps, np.round(steps), rtol=0, atol=1e-3)


def _atom(distinct: np.ndarray, counts: np.ndarray, name: str, labels: list[str]) -> list[str]:
    """One row that repeats far more than the others do."""
    most, n = counts.max(), counts.sum()
    others = (n - most) / (len(counts) - 1)
    if most <= _STUCK * n or most <= _STANDS_OUT * others:
        return []
    row = distinct[counts.argmax()]
    what = f"{labels[0]} has the value {row[0]:g}" if len(row) == 1 else f"the same row, which starts with {row[0]:g}, is found"
    return [
        f"{name}: {what} in {most / n:.0%} of the rows, where others occur {others:.2g} times; a density there grows without "
        "bound. Leave those rows out and keep their share as a probability of its own"
    ]


def _discrete(rows: np.ndarray, name: str, labels: list[str]) -> list[str]:
    found: list[str] = []
    if len(rows) < 10:
        return found
    for j, label in enumerate(labels):
        values, counts = np.unique(rows[:, j], return_counts=True)
        most = counts.max()
        few, top = len(values) < _TIED * (len(rows) - most), most / len(rows)
        if not few and top <= _ATOM:
            continue
        kind = "whole numbers" if (values == np.round(values)).all() else "values"
        what = f"only {len(values)} distinct {kind}" if few else f"the value {values[counts.argmax()]:g} in {top:.0%} of the rows"
        found.append(
            f"{name}: {label} has {what}; a density of discrete values grows without bound. "
            "It is fitted as if continuous: add noise as wide as the steps for densities that mean something"
        )
    return found


def _coarse(x: np.ndarray, name: str, labels: list[str]) -> list[str]:
    step = np.abs(x).max(axis=0) * np.finfo(np.float32).eps
    return [
        f"{name}: {labels[j]} spans only {np.ptp(x[:, j]) / step[j]:.0f} steps of float32 about {x[:, j].mean():g}: "
        "subtract an offset, or pass dtype='float64'"
        for j in np.flatnonzero(np.ptp(x, axis=0) < _FLOAT32_STEPS * step)
    ]
