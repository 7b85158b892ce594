"""What commands print, for people and for programs, and the exit status that goes with a verdict."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sbi_flows.reliability import Reliability

STATUS = "Exit status: 0 when the verdict is ok, 1 when it is not, 2 for a mistake in the call or the files, 130 when interrupted."
NOT_OK = 1


def emit(content: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that JSON has no word for are null."""
    typer.echo(json.dumps(_plain(content), indent=2, allow_nan=False))


def end(reliability: Reliability) -> None:
    """Leave with the status of the verdict."""
    if not reliability.ok:
        raise typer.Exit(NOT_OK)


def verdict(reliability: Reliability) -> dict[str, Any]:
    """The keys of a verdict in every JSON object: ``reliable``, ``reasons``, ``notes``."""
    return {"reliable": reliability.ok, "reasons": list(reliability.reasons), "notes": list(reliability.notes)}


def show_verdict(reliability: Reliability) -> None:
    """The verdict in words, red where it is not ok."""
    Console().print(str(reliability), style="green" if reliability.ok else "red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner and the time gone by on standard error while something takes its time, where a person is there to see it."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(what, total=None)
        yield


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
