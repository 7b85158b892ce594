"""``sbi-flows evidence``, ``compare`` and ``diagnose``: chains that somebody else ran."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sbi_flows.cli import options, output

if TYPE_CHECKING:
    from sbi_flows.results import Chains, Evidence

Path_ = Annotated[Path, typer.Argument(metavar="CHAINS", help="A chain file, its folder, or the root its names begin with.")]
Bounds = Annotated[
    list[str] | None,
    typer.Option("--bounds", metavar="NAME=LOW:HIGH", help="Ends of a parameter; overrule those of the files. Repeatable."),
]
FlatPrior = Annotated[
    bool,
    typer.Option("--flat-prior", help="The prior is uniform between the bounds: ln posterior is ln likelihood less ln of their volume."),
]


def evidence(
    chains: Path_,
    burn: options.Burn = 0.0,
    log_column: options.LogColumn = None,
    format: options.Format = None,
    parameters: options.Parameters = None,
    bounds: Bounds = None,
    flat_prior: FlatPrior = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """The Bayesian evidence of chains, with its error and a verdict."""
    loaded = _prepared(options.read(chains, burn, log_column, format, parameters), bounds, flat_prior)
    result = _evidence(loaded, seed, "Fitting flows to the chains")
    if json:
        about = {"names": loaded.names, "format": loaded.info["format"], "n_draws": int(loaded.lengths.sum())}
        output.emit(_record(result) | about)
    else:
        typer.echo(f"{loaded}\n{result}")
    output.end(result.reliability)


def compare(
    chains: Annotated[list[Path], typer.Argument(metavar="A B ...", help="Chains of two or more models, for the same data.")],
    names: Annotated[str | None, typer.Option("--names", help="Of the models, joined by commas.", show_default="of the paths")] = None,
    burn: options.Burn = 0.0,
    log_column: options.LogColumn = None,
    format: options.Format = None,
    bounds: Bounds = None,
    flat_prior: FlatPrior = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Bayes factors and probabilities of models from their chains; the first is the reference."""
    from sbi_flows.model_evidence import compare_models

    labels = options.split(names) or [path.name for path in chains]
    if len(chains) < 2 or len(labels) != len(chains) or len(set(labels)) != len(labels):
        raise ValueError(
            f"Expected two or more chains, each with a name of its own; got {len(chains)} named {', '.join(labels)}. Say --names."
        )
    evidences = {}
    for label, path in zip(labels, chains, strict=True):
        loaded = _prepared(options.read(path, burn, log_column, format), bounds, flat_prior)
        evidences[label] = _evidence(loaded, seed, f"Fitting flows to {label}")
    table = compare_models(evidences)
    if json:
        rows = table.drop(columns=["reasons"]).reset_index().astype(object).where(lambda frame: frame.notna(), None).to_dict("records")
        models = {label: _record(result) for label, result in evidences.items()}
        output.emit({"models": models, "comparison": rows, "reliable": bool(table["reliable"].all())})
    else:
        _print_comparison(table, evidences)
    if not table["reliable"].all():
        raise typer.Exit(output.NOT_OK)


