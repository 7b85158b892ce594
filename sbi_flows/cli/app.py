"""The root of the command line and how it ends."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from sbi_flows import __version__
from sbi_flows.cli import pta

app = typer.Typer(
    help="Densities, posteriors and evidences for physics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(pta.app, name="pta")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sbi_flows {__version__}")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    """Densities, posteriors and evidences for physics."""


def main() -> None:
    """Run the command; bad input ends with a plain message and exit status 2, Ctrl-C with 130."""
    try:
        app()
    except (ValueError, FileNotFoundError, PermissionError, NotADirectoryError, FileExistsError) as error:
        Console(stderr=True).print(f"Error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
