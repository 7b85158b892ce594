"""What is odd about rows read from disk: NaN, rows that nobody wrote, chunks that are missing; told in the verdict of the fit."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

_MANY_EMPTY = 1e-3  # share of rows: of continuous data no row is exactly the fill value
_DISCRETE = 0.05  # share of distinct rows below which rows of zeros are values like others, not gaps
_ROWS_COMPARED = 256  # of a block


@dataclass(frozen=True)
class Findings:
    """Reasons against a fit and notes on it that its data give; ``unusable`` names rows that leave steps without a finite loss."""

    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unusable: str = ""


@runtime_checkable
class Watching(Protocol):
    """A source that looks at the rows it reads."""

    def findings(self) -> Findings:
        """What it has found so far."""
        ...


def findings_of(source: Any) -> Findings:
    """What a source has found; nothing of one that does not look."""
    return source.findings() if isinstance(source, Watching) else Findings()


class RowWatch:
    """Counts of each block the first time it is read.

    Parameters
    ----------
    arrays : dict of name to array on disk
    """

    def __init__(self, arrays: dict[str, Any]):
        self._arrays = arrays
        self._fill = {name: _fill_value(array) for name, array in arrays.items()}
        self._blocks: dict[int, dict[str, int]] = {}
        self._first_bad: dict[str, int] = {}
        self._values: set[bytes] = set()  # of rows beside empty ones

    def look(self, start: int, rows: dict[str, Tensor]) -> None:
        """Count the block that begins at row ``start``, unless it was counted before."""
        if start in self._blocks:
            return
        counts = {"rows": len(rows["x"])}
        for name in rows.keys() - {"weights"}:
            bad = ~rows[name].isfinite().flatten(1).all(dim=1)
            counts[f"bad {name}"] = int(bad.sum())
            if counts[f"bad {name}"]:
                self._first_bad[name] = min(start + int(bad.int().argmax()), self._first_bad.get(name, start + len(bad)))
        empty = {name: (rows[name] == self._fill[name]).flatten(1).all(dim=1) for name in rows.keys() - {"weights"}}
        counts |= {f"empty {name}": int(which.sum()) for name, which in empty.items()}
        if counts["empty x"]:
            others = rows["x"][~empty["x"]][:_ROWS_COMPARED].numpy()
            counts["others"] = len(others)
            self._values.update(row.tobytes() for row in others)
        self._blocks[start] = counts

    def findings(self) -> Findings:
        """What the blocks seen so far, and the chunks of the files, say."""
        if not self._blocks:
            return Findings()
        n = self._total("rows")
        reasons = [*self._empty_rows(n)]
        notes: list[str] = []
        many = {name: self._total(f"empty {name}") > _MANY_EMPTY * n for name in self._arrays}
        for name, array in self._arrays.items():
            missing, chunks = unwritten_chunks(array)
            if missing:
                # Zarr leaves out chunks that hold nothing but the fill value, which padding of a context or weights of zero may be.
                harmless = hasattr(array, "nchunks_initialized") and (name == "weights" or (name == "context" and not many[name]))
                text = f"{missing} of {chunks} chunks of {name} were never written or are lost, and read as the fill value"
                (notes if harmless else reasons).append(text)
        firsts = sorted(self._first_bad.items())
        bad = [f"{self._total(f'bad {name}')} of {n} rows of {name} (the first in row {first})" for name, first in firsts]
        unusable = f"rows with NaN or infinite values: {', '.join(bad)}; take them out of the arrays" if bad else ""
        return Findings(tuple(reasons), tuple(notes), unusable)

    def _total(self, key: str) -> int:
        return sum(counts.get(key, 0) for counts in self._blocks.values())

    def _empty_rows(self, n: int) -> list[str]:
        n_empty = self._total("empty x")
        if n_empty <= _MANY_EMPTY * n or len(self._values) < _DISCRETE * self._total("others"):
            return []
        return [
            f"{n_empty} of {n} rows of x are exactly {self._fill['x']:g} in every column, as rows read that were never written: "
            "look whether the file is complete, or leave these rows out"
        ]


def unwritten_chunks(array: Any) -> tuple[int, int]:
    """Chunks of an HDF5 or Zarr array that no file holds, and how many there are; (0, 0) where the library cannot say."""
    if hasattr(array, "nchunks_initialized"):
        return int(array.nchunks) - int(array.nchunks_initialized), int(array.nchunks)
    if getattr(array, "chunks", None) and hasattr(getattr(array, "id", None), "get_num_chunks"):
        total = prod(ceil(n / size) for n, size in zip(array.shape, array.chunks, strict=True))
        return total - int(array.id.get_num_chunks()), total
    return 0, 0


def _fill_value(array: Any) -> float:
    value = getattr(array, "fill_value", None)
    value = getattr(array, "fillvalue", None) if value is None else value
    return 0.0 if value is None else float(value)
