"""Checks at the public boundary: arrays in, tensors out, and every message says what was expected, what came and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype of ``"float32"`` or ``"float64"``; torch dtypes of those names are taken too."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"Expected dtype 'float32' or 'float64'; got {dtype!r}.")
    return DTYPES[name]


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the GPU where there is one; anything else is what torch makes of it, checked to be present."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Expected device to be 'auto' or a device of torch such as 'cpu' or 'cuda:0'; got {device!r}.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"Expected a device of this machine; got {device!r}, but torch sees no GPU. Pass device='auto' or 'cpu'."
        )
    return chosen


def choose(name: str, value: Any, allowed: Sequence[str]) -> Any:
    """``value`` if it is one of ``allowed``, else a ``ValueError`` that lists them."""
    if value in allowed:
        return value
    raise ValueError(f"Expected {name} to be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def positive(name: str, value: Any, *, integer: bool = False, zero: bool = False) -> Any:
    """``value`` if it is a finite number above zero (or zero where allowed; whole where asked), else a ``ValueError``."""
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    fits = (
        isinstance(value, kinds) and not isinstance(value, bool) and np.isfinite(value) and (value > 0 or (zero and value == 0))
    )
    if fits:
        return value
    kind = "whole number" if integer else "number"
    raise ValueError(f"Expected {name} to be a {kind} {'of at least' if zero else 'above'} 0; got {value!r}.")


def column_names(n: int, names: Sequence[str] | None) -> list[str]:
    """The names given, or ``column 0, column 1, ...`` for messages about unnamed columns."""
    return [f"column {i}" for i in range(n)] if names is None else [repr(str(name)) for name in names]


def as_float(value: Any, name: str) -> Tensor:
    """A float tensor from an array, tensor or DataFrame; integers and booleans become float64, masked values NaN, others are refused."""
    if np.ma.is_masked(value) and value.dtype.kind in "fiub":
        value = value.astype(np.result_type(value.dtype, np.float32)).filled(np.nan)
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(
                f"Expected {name} as an array; got a list whose items have different lengths. Pad the short ones with NaN, which counts as "
                "missing."
            ) from error
        if array.dtype.kind not in "fiub":
            raise TypeError(
                f"Expected {name} to hold real numbers; got an array of dtype {array.dtype}. Convert it to float first."
            )
        tensor = torch.from_numpy(np.array(array) if not array.flags.writeable else np.ascontiguousarray(array))
    if tensor.is_complex():
        raise TypeError(f"Expected {name} to hold real numbers; got complex ones. Pass real and imaginary parts as columns.")
    return tensor if tensor.is_floating_point() else tensor.to(torch.float64)


def as_rows(value: Any, name: str, width: int | None = None) -> Tensor:
    """``as_float`` with shape ``(n, width)`` enforced."""
    tensor = as_float(value, name)
    if tensor.dim() != 2:
        hint = f"For one row pass {name}[None]; for one column {name}[:, None]." if tensor.dim() == 1 else "Flatten each row."
        raise ValueError(f"Expected {name} of shape (n, {'d' if width is None else width}); got {tuple(tensor.shape)}. {hint}")
    if width is not None and tensor.shape[1] != width:
        raise ValueError(f"Expected {name} of shape (n, {width}); got {tuple(tensor.shape)}: it has {tensor.shape[1]} columns.")
    return tensor


def check_finite(x: np.ndarray, name: str, names: Sequence[str] | None = None) -> None:
    """Raise ``ValueError`` that names columns, counts and the first row where ``x (n, d)`` holds NaN or infinities."""
    if np.isfinite(x).all():
        return
    labels = column_names(x.shape[1], names)
    found = []
    for j in np.flatnonzero(~np.isfinite(x).all(axis=0)):
        n_nan, n_inf = int(np.isnan(x[:, j]).sum()), int(np.isinf(x[:, j]).sum())
        first = int(np.flatnonzero(~np.isfinite(x[:, j]))[0])
        found.append(f"{labels[j]} has {n_nan} NaN and {n_inf} infinite values, first in row {first}")
    more = f"; and {len(found) - 3} more columns" if len(found) > 3 else ""
    raise ValueError(
        f"Expected finite values in {name}; got NaN or inf: {'; '.join(found[:3])}{more}. Drop or impute those rows."
    )


def check_weights(weights: Any, n: int, name: str = "sample_weight") -> np.ndarray:
    """Weights ``(n,)`` as float64, checked to be finite, not negative, and positive somewhere; a number stands for all rows."""
    array = np.asarray(weights, dtype=np.float64)
    if array.ndim == 0:
        array = np.full(n, float(array))
    if array.ndim > 1:
        raise ValueError(
            f"Expected {name} of shape ({n},), one weight a row; got {array.shape}. Sample weights must be 1D array or scalar."
        )
    if array.shape != (n,):
        raise ValueError(f"Expected {name} of shape ({n},), one weight a row; got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(
            f"Expected finite {name}; got {int((~np.isfinite(array)).sum())} NaN or infinite weights. Drop those rows."
        )
    if (array < 0).any():
        raise ValueError(
            f"Expected {name} of at least 0; got {int((array < 0).sum())} negative ones, the smallest {array.min():.3g}."
        )
    if not (array > 0).any():
        raise ValueError(f"Expected some positive {name}; got zeros only, which leave nothing to fit.")
    return array
