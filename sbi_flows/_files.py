"""One safe file: safetensors with a versioned JSON header, written atomically. Loading runs no code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

_HEADER = "sbi_flows"
_DIGEST = "sha256"


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either its old content or all of the new, even if the machine stops midway."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Permissions are the user's usual ones; those of the tempfile module would hide the file from everybody else.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def save_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, kind: str, version: int
) -> None:
    """Write named tensors and a JSON-able header to one file.

    Parameters
    ----------
    path : str or Path
    tensors : mapping of str to Tensor
        Copied to the CPU; dtypes are kept.
    header : mapping
        Anything ``json.dumps`` takes.
    kind, version : str, int
        What the file is and the version of its layout; ``load_tensors`` checks both.

    Raises
    ------
    TypeError
        If the header holds something that JSON cannot.
    FileNotFoundError
        If the folder does not exist.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"Expected an existing folder to write {path.name} in; {path.absolute().parent} does not exist.")
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"kind": kind, "version": version, "content": dict(header)}, sort_keys=True)
    write_atomic(path, to_bytes(plain, metadata={_HEADER: text, _DIGEST: _digest(text, plain)}))


def load_tensors(path: str | os.PathLike, *, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``save_tensors``: its tensors, on the CPU, and its header.

    Parameters
    ----------
    path : str or Path
    kind : str
        What the file must be.
    version : int
        The newest layout this code reads.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, altered, of another kind, or written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file written by sbi_flows at {path}; there is none. Check the path.")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # A file's tensors may be views of the mapped file: copies stay valid when the file is replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or truncated, or is not a safetensors file ({error}). Restore it from a copy or save it again."
        ) from error
    if _HEADER not in metadata or _DIGEST not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not one written by sbi_flows: its header lacks {_HEADER!r}.")
    if _digest(metadata[_HEADER], tensors) != metadata[_DIGEST]:
        raise ValueError(
            f"{path} was changed after it was written: its content no longer matches the SHA-256 stored in it. "
            "Restore it from a copy or save it again."
        )
    header = json.loads(metadata[_HEADER])
    if header["kind"] != kind:
        raise ValueError(f"Expected a file holding a {kind}; {path} holds a {header['kind']}. Load it with that class.")
    if header["version"] > version:
        raise ValueError(
            f"{path} has layout version {header['version']}; this sbi_flows reads up to {version}. Upgrade sbi_flows to read it."
        )
    return tensors, header["content"]


def check_shapes(path: str | os.PathLike, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` naming the first tensors that are missing, unknown or of another shape than ``expected``."""
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path} does not fit the model it describes: {'; '.join(problems[:3])}{more}.")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header, the names, dtypes and shapes, and every byte. It reveals damage, not forgery: it has no key."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
