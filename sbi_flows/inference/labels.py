"""What columns of x are called in messages: by name, or by their place in one simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SHOWN = 3


def label(column: int, names: Sequence[str] | None, event_shape: tuple[int, ...]) -> str:
    """The name of a column of x flattened, or its index in the shape of one simulation."""
    if names is not None:
        return names[column]
    index = np.unravel_index(column, event_shape) if event_shape else ()
    return f"x[{', '.join(str(int(i)) for i in index)}]"


def labels(columns: np.ndarray, names: Sequence[str] | None, event_shape: tuple[int, ...]) -> str:
    """The first few of some columns, names in quotes, and how many more there are."""
    shown = [label(int(j), names, event_shape) for j in columns[:_SHOWN]]
    if names is not None:
        shown = [repr(name) for name in shown]
    more = f" and {len(columns) - _SHOWN} more columns" if len(columns) > _SHOWN else ""
    return ", ".join(shown) + more