def diagnose(
    chains: Path_,
    other: Annotated[Path | None, typer.Argument(metavar="OTHER", help="A second run to compare with the first.")] = None,
    burn: options.Burn = 0.0,
    format: options.Format = None,
    parameters: options.Parameters = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Whether chains have converged; with a second run, whether the two agree."""
    from sbi_flows.diagnostics import compare_chains
    from sbi_flows.samplers.convergence import convergence

    runs = [options.read(path, burn, "none", format, parameters) for path in (chains, other) if path is not None]
    if len(runs) == 2:
        with output.working("Comparing"):
            comparison = compare_chains(*runs, labels=(chains.name, other.name if other else ""), random_state=seed)
        table, reliability, text = comparison.table, comparison.reliability, repr(comparison)
        rows = table.rename_axis("parameter").reset_index().to_dict("records")
        content: dict[str, Any] = {"parameters": rows, "verdict": comparison.verdict, "p_value": comparison.p_value}
    else:
        run = runs[0].unweighted(seed).rectangular()
        judged = convergence(run.samples, run.names)
        reliability = replace(judged.reliability, notes=(*judged.reliability.notes, *_told(runs[0])))
        rows = [
            {"parameter": name, "mean": x.mean(), "sd": x.std(), "rhat": r, "ess_bulk": bulk, "ess_tail": tail}
            for name, x, r, bulk, tail in zip(
                run.names, run.samples.reshape(-1, run.features).T, judged.rhat, judged.ess_bulk, judged.ess_tail, strict=True
            )
        ]
        text, content = repr(runs[0]), {"parameters": rows}
    if json:
        output.emit(content | output.verdict(reliability))
    else:
        typer.echo(text)
        if len(runs) == 1:
            _print_rows(rows)
            output.show_verdict(reliability)
    output.end(reliability)


def _told(run: Chains) -> tuple[str, ...]:
    notes = ["walkers of an ensemble are not independent: R-hat between them says little"] if run.ensemble else []
    if run.independent:
        notes.append("draws of nested sampling are no time series: these figures are of draws resampled from them")
    if len(set(run.lengths)) > 1:
        notes.append(f"chains were cut to the last draws of the shortest, {run.lengths.min()} rows")
    return tuple(notes)


def _prepared(chains: Chains, bounds: list[str] | None, flat_prior: bool) -> Chains:
    """Chains with bounds as typed and a ln posterior where the prior is said to be flat."""
    from sbi_flows.chain_files import with_flat_prior

    typed = options.ends(bounds)
    unknown = [name for name in typed if name not in chains.names]
    if unknown:
        raise ValueError(f"Expected --bounds of {', '.join(chains.names)}; got one of {', '.join(unknown)}.")
    chains = replace(chains, bounds={**chains.bounds, **typed})
    if flat_prior:
        return with_flat_prior(chains)
    if chains.log_posterior is None and "n_live" not in chains.stats:
        has = "ln likelihood alone" if chains.log_likelihood is not None else "no log-density"
        raise ValueError(
            f"The chains hold {has}; an evidence needs ln posterior = ln L + ln prior. Where the prior is uniform between bounds, add "
            "--flat-prior (and --bounds); else add a column log_posterior to the file."
        )
    return chains


def _evidence(chains: Chains, seed: int, doing: str) -> Evidence:
    from sbi_flows.model_evidence import evidence as compute

    with output.working(doing):
        return compute(chains, random_state=seed)


def _record(result: Evidence) -> dict[str, Any]:
    table = result.by_method.rename_axis("method").reset_index().to_dict("records")
    return {
        "log_z": result.log_z,
        "log_z_err": result.log_z_err,
        "method": result.method,
        **output.verdict(result.reliability),
        "ess": result.ess,
        "pareto_k": result.pareto_k,
        "by_method": table,
        "reported": {name: result.info[name] for name in ("log_z", "log_z_err") if name in result.info},
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "parameter" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(str(value) if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    Console().print(table)


def _print_comparison(table, evidences: dict[str, Evidence]) -> None:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "ln Z", "ln B", "probability", "in words", "verdict"):
        shown.add_column(heading, justify="left" if heading in ("model", "in words") else "right")
    for name, row in table.iterrows():
        probability = "-" if row.posterior_probability != row.posterior_probability else f"{row.posterior_probability:.3g}"
        shown.add_row(
            str(name),
            f"{row.log_z:.3f} ± {row.log_z_err:.2g}",
            f"{row.log_bf:.3f} ± {row.log_bf_err:.2g}" if row.log_bf_err else "reference",
            probability,
            str(row.kass_raftery),
            "[green]ok" if row.reliable else "[red]NOT RELIABLE",
        )
    console = Console()
    console.print(shown)
    for name, result in evidences.items():
        for reason in result.reliability.reasons:
            console.print(f"{name}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
