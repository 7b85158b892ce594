"""ArviZ NetCDF, read by ArviZ. Its ``lp`` is defined up to a constant only, so it is asked about unless we wrote the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sbi_flows.chain_files.reading import Reading
from sbi_flows.chain_record import ARVIZ_MARK

_OURS = {"lp": "log_posterior", "log_likelihood_sum": "log_likelihood", "weight": "weight"}


def read(path: Path) -> Reading:
    """The groups ``posterior`` and ``sample_stats``."""
    import arviz as az

    try:
        data = az.from_netcdf(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or truncated, or no NetCDF file of ArviZ ({error}). Restore it from a copy.") from None
    if not hasattr(data, "posterior"):
        raise ValueError(f"Expected a group 'posterior' in {path}; there is none.")
    return reading(data, path)


def reading(data, path: Path) -> Reading:
    """The same of an object in memory."""
    names, columns = [], []
    for name in data.posterior.data_vars:
        values = np.asarray(data.posterior[name].transpose("chain", "draw", ...).values, dtype=np.float64)
        flat = values.reshape(*values.shape[:2], -1)
        columns.append(flat)
        names += [name] if values.ndim == 2 else [f"{name}[{i}]" for i in range(flat.shape[-1])]
    samples = np.concatenate(columns, axis=-1)
    stats = {}
    if hasattr(data, "sample_stats"):
        variables = data.sample_stats.data_vars
        stats = {
            str(name): np.asarray(variables[name].transpose("chain", "draw").values)
            for name in variables
            if set(variables[name].dims) == {"chain", "draw"}
        }
    mark = data.posterior.attrs.get(ARVIZ_MARK)
    lengths = (~np.isnan(samples).all(axis=-1)).sum(axis=1) if mark else [samples.shape[1]] * len(samples)

    def cut(values: np.ndarray) -> list[np.ndarray]:
        return [row[:length] for row, length in zip(values, lengths, strict=True)]

    unsaid = None
    if mark is None:
        unsaid = stats.pop("lp", None)
    known = _OURS if mark else {}
    description = json.loads(mark) if mark else {}
    return Reading(
        format="arviz",
        files=[path],
        names=names,
        samples=cut(samples),
        columns={known.get(name, name): cut(values) for name, values in stats.items()},
        unsaid=None if unsaid is None else cut(unsaid),
        unsaid_name="sample_stats.lp",
        derived=description.get("derived", []),
        bounds={name: (low, high) for name, (low, high) in description.get("bounds", {}).items()},
        labels=description.get("labels", {}),
        ensemble=description.get("ensemble", False),
        independent=description.get("independent", False),
    )
