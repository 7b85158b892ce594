"""Which reader a path is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sbi_flows._validation import choose
from sbi_flows.chain_files import (
    arviz_file,
    bilby_result,
    dynesty_results,
    emcee_file,
    getdist_text,
    hdf5,
    montepython,
    nested_text,
    own_run,
    ptmcmc,
    tables,
)
from sbi_flows.chain_files.reading import Reading

Reader = Callable[[Path], Reading]

READERS: dict[str, Reader] = {
    "ptmcmc": ptmcmc.read,
    "la_forge": hdf5.read_la_forge,
    "getdist": getdist_text.read,
    "cobaya": getdist_text.read,
    "montepython": montepython.read,
    "emcee": emcee_file.read,
    "dynesty": dynesty_results.read,
    "nested": nested_text.read,
    "bilby": bilby_result.read,
    "arviz": arviz_file.read,
    "table": tables.read,
    "sbi_flows": own_run.read,
}


def reader(path: Path, format: str | None = None) -> Reader:
    """The reader of the named format, or of the one that the files show.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    ValueError
        If what is there is of no format known here.
    """
    if format is not None:
        choose("format", format, list(READERS))
    found = format or _found(path)
    if found is None:
        raise _unknown(path)
    return READERS[found]


def _found(path: Path) -> str | None:
    beside = (("ptmcmc", ptmcmc), ("montepython", montepython), ("nested", nested_text), ("getdist", getdist_text))
    for name, module in beside:
        if module.recognise(path):
            return name
    if not path.is_file():
        return None
    if hdf5.is_hdf5(path):
        return hdf5.kind(path)
    return _BY_SUFFIX.get(path.suffix)


_BY_SUFFIX = {
    ".json": "bilby",
    ".nc": "arviz",
    ".netcdf": "arviz",
    **dict.fromkeys(dynesty_results.SUFFIXES, "dynesty"),
    **dict.fromkeys(tables.SUFFIXES, "table"),
}


def _unknown(path: Path) -> Exception:
    if path.is_dir():
        return ValueError(
            f"Expected chains in the folder {path}; it holds no chain_1.txt and no log.param. For other formats give the file, or the "
            "root that the names of the chain files begin with."
        )
    if not path.exists():
        near = f"{path.name}.1.txt or {path.name}_1.txt"
        return FileNotFoundError(f"No chains at {path}: no such file or folder, and no {near}. Check the path.")
    if path.suffix == ".txt":
        return FileNotFoundError(
            f"{path} is a table without names: expected pars.txt (PTMCMC) or {getdist_text.find(path)[0].name}.paramnames (GetDist) "
            "beside it. Copy it from the run's output folder."
        )
    return ValueError(f"{path} is of no known format. Known are {', '.join(READERS)}; name its own with --format (Python: format=).")
