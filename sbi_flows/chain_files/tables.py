"""Tables with named columns: CSV, which says no more than its names do, and parquet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sbi_flows.chain_files.reading import Reading
from sbi_flows.chain_files.text import read_table

MARK = "sbi_flows"
SUFFIXES = (".csv", ".parquet")
POSTERIOR = ("log_posterior", "logposterior", "log_post", "logpost", "lnpost")
LIKELIHOOD = ("log_likelihood", "loglikelihood", "log_like", "loglike", "lnlike", "logl", "lnl")
UNSAID = ("lp", "lp__", "log_prob", "logprob", "lnprob", "logp", "lnp")


def read(path: Path) -> Reading:
    """Columns ``chain``, ``draw`` and ``weight`` are what they are called; a log-density is taken at its name's word or asked about."""
    names, table, description = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    if len(set(names)) != len(names):
        raise ValueError(f"Expected columns of different names in {path}; got {', '.join(names)}.")
    column = {name: table[:, i] for i, name in enumerate(names)}
    order, starts = _chains(column)
    lowered = {name.lower(): name for name in reversed(names)}

    def of(name: str) -> list[np.ndarray]:
        return np.split(column[name][order], starts)

    columns, taken = {}, {"chain", "draw"}
    for meaning, known in (("log_posterior", POSTERIOR), ("log_likelihood", LIKELIHOOD), ("weight", ("weight", "weights"))):
        found = next((lowered[name] for name in known if name in lowered), None)
        if found is not None:
            columns[meaning] = of(found)
            taken.add(found)
    unsaid = next((lowered[name] for name in UNSAID if name in lowered), None)
    if unsaid is not None:
        taken.add(unsaid)
    stats = description.get("stats", [name for name in names if name.endswith("__") and name not in taken])
    columns |= {name: of(name) for name in stats}
    kept = [name for name in names if name not in taken and name not in stats]
    if not kept:
        raise ValueError(f"{path} has no column that could be a parameter; its columns are {', '.join(names)}.")
    x = table[:, [names.index(name) for name in kept]][order]
    return Reading(
        format="table",
        files=[path],
        names=kept,
        samples=np.split(x, starts),
        columns=columns,
        unsaid=None if unsaid is None else of(unsaid),
        unsaid_name=unsaid or "",
        derived=description.get("derived", []),
        bounds={name: (float(low), float(high)) for name, (low, high) in description.get("bounds", {}).items()},
        labels=description.get("labels", {}),
        ensemble=description.get("ensemble", False),
        independent=description.get("independent", False),
    )


def _chains(column: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows by chain and draw, and where a new chain starts in it."""
    n = len(next(iter(column.values())))
    draw = column.get("draw", np.arange(n))
    if "chain" not in column:
        return np.argsort(draw, kind="stable"), np.array([], dtype=int)
    order = np.lexsort((draw, column["chain"]))
    return order, np.flatnonzero(np.diff(column["chain"][order])) + 1


def _csv(path: Path) -> tuple[list[str], np.ndarray, dict]:
    description: dict = {}
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        skipped = 0
        for line in file:
            skipped += 1
            if line.startswith(f"# {MARK} "):
                description = json.loads(line[len(MARK) + 3 :])
            elif line.strip() and not line.startswith("#"):
                break
        else:
            raise ValueError(f"Expected a line of column names in {path}; the file holds none.")
    names = [name.strip().strip('"') for name in line.rstrip("\n").split(",")]
    if all(_is_number(name) for name in names):
        raise ValueError(f"Expected column names in the first line of {path}; it holds numbers. Add a line of names.")
    return names, read_table(path, delimiter=",", skip=skipped, columns=len(names)), description


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> tuple[list[str], np.ndarray, dict]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError(f"Reading {path.name} needs pyarrow: pip install 'sbi_flows[chains]'.") from None
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or truncated, or no parquet file ({error}). Restore it from a copy.") from None
    types = pyarrow.types
    names = [field.name for field in table.schema if types.is_floating(field.type) or types.is_integer(field.type)]
    if not names or not table.num_rows:
        raise ValueError(f"Expected columns of numbers in {path}; there are none.")
    mark = (table.schema.metadata or {}).get(MARK.encode())
    values = np.column_stack([table.column(name).to_numpy().astype(np.float64) for name in names])
    return names, values, json.loads(mark) if mark else {}
