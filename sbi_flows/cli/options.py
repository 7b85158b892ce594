"""Options that several commands share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sbi_flows.cli import output

if TYPE_CHECKING:
    from sbi_flows.results import Chains

Burn = Annotated[
    float, typer.Option("--burn", help="Left out at the start of each chain: below 1 a fraction, else a number of rows.", show_default="0")
]
LogColumn = Annotated[
    str | None,
    typer.Option(
        "--log-column",
        help="What the file's log-density is, where it does not say: 'posterior' (ln L + ln prior, both normalised), 'likelihood', 'none'.",
    ),
]
Format = Annotated[str | None, typer.Option("--format", help="Of the files, such as ptmcmc or cobaya.", show_default="found out")]
Parameters = Annotated[
    str | None, typer.Option("--parameters", help="Columns that are parameters, joined by commas.", show_default="as the format says")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def read(path: Path, burn: float = 0, log_column: str | None = None, format: str | None = None, parameters: str | None = None) -> Chains:
    """``load_chains`` with options as they are typed."""
    from sbi_flows.chain_files import load_chains

    with output.working(f"Reading {path}"):
        return load_chains(path, burn=burn, log_column=log_column, format=format, parameters=split(parameters))


def split(names: str | None) -> list[str] | None:
    """Names joined by commas."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def ends(bounds: list[str] | None) -> dict[str, tuple[float, float]]:
    """``name=low:high`` as typed, an end left out where there is none.

    Raises
    ------
    ValueError
        For anything else.
    """
    found = {}
    for entry in bounds or []:
        name, _, pair = entry.partition("=")
        low, colon, high = pair.partition(":")
        try:
            found[name] = (float(low or "-inf"), float(high or "inf"))
        except ValueError:
            colon = ""
        if not name or not colon or not found[name][0] < found[name][1]:
            raise ValueError(f"Expected --bounds name=low:high, as in --bounds gamma=0:7; got {entry!r}.")
    return found
