"""Tables of numbers in text files, as many samplers write them; what is wrong with one is said by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def read_table(path: Path, *, delimiter: str | None = None, skip: int = 0, columns: int | None = None) -> np.ndarray:
    """All rows of a table, ``(n, columns)`` in float64, to the last bit; lines that begin with # are left out.

    Parameters
    ----------
    path : Path
    delimiter : str, optional
        Between numbers; white space by default.
    skip : int
        Lines of heading.
    columns : int, optional
        As many there must be; by default as the first row has.

    Raises
    ------
    ValueError
        Where the file is empty, a line is cut off, or something is not a number.
    """
    if not any(_data_lines(path, skip)):
        raise ValueError(f"Expected chains in {path}; the file holds no rows. Was the run stopped before its first write?")
    try:
        table = np.loadtxt(path, ndmin=2, delimiter=delimiter, skiprows=skip, encoding="utf-8")
    except ValueError as error:
        raise ValueError(_first_fault(path, delimiter, skip, columns) or f"{path} is not a table of numbers ({error}).") from None
    if columns is not None and table.shape[1] != columns:
        raise ValueError(f"The heading of {path} names {columns} columns, its rows have {table.shape[1]}.")
    if not _ends_a_line(path):
        raise ValueError(f"{path} ends in the middle of a line: its last number may be cut off. {_remedy(path)}")
    return table


def header_names(path: Path) -> list[str]:
    """Column names of a first line that begins with #, or none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    return first[1:].split() if first.startswith("#") else []


def read_lines(path: Path) -> list[str]:
    """Lines of a small text file that are neither empty nor comments, stripped."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"Expected {path} to be text; it is not. Was it mixed up with another file?") from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _data_lines(path: Path, skip: int) -> Iterator[bool]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (bool(line.split("#")[0].strip()) for number, line in enumerate(file) if number >= skip)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _remedy(path: Path) -> str:
    return f"If the run was killed while it wrote, remove that line, as by: sed -i '$d' {path.name}"


def _first_fault(path: Path, delimiter: str | None, skip: int, columns: int | None) -> str:
    """The first line that is not as many numbers as the first one, in words; empty where there is none."""
    expected, last = columns, 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            fields = line.split("#")[0].strip().split(delimiter)
            if number <= skip or not any(fields):
                continue
            wrong = [entry for entry in fields if not _is_number(entry)]
            if wrong:
                return f"Expected numbers in {path}; line {number} holds {wrong[0][:20]!r}. Is this a chain file?"
            if expected is None:
                expected = len(fields)
            if len(fields) != expected:
                last = number
                text = f"Expected {expected} columns in every line of {path}, as in its first; line {number} has {len(fields)}."
                break
    if not last:
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        total = sum(1 for _ in file)
    if last == total:
        return f"{text} It is the last one: the file is truncated. {_remedy(path)}"
    return f"{text} Were two runs, of different models, written to one file?"


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True
