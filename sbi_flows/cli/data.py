"""``sbi-flows datasets``: the registry of public data."""

from __future__ import annotations

from typing import Annotated

import typer

from sbi_flows.cli import options, output

app = typer.Typer(help="Public data: what there is, where it lies, and how to get it.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="As 'sbi-flows datasets list' shows it.")]


@app.callback()
def datasets() -> None:
    """Public data: what there is, where it lies, and how to get it."""


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List the registry; * marks what is on this machine."""
    from sbi_flows import datasets

    entries = [(datasets.REGISTRY[name], datasets.where(name)) for name in datasets.names()]
    if json:
        rows = [{"name": d.name, "path": None if path is None else str(path), "url": d.url, "citation": d.citation} for d, path in entries]
        output.emit({"datasets": rows})
        return
    for dataset, path in entries:
        typer.echo(f"{'*' if path else ' '} {dataset.name}\n      {dataset.citation}")


@app.command()
def fetch(name: Name) -> None:
    """Get one file, checked against its SHA-256, and print where it lies."""
    from sbi_flows import datasets

    typer.echo(datasets.fetch(name))


@app.command()
def where(name: Name) -> None:
    """Print where a file lies; status 1 when it is not on this machine."""
    from sbi_flows import datasets

    path = datasets.where(name)
    if path is None:
        typer.echo(f"{name} is not on this machine: sbi-flows datasets fetch {name}", err=True)
        raise typer.Exit(1)
    typer.echo(path)
