"""``sbi-flows doctor``: what this environment has, and what in it costs time."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import typer

from sbi_flows import __version__
from sbi_flows.cli import options, output
from sbi_flows.reliability import Reliability

_REQUIRED = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "numba", "arviz", "emcee", "h5py", "safetensors", "matplotlib")
_OPTIONAL = {
    "getdist": "chains",
    "anesthetic": "chains",
    "chainconsumer": "chains",
    "corner": "chains",
    "pyyaml": "chains",
    "pyarrow": "chains",
    "zarr": "zarr",
    "distributed": "dask",
    "dynesty": "dynesty",
    "bilby": "bilby",
    "cobaya": "cobaya",
}


def doctor(json: options.Json = False) -> None:
    """Versions, threads, GPU, optional packages and data, with what to do about what is wrong."""
    found = _environment()
    reliability = Reliability.from_reasons(_problems(found), _advice(found))
    if json:
        output.emit(found | output.verdict(reliability))
    else:
        for heading, content in found.items():
            text = ", ".join(f"{k} {v}" for k, v in content.items() if v is not None) if isinstance(content, dict) else content
            typer.echo(f"{heading.replace('_', ' ')}: {text}")
        missing = [f"{name} (pip install 'sbi_flows[{_OPTIONAL[name]}]')" for name, v in found["optional"].items() if v is None]
        if missing:
            typer.echo(f"not installed: {', '.join(missing)}")
        output.show_verdict(reliability)
    output.end(reliability)


def _environment() -> dict[str, Any]:
    content: dict[str, Any] = {
        "sbi_flows": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "required": {name: _version(name) for name in _REQUIRED},
        "optional": {name: _version(name) for name in _OPTIONAL},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "data": os.environ.get("SBI_FLOWS_DATA", "not set"),
    }
    if content["required"]["torch"] is not None:
        import torch

        content["torch_threads"] = torch.get_num_threads()
        content["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return content


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _problems(found: dict[str, Any]) -> list[str]:
    missing = [name for name, version in found["required"].items() if version is None]
    return [f"required packages are missing: pip install {' '.join(missing)}"] if missing else []


def _advice(found: dict[str, Any]) -> list[str]:
    notes = []
    if found.get("torch_threads", 1) > 1 and (found["load"] or 0) > 0.5 * found["cores"]:
        notes.append("other jobs run here and torch has several threads, which wait by spinning: set OMP_NUM_THREADS=1")
    if found["data"] != "not set" and not os.path.isdir(found["data"]):  # noqa: PTH112 (of a variable, not of a path)
        notes.append(f"SBI_FLOWS_DATA names {found['data']}, which is no folder")
    return notes
