"""Running chains in a file: what is drawn so far, and everything needed to go on from there to the same bits."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from sbi_flows._files import write_atomic

KIND = "sbi_flows chains"
_VERSION = 1


def settings_of(kernel: Any) -> Any:
    """What a kernel was made with, as JSON can hold it: numbers and words as they are, networks by a checksum of their weights."""
    if kernel is None or isinstance(kernel, bool | int | float | str):
        return kernel
    if isinstance(kernel, list | tuple):
        return [settings_of(part) for part in kernel]
    if isinstance(kernel, nn.Module):
        parts = [value.detach().cpu().numpy().tobytes() for value in kernel.state_dict().values()]
        return [type(kernel).__name__, zlib.crc32(b"".join(parts))]
    if isinstance(kernel, Tensor | np.ndarray):
        return zlib.crc32(torch.as_tensor(kernel).detach().cpu().numpy().tobytes())
    own = getattr(kernel, "__dict__", {})
    return [type(kernel).__name__, {name: settings_of(value) for name, value in own.items() if not name.startswith("_")}]


def save_run(path: Path, description: dict, about: dict, done: int, arrays: dict[str, np.ndarray], state: Any, stream: Tensor) -> None:
    """Replace the file by the present state of a run, atomically: killed at any moment, it leaves the old file or the new one.

    ``description`` is what a run must share to go on from the file; ``about`` is for those who only read the draws.
    """
    # Made in memory: HDF5 that meets a full disk takes the interpreter down with it, and the run with that.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update({"kind": KIND, "version": _VERSION, "description": json.dumps(description), "done": done})
        file.attrs["about"] = json.dumps(about)
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.create_dataset("generator", data=stream.numpy())
        _write_state(file.create_group("state"), state)
    write_atomic(path, content.getvalue())


def load_run(path: Path, description: dict, state: Any, generator: torch.Generator) -> tuple[int, dict[str, np.ndarray], Any]:
    """Steps done, the arrays and the kernel's state; the generator is set to where it was. ``state`` shows its structure.

    Raises
    ------
    ValueError
        If the file is damaged, is no such file, or holds another run.
    """
    try:
        with h5py.File(path, "r") as file:
            _check_kind(path, file)
            _check_same(path, json.loads(file.attrs["description"]), description)
            arrays = _arrays(file)
            restored = _read_state(file["state"], state)
            generator.set_state(torch.from_numpy(np.array(file["generator"])))
            return int(file.attrs["done"]), arrays, restored
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or is not an HDF5 file ({error}). Delete it to start afresh.") from error


def read_run(path: Path) -> tuple[dict, dict, int, dict[str, np.ndarray]]:
    """Description, what is said about the run, steps done, and the arrays, without going on from there.

    Raises
    ------
    ValueError
        If the file is damaged or is no such file.
    """
    try:
        with h5py.File(path, "r") as file:
            _check_kind(path, file)
            about = json.loads(file.attrs.get("about", "{}"))
            return json.loads(file.attrs["description"]), about, int(file.attrs["done"]), _arrays(file)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or is not an HDF5 file ({error}). Restore it from a copy.") from error


def _arrays(file: h5py.File) -> dict[str, np.ndarray]:
    return {name: np.array(item) for name, item in file.items() if isinstance(item, h5py.Dataset) and name != "generator"}


def _check_kind(path: Path, file: h5py.File) -> None:
    if file.attrs.get("kind") != KIND:
        raise ValueError(f"{path} is an HDF5 file, but not one written by run_chains. Give another path.")
    if file.attrs["version"] > _VERSION:
        raise ValueError(f"{path} has layout version {file.attrs['version']}; this sbi_flows reads up to {_VERSION}. Upgrade it.")


def _check_same(path: Path, kept: dict, wanted: dict) -> None:
    if kept["n_draws"] < wanted["n_draws"]:
        kept = {**kept, "n_draws": wanted["n_draws"]}  # the start of a longer run: nothing in it depends on where it was to end
    different = [
        f"{key} was {kept.get(key)!r} and is {wanted.get(key)!r}"
        for key in sorted({*kept, *wanted})
        if kept.get(key) != wanted.get(key)
    ]
    if different:
        shorter = {key for key in wanted if kept.get(key) != wanted[key]} == {"n_draws"}
        hint = "ask for as many or more, which goes on from it, or take what is there with load_chains" if shorter else "give another path"
        raise ValueError(f"{path} holds another run: {'; '.join(different)}. Delete it to start afresh, or {hint}.")


def _write_state(group: h5py.Group, state: Any) -> None:
    for name, value in zip(_fields(state), state, strict=True):
        if isinstance(value, Tensor):
            group.create_dataset(name, data=value.numpy())
        else:
            _write_state(group.create_group(name), value)


def _read_state(group: h5py.Group, template: Any) -> Any:
    values = [
        torch.from_numpy(np.array(group[name])) if isinstance(value, Tensor) else _read_state(group[name], value)
        for name, value in zip(_fields(template), template, strict=True)
    ]
    return type(template)(*values) if hasattr(template, "_fields") else tuple(values)


def _fields(state: Any) -> Sequence[str]:
    """Names of what a state holds: its fields, or the numbers of a plain tuple's items."""
    return getattr(state, "_fields", [str(i) for i in range(len(state))])
