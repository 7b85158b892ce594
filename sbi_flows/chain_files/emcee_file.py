"""emcee's HDF5 backend, read by emcee itself. Its ``log_prob`` is the density that was sampled: ln posterior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbi_flows.chain_files.reading import Reading


def runs(file: h5py.File) -> list[str]:
    """Names of the groups that emcee wrote."""
    return [name for name, group in file.items() if isinstance(group, h5py.Group) and {"nwalkers", "iteration"} <= set(group.attrs)]


def read(path: Path) -> Reading:
    """All walkers as chains of one ensemble; the parameters have no names in such a file."""
    from emcee.backends import HDFBackend

    with h5py.File(path) as file:
        names = runs(file)
    if len(names) > 1:
        raise ValueError(f"{path} holds {len(names)} runs ({', '.join(names)}). Copy the one you mean to a file of its own.")
    backend = HDFBackend(str(path), name=names[0], read_only=True)
    if not backend.iteration:
        raise ValueError(f"The run in {path} was set up but has no steps yet.")
    chain, log_prob = np.swapaxes(backend.get_chain(), 0, 1), np.swapaxes(backend.get_log_prob(), 0, 1)
    return reading(chain, log_prob, path, None)


def reading(chain: np.ndarray, log_prob: np.ndarray, path: Path, columns: Mapping[str, Any] | None) -> Reading:
    """Of walkers ``(walker, draw, d)`` with their ``log_prob (walker, draw)``, and a sampler's ``parameter_names`` with their columns."""
    names = [f"x{i}" for i in range(chain.shape[-1])]
    # A name may stand for several columns, which then have none of their own.
    for name, column in (columns or {}).items():
        if np.ndim(column) == 0:
            names[int(column)] = str(name)
    return Reading(
        format="emcee",
        files=[path],
        names=names,
        samples=list(chain),
        columns={"log_posterior": list(log_prob)},
        ensemble=True,
        notes=["emcee's log_prob was taken for ln L + ln prior, both normalised, as evidence needs it"],
    )
