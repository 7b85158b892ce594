"""``sbi-flows fit``, ``sample`` and ``density``: a flow fitted to rows, its draws and its values."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sbi_flows.cli import options, output

if TYPE_CHECKING:
    import pandas

Model = Annotated[Path, typer.Argument(help="A file that 'sbi-flows fit' or FlowDensity.save wrote.")]
Table = Annotated[Path | None, typer.Option("--output", "-o", help="A .csv or .parquet file.", show_default="standard output, as CSV")]


def fit(
    data: Annotated[Path, typer.Argument(help="Rows: CSV or parquet with named columns, .npy (n, d), or chains.")],
    model: Annotated[Path, typer.Option("--output", "-o", help="Where to write the fitted density.")] = Path("density.safetensors"),
    flow: Annotated[str, typer.Option("--flow", help="nsf, nsf-coupling, maf, realnvp, cnf or score.")] = "nsf",
    bounds: Annotated[
        list[str] | None,
        typer.Option("--bounds", metavar="NAME=LOW:HIGH", help="Ends of a column, which no draw leaves; overrule the files'. Repeatable."),
    ] = None,
    max_epochs: Annotated[int | None, typer.Option("--max-epochs", min=1, help="Of the training.", show_default="by the rows")] = None,
    burn: options.Burn = 0.0,
    format: options.Format = None,
    parameters: options.Parameters = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Fit a density to rows and write it to a file."""
    from sbi_flows.estimators import FlowDensity

    frame, known = _rows(data, burn, format, parameters, seed)
    ends = {**known, **options.ends(bounds)}
    unknown = [name for name in ends if name not in frame.columns]
    if unknown:
        raise ValueError(f"Expected --bounds of {', '.join(frame.columns)}; got one of {', '.join(unknown)}.")
    if not model.absolute().parent.is_dir():
        raise FileNotFoundError(f"Expected an existing folder to write {model.name} in; {model.absolute().parent} does not exist.")
    # A dict of supports names some columns; the others are real.
    support = {name: "real" if math.isinf(low) and math.isinf(high) else (low, high) for name, (low, high) in ends.items()}
    epochs: int | str = "auto" if max_epochs is None else max_epochs
    density = FlowDensity(flow=flow, support=support or None, max_epochs=epochs, random_state=seed)
    with output.working(f"Fitting {len(frame)} rows of {frame.shape[1]} columns"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its verdict says the same
        density.fit(frame)
    density.save(model)
    history = density.history_
    best = [history.validation_loss[epoch, member] for member, epoch in enumerate(history.best_epoch)] if len(history.learning_rate) else []
    loss = sum(best) / len(best) if best else None
    if json:
        content = {"model": str(model), "n": len(frame), "columns": list(frame.columns), "loss": history.loss, "validation_loss": loss}
        output.emit(content | {"seconds": history.seconds, **output.verdict(history.reliability)})
    else:
        typer.echo(f"{model}: {flow} of {', '.join(frame.columns)}, {len(frame)} rows, {history.seconds:.1f} s, {history.stopped}")
        output.show_verdict(history.reliability)
    output.end(history.reliability)


def sample(
    model: Model,
    n: Annotated[int, typer.Option("-n", "--n-samples", min=1, help="How many.")] = 1000,
    target: Table = None,
    seed: options.Seed = 0,
) -> None:
    """Draw rows from a fitted density."""
    import pandas as pd

    from sbi_flows.estimators import FlowDensity

    drawn = FlowDensity.load(model).sample(n, random_state=seed)
    _write(drawn if isinstance(drawn, pd.DataFrame) else pd.DataFrame(drawn, columns=[f"x{i}" for i in range(drawn.shape[1])]), target)


def density(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Rows to evaluate: CSV or parquet with the columns of the fit, or .npy (n, d).")],
    target: Table = None,
) -> None:
    """The natural log of a fitted density at rows: one column log_prob, per unit volume of the data."""
    import pandas as pd

    from sbi_flows.estimators import FlowDensity

    fitted = FlowDensity.load(model)
    frame, _ = _rows(data)
    names = [str(name) for name in getattr(fitted, "feature_names_in_", frame.columns)]
    missing = [name for name in names if name not in frame.columns]
    if missing and data.suffix != ".npy":
        raise ValueError(f"Expected the columns of the fit, {', '.join(names)}; {data} lacks {', '.join(missing)}.")
    if frame.shape[1] < len(names):
        raise ValueError(f"Expected {len(names)} columns in {data}, as in the fit; got {frame.shape[1]}.")
    rows = frame[names] if not missing else frame.set_axis(names, axis=1)
    values = fitted.log_prob(rows if hasattr(fitted, "feature_names_in_") else rows.to_numpy())
    _write(pd.DataFrame({"log_prob": values}), target)


def _rows(
    path: Path, burn: float = 0, format: str | None = None, parameters: str | None = None, seed: int = 0
) -> tuple[pandas.DataFrame, dict[str, tuple[float, float]]]:
    """Rows of equal weight with their column names, and the bounds that their file knows."""
    import numpy as np
    import pandas as pd

    if path.suffix != ".npy":
        chains = options.read(path, burn, "none", format, parameters)
        return chains.unweighted(seed).to_dataframe(), {name: ends for name, ends in chains.bounds.items() if name in chains.names}
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Check the path.")
    rows = np.load(path, allow_pickle=False)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise ValueError(f"Expected numbers of shape (n, d) in {path}; got {rows.dtype} of shape {rows.shape}.")
    return pd.DataFrame(rows, columns=[f"x{i}" for i in range(rows.shape[1])]), {}


def _write(frame: pandas.DataFrame, target: Path | None) -> None:
    from sbi_flows._files import write_atomic

    if target is None:
        typer.echo(frame.to_csv(index=False), nl=False)
        return
    if target.suffix not in (".csv", ".parquet"):
        raise ValueError(f"Expected --output to end in .csv or .parquet; got {target.name}.")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"Expected an existing folder to write {target.name} in; {target.absolute().parent} does not exist.")
    content = frame.to_csv(index=False).encode() if target.suffix == ".csv" else frame.to_parquet(index=False)
    write_atomic(target, content)
    typer.echo(f"{len(frame)} rows in {target}", err=True)
