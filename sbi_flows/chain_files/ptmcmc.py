"""PTMCMCSampler, as enterprise runs it: ``chain_1.txt`` beside ``pars.txt``.

The last four columns of a chain are, by the sampler's definition, ln posterior, ln likelihood, the acceptance rate so far, and that of
the exchanges between temperatures.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sbi_flows.chain_files.reading import Reading
from sbi_flows.chain_files.text import read_lines, read_table

# The untempered chain; chain_1.5.txt and the like are hotter ones, which are no draws of the posterior.
_COLD = re.compile(r"chain_1(\.0+)?\.txt")
_UNIFORM = re.compile(r"(?P<name>\S+?):Uniform\(pmin=(?P<low>[^,\s]+),\s*pmax=(?P<high>[^)\s]+)\)")


def find(path: Path) -> list[Path]:
    """The untempered chain in a folder, or the file itself."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if _COLD.fullmatch(file.name))
    return [path] if re.fullmatch(r"chain_[\d.]+\.txt", path.name) else []


def recognise(path: Path) -> bool:
    return bool(find(path))


def read(path: Path) -> Reading:
    """The chain at power 1 with names from ``pars.txt`` and, where it is there, ends of uniform priors from ``priors.txt``."""
    file = find(path)[0]
    if not _COLD.fullmatch(file.name):
        raise ValueError(
            f"{file.name} is a chain at a higher temperature, which holds no draws of the posterior. Read {file.with_name('chain_1.txt')}."
        )
    sidecar = file.with_name("pars.txt")
    if not sidecar.is_file():
        raise FileNotFoundError(f"Expected {sidecar}, one parameter name a line, beside {file.name}: copy it from the run's output folder.")
    names, table = read_lines(sidecar), read_table(file)
    if table.shape[1] != len(names) + 4:
        raise ValueError(
            f"{sidecar} names {len(names)} parameters, so {file.name} must have {len(names) + 4} columns; it has {table.shape[1]}. "
            "They are not of one run."
        )
    d = len(names)
    columns = ("log_posterior", "log_likelihood", "acceptance", "swap_acceptance")
    return Reading(
        format="ptmcmc",
        files=[file],
        names=names,
        samples=[table[:, :d]],
        columns={name: [table[:, d + i]] for i, name in enumerate(columns)},
        bounds=_bounds(file.with_name("priors.txt"), names),
    )


def _bounds(path: Path, names: list[str]) -> dict[str, tuple[float, float]]:
    """Of uniform priors, as enterprise_extensions lists them; for lines of any other form, none."""
    if not path.is_file():
        return {}
    found = (_UNIFORM.search(line) for line in read_lines(path))
    bounds = {match["name"]: (float(match["low"]), float(match["high"])) for match in found if match}
    return {name: ends for name, ends in bounds.items() if name in names and np.isfinite(ends).all()}
