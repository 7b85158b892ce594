"""Which reader a path is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sbi_flows._validation import choose
from sbi_flows.chain_files import emcee_file, getdist_text, ptmcmc
from sbi_flows.chain_files.reading import Reading

Reader = Callable[[Path], Reading]

READERS: dict[str, Reader] = {
    "ptmcmc": ptmcmc.read,
    "getdist": getdist_text.read,
    "cobaya": getdist_text.read,
    "emcee": emcee_file.read,
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
    if ptmcmc.recognise(path):
        return "ptmcmc"
    if getdist_text.recognise(path):
        return "getdist"
    if path.is_file() and _is_hdf5(path):
        return _in_hdf5(path)
    return None


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _in_hdf5(path: Path) -> str | None:
    import h5py

    try:
        with h5py.File(path) as file:
            return "emcee" if emcee_file.runs(file) else None
    except OSError as error:
        raise ValueError(f"{path} is a damaged or truncated HDF5 file ({error}). Restore it from a copy.") from None


def _unknown(path: Path) -> Exception:
    if path.is_dir():
        return ValueError(
            f"Expected chains in the folder {path}; it holds no chain_1.txt. For other formats give the file, or the root that the "
            "names of the chain files begin with."
        )
    if not path.exists():
        near = f"{path.name}.1.txt or {path.name}_1.txt"
        return FileNotFoundError(f"No chains at {path}: no such file or folder, and no {near}. Check the path.")
    if path.suffix == ".txt":
        return FileNotFoundError(
            f"{path} is a table without names: expected pars.txt (PTMCMC) or {getdist_text.find(path)[0].name}.paramnames (GetDist) "
            "beside it. Copy it from the run's output folder."
        )
    return ValueError(f"{path} is of no known format. Known are {', '.join(READERS)}; name the one it has with format=.")
