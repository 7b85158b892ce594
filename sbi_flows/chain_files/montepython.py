"""MontePython: a folder of ``date_steps__1.txt`` files beside ``log.param``; weight, -ln likelihood, parameters.

Priors are flat between the ends that ``log.param`` gives, so that ln posterior is known where every parameter has two.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np

from sbi_flows.chain_files.reading import Reading
from sbi_flows.chain_files.text import read_lines, read_table

_CHAIN = re.compile(r".+__\d+\.txt")
_PARAMETER = re.compile(r"data\.parameters\[['\"](?P<name>[^'\"]+)['\"]\]\s*=\s*(?P<entry>\[.*\])")


def find(path: Path) -> list[Path]:
    """Chain files of a folder, or the file itself, where ``log.param`` is beside them."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "log.param").is_file():
        return []
    if path.is_file():
        return [path] if path.suffix == ".txt" else []
    return sorted(file for file in folder.iterdir() if _CHAIN.fullmatch(file.name)) if path.is_dir() else []


def recognise(path: Path) -> bool:
    return bool(find(path))


def read(path: Path) -> Reading:
    """All chains of a folder, or the one file, in the units of ``log.param``."""
    files = find(path)
    if not files:
        raise FileNotFoundError(f"Expected MontePython's log.param beside its chains in {path}. Copy it from the run's output folder.")
    varied, derived, bounds = _parameters(files[0].with_name("log.param"))
    names = varied + derived
    empty = [file for file in files if not file.stat().st_size]
    if empty:
        raise ValueError(
            f"{', '.join(map(str, empty))} of {len(files)} chain files hold no rows. If their processes were stopped before the first "
            "write, move these files away; if not, copy them again."
        )
    tables = [read_table(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table.shape[1] != len(names) + 2:
            raise ValueError(
                f"log.param varies {len(varied)} parameters and derives {len(derived)}, so {file} must have {len(names) + 2} columns; "
                f"it has {table.shape[1]}. They are not of one run."
            )
    columns = {"weight": [table[:, 0] for table in tables], "log_likelihood": [-table[:, 1] for table in tables]}
    notes = ["parameters are in the units of log.param, whose scale factors are not applied"]
    if all(name in bounds and np.isfinite(bounds[name]).all() for name in varied):
        log_volume = sum(np.log(bounds[name][1] - bounds[name][0]) for name in varied)
        columns["log_posterior"] = [values - log_volume for values in columns["log_likelihood"]]
        notes.append("MontePython's priors are flat between the ends in log.param; Gaussian terms count as likelihoods, as it writes them")
    else:
        notes.append("ln posterior is not known: log.param gives some parameters no ends, so that their flat priors are improper")
    return Reading(
        format="montepython",
        files=files,
        names=names,
        samples=[table[:, 2:] for table in tables],
        columns=columns,
        derived=derived,
        bounds=bounds,
        notes=notes,
    )


def _parameters(path: Path) -> tuple[list[str], list[str], dict[str, tuple[float, float]]]:
    """Varied and derived parameters in the order of the columns, and ends."""
    groups: dict[str, list[str]] = {"cosmo": [], "nuisance": [], "derived": []}
    bounds = {}
    for line in read_lines(path):
        match = _PARAMETER.match(line)
        if not match:
            continue
        try:
            _, low, high, step, _, role = ast.literal_eval(match["entry"])
        except (ValueError, SyntaxError):
            expected = "[mean, low, high, step, scale, role]"
            raise ValueError(f"Expected {expected} for {match['name']} in {path}; got {match['entry']}.") from None
        if role not in groups or (role != "derived" and not step):
            continue
        groups[role].append(match["name"])
        ends = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
        if role != "derived" and ends[0] < ends[1]:
            bounds[match["name"]] = ends
    return groups["cosmo"] + groups["nuisance"], groups["derived"], bounds
