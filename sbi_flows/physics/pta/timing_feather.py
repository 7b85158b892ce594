"""Timing residuals in feather files, as enterprise and discovery keep them: from times of arrival to the statistics of the likelihood."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbi_flows._validation import positive
from sbi_flows.physics.pta.timing_arrays import PulsarArray

_COLUMNS = ("toas", "toaerrs", "residuals", "backend_flags")
_MODEL = "Mmat_"
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
        missing.
    ImportError
        Without pyarrow (the extra ``chains``).

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
    if not paths:
        raise ValueError("Expected one or more feather files; got none.")
    pulsars = [_Residuals.read(Path(path), noise) for path in paths]
    first, last = min(each.times.min() for each in pulsars), max(each.times.max() for each in pulsars)
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

    @classmethod
    def read(cls, path: Path, noise: Mapping[str, float] | None) -> _Residuals:
        columns, facts = _opened(path)
        missing = [name for name in _COLUMNS if name not in columns]
        models = sorted((name for name in columns if name.startswith(_MODEL)), key=lambda name: int(name[len(_MODEL) :]))
        missing += [] if models else [f"{_MODEL}0"]
        lacking = [name for name in ("name", "pos") if name not in facts]
        if missing or lacking:
            what = [f"the columns {', '.join(missing)}"] * bool(missing) + [f"{', '.join(lacking)} in its metadata"] * bool(lacking)
            raise ValueError(
                f"Expected a feather file of a pulsar's times of arrival; {path.name} lacks {' and '.join(what)}. Write it with "
                "enterprise's or discovery's save_feather."
            )
        times, errors, residuals = (np.asarray(columns[name], dtype=np.float64) for name in ("toas", "toaerrs", "residuals"))
        model = np.stack([np.asarray(columns[name], dtype=np.float64) for name in models], axis=1)
        if not all(np.isfinite(part).all() for part in (times, errors, residuals, model)) or not (errors > 0).all():
            raise ValueError(f"Expected finite times, residuals and timing model, and errors above 0; {path.name} has others.")
        backends = np.asarray(columns["backend_flags"], dtype=str)
        name = str(facts["name"])
        given = facts.get("noisedict") if noise is None else noise
        if given is None:
            raise ValueError(
                f"{path.name} holds no noisedict: pass noise= with {name}_{backends[0]}_efac and so on, or noise={{}} to take its errors "
                "as they are."
            )
        variances, ecorr = _white_noise(name, errors, backends, given)
        return cls(name, np.asarray(facts["pos"], dtype=np.float64), times, variances, ecorr, residuals, backends, model)

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
    facts = (table.schema.metadata or {}).get(b"json", b"{}")
    return {name: table[name].to_numpy() for name in table.column_names}, json.loads(facts)


def _white_noise(name: str, errors: np.ndarray, backends: np.ndarray, noise: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Variances ``(n,)`` and those of the ECORR of each row's backend ``(n,)``, in s^2."""
    variances, ecorr = errors**2, np.zeros(len(errors))
    if not noise:
        return variances, ecorr
    for backend in np.unique(backends):
        rows, key = backends == backend, f"{name}_{backend}"
        if f"{key}_efac" not in noise:
            raise ValueError(f"Expected {key}_efac in noise, as for each backend of {name}; it is not there. Its name is that in the file.")
        before, after = (10.0 ** (2 * noise[full]) if (full := f"{key}_log10_{kind}equad") in noise else 0.0 for kind in ("t2", "tn"))
        variances[rows] = noise[f"{key}_efac"] ** 2 * (variances[rows] + before) + after
        ecorr[rows] = 10.0 ** (2 * noise[full]) if (full := f"{key}_log10_ecorr") in noise else 0.0
    return variances, ecorr
