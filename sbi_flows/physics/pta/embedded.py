"""The summaries shipped with the package, and the choice between them and the full tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch

import sbi_flows
from sbi_flows import datasets
from sbi_flows.physics.pta.cosmology import DegreesOfFreedom
from sbi_flows.physics.pta.free_spectrum import FreeSpectrum
from sbi_flows.physics.pta.models import Model, get_model
from sbi_flows.physics.pta.tables import GridSpectrum, SpectrumTable
from sbi_flows.physics.pta.target import FreeSpectrumTarget

FILE = "pta_ng15.npz"
DEFAULT_BINS = 14


def embedded_free_spectrum() -> FreeSpectrum:
    """The NANOGrav 15-year densities of the first 14 bins, coarsened; see ``data/README.md`` for origin and cost."""
    arrays = _arrays()
    step = float(arrays["grid_step"])
    grid = float(arrays["grid_start"]) + step * np.arange(arrays["log_density"].shape[1])
    return FreeSpectrum.from_arrays(arrays["frequencies"], grid, arrays["log_density"] * 1e-3, source=FILE)


def embedded_tables(frequencies: np.ndarray) -> dict[str, GridSpectrum]:
    """Tabulated spectra shipped with the package, at the given frequencies; empty unless these are the embedded bins."""
    arrays = _arrays()
    n_bins = len(frequencies)
    known = arrays["frequencies"][:n_bins]
    if len(known) < n_bins or not np.allclose(known, frequencies, rtol=1e-6, atol=0):
        return {}
    tables = {}
    for name in arrays["tables"]:
        axes = arrays[f"{name}_axes"]
        values = torch.from_numpy(np.ascontiguousarray(arrays[name][..., :n_bins] * 1e-3))
        tables[str(name)] = GridSpectrum(tuple(arrays[f"{name}_names"]), axes[:, 0], axes[:, 1], values)
    return tables


def embedded_degrees_of_freedom() -> DegreesOfFreedom:
    """g_s and g_rho of the Standard Model (Saikawa & Shirai 2020)."""
    return DegreesOfFreedom.from_columns(_arrays()["degrees_of_freedom"])


def pta_target(model: str | Model, data: FreeSpectrum | None = None, n_bins: int = DEFAULT_BINS) -> FreeSpectrumTarget:
    """The posterior of one model, ready to evaluate.

    Parameters
    ----------
    model : str or Model
    data : FreeSpectrum, optional
        The embedded NANOGrav 15-year summary if left out.
    n_bins : int
        How many of the lowest bins enter.

    Raises
    ------
    ValueError
        For an unknown model, too many bins, or bins outside the model's table.
    ConnectionError
        When the model needs a table that is neither embedded for these bins nor within reach.
    """
    model = get_model(model) if isinstance(model, str) else model
    own_data = data is None
    data = (embedded_free_spectrum() if data is None else data).first(n_bins)
    tables = {} if model.table is None else source_tables(model.table, data.frequencies, prefer_embedded=own_data)
    return FreeSpectrumTarget(model, data, embedded_degrees_of_freedom(), tables)


def source_tables(name: str, frequencies: np.ndarray, *, prefer_embedded: bool = True) -> dict[str, GridSpectrum]:
    """A source's table at ``frequencies`` [Hz], by name: the embedded one where it fits and is preferred or all there is, else the full."""
    embedded = embedded_tables(frequencies)
    entry = f"sgwb_models/{name}.h5"
    if name in embedded and (prefer_embedded or datasets.where(entry) is None):
        return embedded
    return {name: SpectrumTable.from_hdf5(datasets.fetch(entry)).at(frequencies)}


@cache
def _arrays() -> Mapping[str, np.ndarray]:
    with np.load(data_folder() / FILE, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def data_folder() -> Path:
    """The folder of embedded data: inside the installed package, or beside it in a checkout."""
    package = Path(sbi_flows.__file__).parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / FILE).is_file():
            return folder
    raise FileNotFoundError(f"The embedded data {FILE} are missing from {package / 'data'}; reinstall sbi_flows.")
