"""dynesty's ``Results``, pickled or as an ``.npz`` of its dictionary. No code of a pickle is run: what is no number becomes inert."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sbi_flows.chain_files.reading import Reading
from sbi_flows.model_evidence import N_LIVE

SUFFIXES = (".npz", ".pkl", ".pickle", ".save")
_NEEDED = ("samples", "logl", "logwt")
_NUMPY = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        (f"{package}.numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _Inert:
    """Stands for any object of a pickle that is not an array: takes what it is given and does nothing."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Arrays(pickle.Unpickler):
    """Makes arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in _NUMPY else _Inert


def read(path: Path) -> Reading:
    """Dead points with their weights. ``samples`` follow the prior transform, and have no names there."""
    content = _npz(path) if zipfile.is_zipfile(path) else _pickled(path)
    missing = [name for name in _NEEDED if name not in content]
    if missing:
        raise ValueError(
            f"Expected dynesty Results in {path}; {', '.join(missing)} missing. A checkpoint holds the sampler: write "
            "numpy.savez(path, **sampler.results.asdict()) instead."
        )
    samples, log_l, log_wt = (np.asarray(content[name], dtype=np.float64) for name in _NEEDED)
    if samples.ndim != 2 or log_l.shape != (len(samples),) or log_wt.shape != log_l.shape:
        raise ValueError(f"Expected samples (n, d), logl and logwt (n,) in {path}; got {samples.shape}, {log_l.shape}, {log_wt.shape}.")
    columns = {"weight": [np.exp(log_wt - log_wt.max())], "log_likelihood": [log_l]}
    n_live = _live_points(content, len(log_l))
    if n_live is not None:
        columns[N_LIVE] = [n_live]
    theirs = (("log_z", "logz"), ("log_z_err", "logzerr"))
    found = {ours: float(np.asarray(content[name])[-1]) for ours, name in theirs if name in content}
    return Reading(
        format="dynesty",
        files=[path],
        names=[f"x{i}" for i in range(samples.shape[1])],
        samples=[samples],
        columns=columns,
        independent=True,
        info={"sampler": "dynesty", **found},
    )


def _live_points(content: Mapping[str, Any], n: int) -> np.ndarray | None:
    """Of a dynamic run as recorded; of a static one all but in the last points, which were left when it stopped."""
    if "samples_n" in content:
        return np.asarray(content["samples_n"], dtype=np.float64)
    if "nlive" not in content:
        return None
    n_live = int(content["nlive"])
    last = n - int(content["niter"]) if "niter" in content else 0
    if last not in (0, n_live):
        return None
    return np.concatenate([np.full(n - last, float(n_live)), np.arange(last, 0, -1.0)])


def _npz(path: Path) -> dict[str, Any]:
    content = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                try:
                    content[name] = file[name]
                except ValueError:  # an array of Python objects, of which none is needed
                    continue
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}). Restore it from a copy.") from None
    return content


def _pickled(path: Path) -> dict[str, Any]:
    try:
        result = _Arrays(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError, ImportError) as error:
        raise ValueError(f"{path} is damaged or truncated, or no pickle of dynesty Results ({error}).") from None
    if isinstance(result, dict):
        return result
    return dict(getattr(result, "__dict__", {}))
