"""Timing residuals in feather files, as enterprise and discovery keep them: from times of arrival to the statistics of the likelihood."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbi_flows._validation import positive
from sbi_flows.physics.pta.timing_arrays import PulsarArray
from sbi_flows.physics.pta.timing_white_noise import white_noise

_COLUMNS = ("toas", "toaerrs", "residuals", "backend_flags")
_MODEL = "Mmat_"
_SPAN = (86400.0, 3.2e9)  # s, a day to a hundred years: beyond, times are in other units
_ERRORS = (1e-9, 1.0)  # s
_SHOWN = 5  # names in a warning
_RANK = 1e-12  # of the largest singular value: columns of a timing model may repeat each other


def read_feathers(
    paths: Sequence[str | Path],
    *,
    noise: Mapping[str, float] | None = None,
    n_frequencies: int = 30,
    epoch: float = 1.0,
) -> PulsarArray:
    """Pulsars from one feather file each, with white noise and timing model marginalised.

    Parameters
    ----------
    paths : sequence of path
        Files with the columns ``toas``, ``toaerrs``, ``residuals`` (all in s), ``backend_flags`` and the timing model's ``Mmat_0``,
        ``Mmat_1``, ..., and ``name`` and ``pos`` in the JSON of their metadata.
    noise : mapping of str to float, optional
        White noise of each pulsar's backends: ``{pulsar}_{backend}_efac``, which is needed, ``..._log10_t2equad`` or
        ``..._log10_tnequad`` and ``..._log10_ecorr``. By default the ``noisedict`` of each file; ``{}`` takes the errors as they are.
        Entries of a pulsar's own red noise are not needed, as the likelihood has it as parameters.
    n_frequencies : int
        Of k / span, where the span goes from the first to the last time of arrival of all pulsars.
    epoch : float
        Seconds that times of arrival of one backend may lie apart to share their ECORR.

    Returns
    -------
    PulsarArray

    Raises
    ------
    ValueError
        For no files, a file that is no feather file or lacks a column, metadata, or the noise of a backend; the message names what is
        missing. For white noise under another name or of another backend, and for times or errors that cannot be in seconds.
    ImportError
        Without pyarrow (the extra ``chains``).

    Warns
    -----
    UserWarning
        Where noise has entries of the pulsars that do not enter: of backends without times of arrival, or of other processes.

    Notes
    -----
    ``t2equad`` is added to an error before it is multiplied by EFAC, ``tnequad`` after. Sines and cosines of all pulsars have one origin of
    time, the first time of arrival of all.

    Examples
    --------
    >>> from sbi_flows.physics.pta import timing_likelihood
    >>> array = read_feathers(sorted(Path("feathers").glob("*.feather")))  # doctest: +SKIP
    >>> target = timing_likelihood(array)  # doctest: +SKIP

    References
    ----------
    van Haasteren & Vallisneri 2014, "New advances in the Gaussian-process approach to pulsar-timing data analysis", arXiv:1407.1838.
    """
    positive("n_frequencies", n_frequencies, integer=True)
    positive("epoch", epoch)
    if isinstance(paths, str | Path):
        raise ValueError(f"Expected a sequence of feather files; got the single {str(paths)!r}. Pass it in a list.")
    if not paths:
        raise ValueError("Expected one or more feather files; got none.")
    pulsars = [_Residuals.read(Path(path), noise) for path in paths]
    _tell_unused([key for each in pulsars for key in each.unused])
    first, last = min(each.times.min() for each in pulsars), max(each.times.max() for each in pulsars)
    _check_span("all files together", last - first)
    statistics = [each.statistics(first, last - first, n_frequencies, epoch) for each in pulsars]
    tnt, tnr = (np.stack(parts) for parts in zip(*statistics, strict=True))
    positions = np.stack([each.position for each in pulsars])
    return PulsarArray(tuple(each.name for each in pulsars), positions, float(last - first), tnt, tnr, "feather files")


@dataclass(frozen=True)
class _Residuals:
    """One pulsar's file: times and residuals in s, variances of errors and of ECORR in s^2, all ``(n,)``; timing model ``(n, k)``."""

    name: str
    position: np.ndarray
    times: np.ndarray
    variances: np.ndarray
    ecorr: np.ndarray
    residuals: np.ndarray
    backends: np.ndarray
    model: np.ndarray
    unused: list[str]  # noise of this pulsar that did not enter

    @classmethod
    def read(cls, path: Path, noise: Mapping[str, float] | None) -> _Residuals:
        columns, facts = _opened(path)
        missing = [name for name in _COLUMNS if name not in columns]
        models = [column for column in columns if column.startswith(_MODEL)]
        wanted = [f"{_MODEL}{i}" for i in range(max(len(models), 1))]
        missing += [column for column in wanted if column not in models]
        lacking = [name for name in ("name", "pos") if name not in facts]
        if missing or lacking:
            what = [f"the columns {', '.join(missing)}"] * bool(missing) + [f"{', '.join(lacking)} in its metadata"] * bool(lacking)
            raise ValueError(
                f"Expected a feather file of a pulsar's times of arrival; {path.name} lacks {' and '.join(what)}. Write it with "
                f"enterprise's or discovery's save_feather.{_beside(models, wanted)}"
            )
        times, errors, residuals = (np.asarray(columns[name], dtype=np.float64) for name in ("toas", "toaerrs", "residuals"))
        model = np.stack([np.asarray(columns[name], dtype=np.float64) for name in wanted], axis=1)
        if not len(times):
            raise ValueError(f"Expected one or more times of arrival; {path.name} has no rows.")
        if not all(np.isfinite(part).all() for part in (times, errors, residuals, model)) or not (errors > 0).all():
            raise ValueError(f"Expected finite times, residuals and timing model, and errors above 0; {path.name} has others.")
        _check_span(path.name, times.max() - times.min())
        if errors.min() < _ERRORS[0] or errors.max() > _ERRORS[1]:
            raise ValueError(
                f"Expected toaerrs in seconds, from {_ERRORS[0]:g} to {_ERRORS[1]:g}; those of {path.name} go from {errors.min():.3g} to "
                f"{errors.max():.3g}. Are they in microseconds?"
            )
        backends = np.asarray(columns["backend_flags"], dtype=str)
        name = str(facts["name"])
        position = _position(path, facts["pos"])
        given = (facts.get("noisedict") or None) if noise is None else noise
        if given is None:
            raise ValueError(
                f"{path.name} holds no noisedict, or an empty one: pass noise= with {name}_{backends[0]}_efac and so on, or noise={{}} to "
                "take its errors as they are."
            )
        if not isinstance(given, Mapping):
            raise ValueError(f"Expected noise of {name} as a dictionary of names and numbers; got {type(given).__name__}.")
        variances, ecorr, unused = white_noise(name, errors, backends, given)
        return cls(name, position, times, variances, ecorr, residuals, backends, model, unused)

    def statistics(self, first: float, span: float, n_frequencies: int, epoch: float) -> tuple[np.ndarray, np.ndarray]:
        """TNT ``(2 m, 2 m)`` and TNr ``(2 m,)`` after the timing model has been fitted to everything."""
        phase = 2 * np.pi * (self.times - first)[:, None] * np.arange(1, n_frequencies + 1) / span
        basis = np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(len(self.times), -1)
        white = self._whitened(np.concatenate([basis, self.model, self.residuals[:, None]], axis=1), epoch)
        basis, model, residuals = np.split(white, [basis.shape[1], white.shape[1] - 1], axis=1)
        lengths = np.linalg.norm(model, axis=0)
        left, sizes, _ = np.linalg.svd(model[:, lengths > 0] / lengths[lengths > 0], full_matrices=False)
        fitted = left[:, sizes > _RANK * sizes.max(initial=0.0)]
        basis, residuals = (part - fitted @ (fitted.T @ part) for part in (basis, residuals))
        return basis.T @ basis, basis.T @ residuals[:, 0]

    def _whitened(self, columns: np.ndarray, epoch: float) -> np.ndarray:
        """``N^(-1/2)`` times ``columns (n, k)``: within an epoch of a backend N is a diagonal and a constant."""
        scaled = columns / np.sqrt(self.variances)[:, None]
        for rows in self._epochs(epoch):
            v = self.variances[rows] ** -0.5
            size = v @ v
            shrink = (1 + self.ecorr[rows[0]] * size) ** -0.5 - 1
            scaled[rows] += shrink / size * np.outer(v, v @ scaled[rows])
        return scaled

    def _epochs(self, epoch: float) -> list[np.ndarray]:
        """Rows that share an ECORR: of one backend, each within ``epoch`` seconds of the first of them."""
        found = []
        for backend in np.unique(self.backends[self.ecorr > 0]):
            rows = np.flatnonzero(self.backends == backend)
            rows = rows[np.argsort(self.times[rows], kind="stable")]
            while len(rows):
                together = self.times[rows] < self.times[rows[0]] + epoch
                found.append(rows[together])
                rows = rows[~together]
        return found


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns by name, and the JSON of the metadata."""
    try:
        from pyarrow import ArrowException, feather
    except ImportError:
        raise ImportError(f"Reading {path.name} needs pyarrow: pip install 'sbi_flows[chains]'.") from None
    if not path.is_file():
        raise ValueError(f"Expected a feather file; there is no {path}.")
    try:
        table = feather.read_table(path)
    except (ArrowException, OSError) as error:
        raise ValueError(f"Expected a feather file; {path.name} cannot be read as one ({error}).") from None
    try:
        facts = json.loads((table.schema.metadata or {}).get(b"json", b"{}"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in the metadata of {path.name}; it cannot be read as such ({error}).") from None
    if not isinstance(facts, dict):
        raise ValueError(f"Expected a dictionary in the metadata of {path.name}, with name and pos; got {type(facts).__name__}.")
    return {name: table[name].to_numpy() for name in table.column_names}, facts


def _beside(found: Sequence[str], wanted: Sequence[str]) -> str:
    """What columns of the timing model there are that were not looked for."""
    others = [column for column in found if column not in wanted]
    return f" It has {', '.join(others)}; columns of the timing model are numbered from 0 without a gap." if others else ""


def _position(path: Path, given: Any) -> np.ndarray:
    try:
        position = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        position = np.empty(0)
    if position.shape != (3,):
        raise ValueError(f"Expected pos in the metadata of {path.name} to be three numbers, the direction; got {given!r}.")
    return position


def _check_span(what: str, span: float) -> None:
    if not _SPAN[0] <= span <= _SPAN[1]:
        raise ValueError(
            f"Expected toas in seconds over a day to a hundred years; those of {what} span {span:.4g} s. Are they in days (MJD)? Multiply "
            "by 86400."
        )


def _tell_unused(keys: Sequence[str]) -> None:
    if keys:
        shown = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
        why = "they belong to backends without times of arrival, or to processes that the likelihood lacks"
        warnings.warn(f"{len(keys)} entries of the noise do not enter ({shown}): {why}.", UserWarning, stacklevel=3)
