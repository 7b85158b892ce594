"""``sbi-flows cosmology``: distances and dark energy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sbi_flows.cli import options, output

app = typer.Typer(help="Cosmology.", no_args_is_help=True)


@app.callback()
def cosmology() -> None:
    """Cosmology."""


@app.command(epilog=output.STATUS)
def bao(
    models: Annotated[str, typer.Option(help="Of lcdm, wcdm, w0wacdm, joined by commas.")] = "lcdm,wcdm,w0wacdm",
    routes: Annotated[str, typer.Option(help="Of sampler, chains, emcee, smc, dynesty, grid, joined by commas.")] = "sampler,grid",
    n_effective: Annotated[int, typer.Option(help="Independent draws that chains should be worth.")] = 4000,
    folder: Annotated[Path | None, typer.Option("--output", help="Folder for tables and draws, as CSV.", show_default="none")] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Is dark energy a constant? Evidences and parameters of flat universes from the distances of DESI's second data release."""
    from sbi_flows.physics.cosmology import MODELS, compare_bao

    names, by = options.split(models) or [], options.split(routes) or []
    with output.working("evidences of universes"):
        result = compare_bao(names, routes=by, n_effective=n_effective, random_state=seed)
    if folder is not None:
        result.write(folder)
    table = result.to_dataframe()
    priors = {name: MODELS[name].prior_ends for name in dict.fromkeys(table["model"])}
    if json:
        ends = {model: {name: list(pair) for name, pair in columns.items()} for model, columns in priors.items()}
        best = {model: {"chi2": fit.chi2, "n_data": fit.n_data, "at": fit.parameters} for model, fit in result.best_fits.items()}
        content = {"evidences": table.to_dict("records"), "parameters": result.parameters().to_dict("records"), "best_fits": best}
        output.emit({**content, "priors": ends, **output.verdict(result.reliability)})
    else:
        _print(table)
        _print_parameters(result.parameters())
        _print_priors(priors)
        output.show_verdict(result.reliability)
    output.end(result.reliability)


def _print_priors(priors: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Below the table; what a model does not name is fixed in it."""
    typer.echo("Priors, uniform and independent (H0_rd in km/s); Bayes factors depend on them:")
    for model, columns in priors.items():
        typer.echo(f"  {model}: " + ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in columns.items()))
    typer.echo("")


def _print_parameters(rows) -> None:
    """Mean and standard deviation of each parameter, a line a model and route; below, where chi-squared is smallest."""
    names = ["Omega_m", "H0_rd", "w0", "wa"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("model", "route", "Omega_m", "H0_rd, km/s", "w0", "wa", "verdict"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("model", "route") else "right")
    for (model, route), own in rows.groupby(["model", "route"], sort=False):
        shown = {"w0" if row.parameter == "w" else row.parameter: _with_sd(row.mean, row.sd) for row in own.itertuples()}
        verdict = "[green]ok" if own["reliable"].all() else "[red]NOT RELIABLE"
        table.add_row(model, route, *(shown.get(name, "") for name in names), verdict)
    Console().print(table)
    typer.echo("Mean ± standard deviation; the w of wcdm is in the column of w0. Smallest chi-squared found:")
    for model, own in rows.groupby("model", sort=False):
        best = own.drop_duplicates("parameter")
        where = ", ".join(f"{row.parameter} {row.best_fit:.5g}" for row in best.itertuples())
        typer.echo(f"  {model}: {best['chi2'].iloc[0]:.2f} of {best['n_data'].iloc[0]} distances, at {where}")
    typer.echo("")


def _with_sd(mean: float, sd: float) -> str:
    """Two digits of the standard deviation, and the mean to as many decimals."""
    decimals = max(0, 1 - math.floor(math.log10(sd))) if sd > 0 and math.isfinite(sd) else 3
    return f"{mean:.{decimals}f}±{sd:.{decimals}f}"


def _print(rows) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "route", "ln Z", "ln B against LCDM", "s", "verdict"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("model", "route") else "right")
    for row in rows.sort_values("model", kind="stable").itertuples():
        factor = "-" if row.log_bf != row.log_bf or row.model == "lcdm" else f"{row.log_bf:.3f}±{row.log_bf_err:.3f}"
        verdict = "[green]ok" if row.reliable else "[red]NOT RELIABLE"
        table.add_row(row.model, row.route, f"{row.log_z:.3f}±{row.log_z_err:.3f}", factor, f"{row.seconds:.0f}", verdict)
    Console().print(table)
