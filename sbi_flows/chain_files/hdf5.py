"""What an HDF5 file holds, and la_forge's cores, which are such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbi_flows.chain_files import emcee_file
from sbi_flows.chain_files.reading import Reading
from sbi_flows.samplers.files import KIND

_MAGIC = b"\x89HDF\r\n\x1a\n"
# What la_forge calls the columns that PTMCMCSampler adds to the parameters.
_ADDED = {"lnpost": "log_posterior", "lnlike": "log_likelihood", "chain_accept": "acceptance", "pt_chain_accept": "swap_acceptance"}


def is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def kind(path: Path) -> str | None:
    """The format whose marks are in the file."""
    try:
        with h5py.File(path) as file:
            if file.attrs.get("kind") == KIND:
                return "sbi_flows"
            if emcee_file.runs(file):
                return "emcee"
            if isinstance(file.get("chain"), h5py.Dataset) and "params" in file:
                return "la_forge"
            if "priors" in file and "search_parameter_keys" in file:
                return "bilby"
            # NetCDF 4 is HDF5 with dimension scales.
            return "arviz" if isinstance(file.get("posterior"), h5py.Group) else None
    except OSError as error:
        raise ValueError(f"{path} is a damaged or truncated HDF5 file ({error}). Restore it from a copy.") from None


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read_la_forge(path: Path) -> Reading:
    """A ``la_forge.core.Core``: the chain of PTMCMCSampler with the names of its columns."""
    with h5py.File(path) as file:
        names = [text(name) for name in file["params"][()]]
        chain = np.asarray(file["chain"][()], dtype=np.float64)
        metadata = file.get("metadata")
        burn = None if metadata is None or "burn" not in metadata else metadata["burn"][()]
    if chain.ndim != 2 or chain.shape[1] != len(names):
        raise ValueError(f"Expected a chain of {len(names)} columns in {path}, as its params name; got shape {chain.shape}. It is damaged.")
    kept = [i for i, name in enumerate(names) if name not in _ADDED]
    burn = 0 if burn is None else int(burn)
    note = [f"the core names a burn-in of {burn} rows, which is not applied: say burn={burn}"] if burn else []
    return Reading(
        format="la_forge",
        files=[path],
        names=[names[i] for i in kept],
        samples=[chain[:, kept]],
        columns={meaning: [chain[:, names.index(name)]] for name, meaning in _ADDED.items() if name in names},
        notes=note,
    )
