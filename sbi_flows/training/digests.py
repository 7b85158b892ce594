"""Fingerprints of data, by which a resumed fit and the processes of one fit know that they see the same rows in the same order."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
from torch import Tensor

_ROWS_AT_ONCE = 2**16
_READ_WHOLE = 2**28  # bytes of an array on disk that are read for its fingerprint: a second or so; of a larger one, parts
_PARTS = 16


def digest_of_tensor(tensor: Tensor) -> str:
    """A hash of the shape, the dtype and every byte, in order; about a gigabyte a second."""
    found = blake2b(f"{tuple(tensor.shape)} {tensor.dtype}".encode(), digest_size=8)
    for part in tensor.detach().split(_ROWS_AT_ONCE):
        found.update(np.ascontiguousarray(part.cpu().numpy()).data)
    return found.hexdigest()


def digest_on_disk(array: Any, *, whole: bool = False) -> str:
    """The same of an array on disk ``(n, ...)``: of all rows of a small one or where asked, else of its ends and 14 parts between."""
    n = int(array.shape[0])
    row_bytes = max(1, np.asarray(array[0:1]).nbytes)
    at_once = max(1, _READ_WHOLE // _PARTS // row_bytes)
    if whole or n <= _PARTS * at_once:
        starts = list(range(0, n, at_once))
    else:
        starts = [round(k * (n - at_once) / (_PARTS - 1)) for k in range(_PARTS)]
    found = blake2b(f"{tuple(map(int, array.shape))}".encode(), digest_size=8)
    for start in starts:
        rows = np.asarray(array[start : min(start + at_once, n)])
        found.update(str(rows.dtype).encode())
        found.update(np.ascontiguousarray(rows).data)
    return found.hexdigest()
