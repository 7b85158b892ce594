"""What a reader of one format found in its files, before burn-in is cut and meanings are settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MEANINGS = ("posterior", "likelihood", "none")


@dataclass(frozen=True)
class Reading:
    """Chains as they stand in their files.

    Attributes
    ----------
    format : str
    files : sequence of Path
        One a chain, or all that were read.
    names : sequence of str
        Columns of ``samples``.
    samples : list of ndarray (n_i, k)
        One a chain.
    columns : mapping of str to list of ndarray (n_i,)
        Others that are known by name: ``log_posterior``, ``log_likelihood``, ``weight``, and what goes to ``stats``.
    unsaid : list of ndarray (n_i,), optional
        Values of a log-density of which the format does not say which it is.
    unsaid_name : str
        What that column is called in the file.
    derived : sequence of str
        Which of ``names`` are computed from the others.
    bounds, labels : mapping
    ensemble, independent : bool
        As in ``Chains``.
    notes : sequence of str
    info : mapping
        What else there is to know, such as the ``log_z`` that the sampler itself reports.
    """

    format: str
    files: Sequence[Path]
    names: Sequence[str]
    samples: list[np.ndarray]
    columns: Mapping[str, list[np.ndarray]] = field(default_factory=dict)
    unsaid: list[np.ndarray] | None = None
    unsaid_name: str = ""
    derived: Sequence[str] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    ensemble: bool = False
    independent: bool = False
    notes: Sequence[str] = ()
    info: Mapping[str, float | str] = field(default_factory=dict)
