"""The root of the command line and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console

from sbi_flows import __version__
from sbi_flows.cli import chains, cosmology, data, doctor, flows, pta
from sbi_flows.cli.output import STATUS

app = typer.Typer(
    help="Densities, posteriors and evidences for physics.",
    epilog=STATUS,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "evidence": chains.evidence,
    "compare": chains.compare,
    "diagnose": chains.diagnose,
    "fit": flows.fit,
    "sample": flows.sample,
    "density": flows.density,
    "doctor": doctor.doctor,
}
EXAMPLES = {
    "evidence": (
        "sbi-flows evidence chains/ --burn 0.25",
        "sbi-flows evidence cobaya/run --burn 0.3 --json",
        "sbi-flows evidence run.h5 --burn 2000 --bounds gamma=0:7",
        "sbi-flows evidence montepython/run --log-column likelihood --flat-prior",
    ),
    "compare": ("sbi-flows compare smbhb/ strings/ --burn 0.25", "sbi-flows compare lcdm w0wa --names LCDM,w0waCDM --json"),
    "diagnose": ("sbi-flows diagnose cobaya/run --burn 0.3", "sbi-flows diagnose run1/ run2/ --burn 0.25"),
    "fit": ("sbi-flows fit draws.csv -o draws.safetensors --bounds mass=0:", "sbi-flows fit chains/ --burn 0.25 --json"),
    "sample": ("sbi-flows sample draws.safetensors -n 10000 -o more.csv",),
    "density": ("sbi-flows density draws.safetensors points.csv > log_prob.csv",),
    "doctor": ("sbi-flows doctor --json",),
}
for _name, _command in _COMMANDS.items():
    app.command(_name, epilog="  \n".join(["Examples:  ", *EXAMPLES[_name], "", STATUS]))(_command)
app.add_typer(pta.app, name="pta")
app.add_typer(cosmology.app, name="cosmology")
app.add_typer(data.app, name="datasets")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sbi_flows {__version__}")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    """Densities, posteriors and evidences for physics."""


def main() -> None:
    """Run the command; bad input ends with a plain message and exit status 2, Ctrl-C with 130.

    Errors of the system are the user's to mend (no permission, a full disk, a folder in place of a file), and so is a missing optional
    package.
    """
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"Error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
