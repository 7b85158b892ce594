"""``sbi-flows pta``: pulsar timing."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

app = typer.Typer(help="Pulsar timing arrays.", no_args_is_help=True)


@app.callback()
def pta() -> None:
    """Pulsar timing arrays."""


@app.command()
def models() -> None:
    """List the source models."""
    from sbi_flows.distributions import MultivariateNormal
    from sbi_flows.physics.pta import DEFAULT_MODELS, MODELS

    table = Table("model", "source", "parameters and priors", "citation")
    for model in MODELS.values():
        star = "*" if model.name in DEFAULT_MODELS else ""
        parameters = ", ".join(
            f"{p.name} [{p.low:g}, {p.high:g}]" if p.low is not None and p.high is not None else p.name for p in model.parameters
        )
        if isinstance(model.prior, MultivariateNormal):
            covariance = model.prior.cholesky @ model.prior.cholesky.T
            parameters += f": normal, mean {_plain(model.prior.mean)}, covariance {_plain(covariance)}"
        table.add_row(model.name + star, model.title, parameters, model.citation)
    Console().print(table, "* run by default")


def _plain(numbers: Any) -> str:
    """A tensor as nested lists of numbers of four digits."""
    return json.dumps([float(f"{x:.4g}") if numbers.ndim == 1 else [float(f"{y:.4g}") for y in x] for x in numbers])


@app.command()
def compare(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of freqs.npy, log10rhogrid.npy, density.npy.", show_default="NANOGrav 15-year, 14 bins"),
    ] = None,
    bins: Annotated[int | None, typer.Option(help="How many of the lowest frequency bins enter.", show_default="14")] = None,
    models: Annotated[
        str | None,
        typer.Option(help="Names joined by commas, or 'all'; see 'sbi-flows pta models'.", show_default="ten models"),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            help="Folder for tables, figures and chains. Models finished there with the same settings are not run again and stay in "
            "the tables; a folder of another seed, data, bins or --quick is refused."
        ),
    ] = Path("pta-results"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    n_jobs: Annotated[int | None, typer.Option("--n-jobs", help="Processes, of one thread each.", show_default="one a core")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer draws, for a first look.")] = False,
    sampler: Annotated[str, typer.Option(help="What samples the posterior: emcee, or flow (FlowSampler).")] = "emcee",
) -> None:
    """Rank models of the gravitational-wave background by their evidence."""
    from sbi_flows.physics.pta import DEFAULT_MODELS, MODELS
    from sbi_flows.physics.pta.compare import compare as run
    from sbi_flows.physics.pta.workers import usable_cores

    console = Console()
    names = list(DEFAULT_MODELS) if models is None else [name.strip() for name in models.split(",") if name.strip()]
    names = list(MODELS) if names == ["all"] else names
    began = time.perf_counter()
    jobs = usable_cores() if n_jobs is None else n_jobs
    with _Board(console, len(names)) as board:
        try:
            result = run(
                names, data, n_bins=bins, output=output, seed=seed, n_jobs=jobs, quick=quick, sampler=sampler, on_stage=board.show
            )
        except KeyboardInterrupt:
            board.stop()
            console.print(f"\nStopped. Finished models are in {output}; the same command goes on from there.", style="yellow")
            raise typer.Exit(130) from None
    _print_table(console, result, sampler)
    for name, reason in result.skipped.items():
        console.print(f"Skipped {name}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    finished, seconds = len(result.results), time.perf_counter() - began
    noun = "model" if finished == 1 else "models"
    console.print(f"{finished} {noun} finished, this run in {seconds:.0f} s. Tables, figures, chains: {output}", soft_wrap=True)
    if not result.results or not all(each.reliable for each in result.results.values()):
        raise typer.Exit(1)


@app.command()
def timing(
    models: Annotated[
        str | None,
        typer.Option(help="Names joined by commas, or 'all'; see 'sbi-flows pta models'.", show_default="ten models"),
    ] = None,
    pulsars: Annotated[
        str | None,
        typer.Option(
            help="Names or numbers joined by commas, 'all', a folder of feather files, or 'synthetic' for five that are made up.",
            show_default="ten",
        ),
    ] = None,
    route: Annotated[str, typer.Option(help="npe (amortised network), importance, sampler (FlowSampler), or both.")] = "npe",
    correlation: Annotated[str, typer.Option(help="hd, uncorrelated, monopole or dipole.")] = "hd",
    bins: Annotated[int, typer.Option(help="Lowest frequencies in which the background is heard.")] = 14,
    simulations: Annotated[int | None, typer.Option(help="Skies of each source.", show_default="20000; 2000 with --quick")] = None,
    effective: Annotated[
        int | None, typer.Option(help="Effective draws of each source by each route.", min=1, show_default="4000; 500 with --quick")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(help="Folder for the network, draws, tables, figures and report.html; what is finished there is not run again."),
    ] = Path("pta-timing"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    n_jobs: Annotated[int, typer.Option("--n-jobs", help="Processes, one source each.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Far too little of everything, for a first look.")] = False,
) -> None:
    """Rank models on the timing data: posteriors of the background and of every pulsar's noise, and evidences."""
    from dataclasses import replace

    from sbi_flows.physics.pta import DEFAULT_MODELS, MODELS, read_feathers, synthetic_pulsars
    from sbi_flows.physics.pta.timing_arrays import TEN
    from sbi_flows.physics.pta.timing_compare import FULL, QUICK, compare_timing

    console = Console()
    names = list(DEFAULT_MODELS) if models is None else [name.strip() for name in models.split(",") if name.strip()]
    names = list(MODELS) if names == ["all"] else names
    listed = [] if pulsars is None else [name.strip() for name in pulsars.split(",") if name.strip()]
    chosen = list(TEN) if pulsars is None else pulsars if pulsars == "all" else listed
    array = synthetic_pulsars(5, random_state=seed) if pulsars == "synthetic" else chosen
    if pulsars is not None and pulsars not in ("all", "synthetic") and Path(pulsars).is_dir():
        array = read_feathers(sorted(Path(pulsars).glob("*.feather")))
    network, by_route = QUICK if quick else FULL
    network = network if simulations is None else replace(network, n_simulations=simulations)
    by_route = by_route if effective is None else replace(by_route, n_effective=effective)
    began = time.perf_counter()
    try:
        result = compare_timing(
            names,
            array,
            route=route,
            correlation=correlation,
            n_bins=bins,
            output=output,
            seed=seed,
            n_jobs=n_jobs,
            effort=(network, by_route),
            on_stage=lambda what, stage: console.print(f"{what}: {stage}", highlight=False, markup=False),
        )
    except KeyboardInterrupt:
        console.print(f"\nStopped. What is finished is in {output}; the same command goes on from there.", style="yellow")
        raise typer.Exit(130) from None
    except ConnectionError as error:
        console.print(f"Error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    _print_timing(console, result)
    seconds = time.perf_counter() - began
    console.print(f"This run took {seconds:.0f} s. Network, draws, tables, figures, report.html: {output}", soft_wrap=True)
    if not result.results or not all(each.reliable for each in result.results.values()):
        raise typer.Exit(1)


def _print_timing(console: Console, result) -> None:
    """One line a source and route, best first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in ("route", "ln Z", "ln B", "p", "ESS", "k", "H mean/max", "s", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    ranked = sorted(result.records(), key=lambda record: float("inf") if record["log_z"] is None else -record["log_z"])
    for record in ranked:
        table.add_row(
            record["model"],
            record["route"],
            "-" if record["log_z"] is None else f"{record['log_z']:.2f}±{record['log_z_err']:.2f}",
            "-" if record["log_bf"] is None else f"{record['log_bf']:.2f}",
            "-" if record["probability"] is None else f"{record['probability']:.2g}",
            f"{record['share']:.0%}",
            "-" if record["pareto_k"] is None else f"{record['pareto_k']:.2f}",
            "-" if record["hellinger_mean"] is None else f"{_short(record['hellinger_mean'])}/{_short(record['hellinger_max'])}",
            f"{record['seconds']:.0f}",
            "[green]ok" if record["reliable"] else "[red]NOT RELIABLE",
        )
    if ranked:
        console.print(table)
        console.print(_TIMING_LEGEND, style="dim", highlight=False)
    for record in ranked:
        for reason in record["reasons"]:
            text = f"{record['model']} by {record['route']}: {reason}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        for note in record["notes"]:
            console.print(f"{record['model']} by {record['route']}: {note}", style="dim", markup=False, highlight=False, soft_wrap=True)
    for reason in () if result.classifier is None else result.classifier.reasons:
        console.print(f"p, of the classifier: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    for (name, way), reason in result.skipped.items():
        console.print(f"Skipped {name} by {way}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)


_TIMING_LEGEND = """ln Z is relative to the data without any signal; ln B = ln Z - ln Z of smbhb.
p: probability from the classifier, which sees simulations only. ESS: effective
share of the draws behind ln Z; k: Pareto k of their weights. H: Hellinger
distance between the two routes, mean and largest over all marginals."""

_LEGEND = """ln Z ± one standard error; ln B = ln Z - ln Z of the reference, smbhb.
H: Hellinger distance (0 to 1) of the flow's marginals from those of the
{sampler} chains it was fitted to, mean and largest over the
parameters. floor: what two samples of one distribution show; an H near it is
as good as it can be. s: seconds."""


class _Board:
    """Progress of the models, one line for all and one for each that is being worked on."""

    def __init__(self, console: Console, n_models: int):
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[stage]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._console = console
        self._all = self._progress.add_task("models", total=n_models, stage=f"0 of {n_models}")
        self._tasks: dict[str, TaskID] = {}
        self._n_models, self._done = n_models, 0

    def __enter__(self) -> _Board:
        self._progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, model: str, stage: str) -> None:
        if not stage.startswith(("done", "skipped")):
            if model not in self._tasks:
                self._tasks[model] = self._progress.add_task(f"  {model}", total=None, stage=stage)
            self._progress.update(self._tasks[model], stage=stage)
            return
        if model in self._tasks:
            self._progress.remove_task(self._tasks.pop(model))
        self._done += 1
        self._progress.update(self._all, completed=self._done, stage=f"{self._done} of {self._n_models}")
        self._console.print(f"{model}: {stage}", highlight=False)


def _print_table(console: Console, result, sampler: str) -> None:
    """One line a model, best first; it fits 80 columns, so reasons follow below."""
    from sbi_flows.physics.pta.compare import REFERENCE
    from sbi_flows.physics.pta.pipeline import SAMPLERS

    years = result.data.span / (365.25 * 86400)
    n_bins = len(result.data.frequencies)
    title = f"{n_bins} {'bin' if n_bins == 1 else 'bins'} of {years:.1f} years"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for heading in ("ln Z", "ln B", "H mean/max", "floor", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    ranked = sorted(result.records(), key=lambda record: float("inf") if record["log_z"] is None else -record["log_z"])
    for record in ranked:
        stored = result.results[record["model"]]
        table.add_row(
            record["model"],
            _with_error(record["log_z"], record["log_z_err"]),
            "reference" if record["model"] == REFERENCE else _with_error(record["log_bf"], record["log_bf_err"]),
            f"{_short(stored.hellinger_mean)}/{_short(stored.hellinger_max)}",
            _short(stored.hellinger_floor),
            f"{stored.seconds:.0f}",
            "[green]ok" if stored.reliable else "[red]NOT RELIABLE",
        )
    if ranked:
        console.print(table)
        console.print(_LEGEND.format(sampler=SAMPLERS[sampler]), style="dim", highlight=False)
    for record in ranked:
        for reason in record["reasons"]:
            console.print(f"{record['model']}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    if ranked and REFERENCE not in result.results:
        console.print(f"No ln B: add {REFERENCE} to --models.")


def _short(distance: float) -> str:
    """Three decimals of a number below one, without its zero."""
    return f"{distance:.3f}".removeprefix("0")


def _with_error(value: float | None, error: float | None) -> str:
    """Three decimals, or as many as the error's first digit needs."""
    if value is None:
        return "-"
    if not error:
        return f"{value:.3f}"
    decimals = min(max(3, math.ceil(-math.log10(error))), 8)
    return f"{value:.{decimals}f}±{error:.{decimals}f}"
