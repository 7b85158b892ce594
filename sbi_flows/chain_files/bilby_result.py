"""bilby's ``Result`` in JSON or HDF5: posterior draws with ln likelihood and ln prior, and what the sampler itself found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbi_flows.chain_files.hdf5 import is_hdf5, text
from sbi_flows.chain_files.reading import Reading


def read(path: Path) -> Reading:
    """Draws of equal weight; samplers that nest make independent ones."""
    content = _from_hdf5(path) if is_hdf5(path) else _from_json(path)
    posterior = {name: np.asarray(values, dtype=np.float64) for name, values in content["posterior"].items() if _are_numbers(values)}
    names = [name for name in content["search_parameter_keys"] if name in posterior]
    if not names:
        raise ValueError(f"Expected posterior columns of the search parameters in {path}; there are none. Did the run finish?")
    logs = {name: [posterior.pop(name)] for name in ("log_likelihood", "log_prior") if name in posterior}
    if len(logs) == 2:
        logs["log_posterior"] = [logs["log_likelihood"][0] + logs["log_prior"][0]]
    logs.pop("log_prior", None)
    rest = [name for name in posterior if name not in names]
    return Reading(
        format="bilby",
        files=[path],
        names=names + rest,
        samples=[np.column_stack([posterior[name] for name in names + rest])],
        columns=logs,
        derived=rest,
        bounds=_bounds(content["priors"], names),
        labels={name: label.strip("$") for name, label in zip(content["search_parameter_keys"], content["parameter_labels"], strict=False)},
        independent=content["nested"],
        info={name: value for name, value in content["found"].items() if np.isfinite(value)} | {"sampler": content["sampler"]},
    )


def _from_json(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or truncated, or no JSON ({error}). Restore it from a copy.") from None
    if not isinstance(result, dict) or "posterior" not in result or "search_parameter_keys" not in result:
        raise ValueError(f"Expected a bilby result in {path}, with posterior and search_parameter_keys; this JSON is something else.")
    posterior = result["posterior"] or {}
    return {
        "posterior": posterior.get("content", posterior),
        "search_parameter_keys": list(result["search_parameter_keys"] or []),
        "parameter_labels": list(result.get("parameter_labels") or []),
        "priors": result.get("priors") or {},
        "nested": result.get("nested_samples") is not None,
        "sampler": str(result.get("sampler")),
        "found": {ours: _number(result.get(theirs)) for ours, theirs in _FOUND.items()},
    }


_FOUND = {"log_z": "log_evidence", "log_z_err": "log_evidence_err"}


def _from_hdf5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path) as file:
        return {
            "posterior": {name: values[()] for name, values in file["posterior"].items()} if "posterior" in file else {},
            "search_parameter_keys": [text(name) for name in file["search_parameter_keys"][()]],
            "parameter_labels": [text(name) for name in file["parameter_labels"][()]] if "parameter_labels" in file else [],
            "priors": json.loads(text(file["priors"][()])),
            "nested": isinstance(file.get("nested_samples"), h5py.Group),
            "sampler": text(file["sampler"][()]),
            "found": {ours: _number(file[theirs][()] if theirs in file else None) for ours, theirs in _FOUND.items()},
        }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number) else np.nan


def _are_numbers(values: Sequence[Any]) -> bool:
    return np.asarray(values).dtype.kind in "fiu" and np.ndim(values) == 1


def _bounds(priors: Any, names: list[str]) -> dict[str, tuple[float, float]]:
    """Ends of the priors that say them in numbers."""
    bounds = {}
    for name in names:
        entry = priors.get(name) if isinstance(priors, Mapping) else None
        settings = entry.get("kwargs", {}) if isinstance(entry, Mapping) else {}
        low, high = (_number(settings.get(key)) for key in ("minimum", "maximum"))
        if low < high:
            bounds[name] = (low, high)
    return bounds
