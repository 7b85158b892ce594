"""Sets of draws as the package's results hold them, as plain rows for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbi_flows.results import Chains, WeightedSamples

_RESAMPLED = 10_000


@dataclass(frozen=True)
class DrawSet:
    """Equally weighted rows.

    Attributes
    ----------
    rows : ndarray (n, d)
    names : tuple of str or None
    ess : float
        How many independent draws the rows are worth.
    """

    rows: np.ndarray
    names: tuple[str, ...] | None
    ess: float


def read_sets(draws: Any) -> dict[str, DrawSet]:
    """One set, or a mapping of several by name."""
    if isinstance(draws, Mapping):
        return {str(name): _read(part) for name, part in draws.items()}
    return {"draws" if isinstance(draws, np.ndarray) else "posterior": _read(draws)}


def _read(draws: Any) -> DrawSet:
    if isinstance(draws, WeightedSamples):
        return DrawSet(draws.resample(_RESAMPLED, random_state=0), draws.names, min(draws.ess, _RESAMPLED))
    n_observations = getattr(draws, "n_observations", None)
    if n_observations is not None:
        raise ValueError(
            f"Expected the posterior of one observation; this one holds {n_observations}. Draw one, posterior[0], or several in "
            'one figure: {"first": posterior[0], "second": posterior[1]}.'
        )
    if isinstance(draws, Chains):
        draws = draws.unweighted(0)
    if hasattr(draws, "to_dataframe"):
        # A posterior makes its draws now; chains bring theirs.
        draws = draws.to_dataframe()
    names = tuple(str(name) for name in draws.columns) if hasattr(draws, "columns") else None
    wanted = "Expected draws of shape (n, d), a DataFrame, Chains, WeightedSamples or a posterior"
    try:
        rows = np.asarray(draws, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{wanted}; got {type(draws).__name__}, which is no numbers.") from error
    if rows.ndim != 2:
        raise ValueError(f"{wanted}; got an array of shape {rows.shape}.")
    return DrawSet(rows, names, len(rows))
