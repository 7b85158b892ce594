"""A pulsar timing array as its likelihood needs it: names, directions, and the Fourier statistics of each pulsar's residuals."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from sbi_flows import datasets

_FOLDER = "ng15_timing"
_STATISTICS = f"{_FOLDER}/15yr_TNT_and_TNr_30Int_5common.npz"
_SPAN = f"{_FOLDER}/15yr_Tspan.npy"
_POSITIONS = f"{_FOLDER}/15yr_pulsar_positions.npy"
_NAMES = f"{_FOLDER}/15yr_wn_dict.json"
_WITHOUT_STATISTICS = "J0614-3329"  # in the list of names, too short for the published statistics
_NEGATIVE = 1e-10  # of the largest eigenvalue: what rounding cannot explain
_UNIT = 1e-4  # by which the length of a direction may differ from one

TEN = (
    "J0030+0451",
    "J0613-0200",
    "J1600-3053",
    "J1744-1134",
    "J1909-3744",
    "J1910+1256",
    "J1918-0642",
    "J1944+0907",
    "J2043+1711",
    "J2317+1439",
)


@dataclass(frozen=True, eq=False)
class PulsarArray:
    """Pulsars, and what the Gaussian likelihood keeps of their timing residuals r.

    With T the sines and cosines of the observing times, N the white noise and the timing model marginalised, everything the data say of
    Fourier coefficients a of r = T a + noise is in TNT = T' N^-1 T and TNr = T' N^-1 r.

    Parameters
    ----------
    names : sequence of str (p,)
    positions : ndarray (p, 3)
        Unit vectors towards the pulsars.
    span : float
        Observing time in s; frequency k is k / span.
    tnt : ndarray (p, 2 m, 2 m)
        1/s^2; sine and cosine interleaved, so rows 2k, 2k + 1 belong to frequency k + 1. Singular where the timing
        model takes all.
    tnr : ndarray (p, 2 m)
        1/s.
    source : str
        Where it comes from.

    Raises
    ------
    ValueError
        For shapes that do not match, values that are not finite, or a TNT with an eigenvalue below -1e-10 of its largest.

    Examples
    --------
    >>> from sbi_flows.physics.pta import synthetic_pulsars
    >>> array = synthetic_pulsars(3, random_state=0)
    >>> array.subset([2, 0]).names == (array.names[2], array.names[0])
    True
    """

    names: tuple[str, ...]
    positions: np.ndarray = field(repr=False)
    span: float
    tnt: np.ndarray = field(repr=False)
    tnr: np.ndarray = field(repr=False)
    source: str = ""

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        for name in ("positions", "tnt", "tnr"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        self._check()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_frequencies(self) -> int:
        return self.tnr.shape[1] // 2

    @property
    def frequencies(self) -> np.ndarray:
        """Hz, ``(m,)``."""
        return np.arange(1, self.n_frequencies + 1) / self.span

    def subset(self, pulsars: Sequence[str | int]) -> PulsarArray:
        """Some of the pulsars, by name or number, in the order given.

        Raises
        ------
        ValueError
            For an unknown pulsar, with the nearest name; for one asked for twice, or for none.
        """
        rows = [self._place(pulsar) for pulsar in pulsars]
        if not rows or len(set(rows)) < len(rows):
            raise ValueError(f"Expected one or more different pulsars; got {', '.join(map(str, pulsars)) or 'none'}.")
        names = tuple(self.names[i] for i in rows)
        return PulsarArray(names, self.positions[rows], self.span, self.tnt[rows], self.tnr[rows], self.source)

    def with_data(self, tnr: np.ndarray) -> PulsarArray:
        """The same pulsars with other residuals, such as simulated ones: ``tnr (p, 2 m)`` in 1/s."""
        return PulsarArray(self.names, self.positions, self.span, self.tnt, tnr, self.source)

    def digest(self, residuals: bool = True) -> str:
        """A hexadecimal digest of all that the likelihood sees, with which stored results are told from those of other data.

        Parameters
        ----------
        residuals : bool
            Whether TNr counts, which a network trained on simulations does not see.
        """
        found = hashlib.blake2b(json.dumps([self.names, float(self.span)]).encode(), digest_size=16)
        for part in (self.positions, self.tnt, *([self.tnr] if residuals else [])):
            found.update(repr(part.shape).encode())
            found.update(part.tobytes())
        return found.hexdigest()

    def _place(self, pulsar: str | int) -> int:
        if isinstance(pulsar, int | np.integer) and not isinstance(pulsar, bool):
            if 0 <= pulsar < len(self):
                return int(pulsar)
            raise ValueError(f"Expected the number of a pulsar from 0 to {len(self) - 1}; got {pulsar}.")
        if pulsar in self.names:
            return self.names.index(str(pulsar))
        if isinstance(pulsar, str) and pulsar.strip().isdigit() and int(pulsar) < len(self):
            return self._place(int(pulsar))
        holding = [name for name in self.names if len(str(pulsar)) > 2 and str(pulsar).upper() in name]
        alike = [] if str(pulsar).strip().isdigit() else difflib.get_close_matches(str(pulsar).upper(), self.names, n=1, cutoff=0.4)
        near = holding[:3] or alike
        suggestion = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"Unknown pulsar {pulsar!r}. {suggestion}There are {len(self)}: {_listed(self.names)}.")

    def _check(self) -> None:
        p = len(self.names)
        m2 = self.tnr.shape[-1] if self.tnr.ndim == 2 else -1
        if not p or self.positions.shape != (p, 3) or self.tnr.shape != (p, m2) or self.tnt.shape != (p, m2, m2) or m2 % 2:
            raise ValueError(
                f"Expected for {p} names positions (p, 3), tnt (p, 2m, 2m) and tnr (p, 2m) with p = {p}; got {self.positions.shape}, "
                f"{self.tnt.shape} and {self.tnr.shape}."
            )
        if len(set(self.names)) < p:
            raise ValueError(f"Expected different names; got {_listed(self.names)}.")
        if not (np.isfinite(self.tnt).all() and np.isfinite(self.tnr).all()) or not (np.isfinite(self.span) and self.span > 0):
            raise ValueError(f"Expected finite statistics and a span above 0; got a span of {self.span} and values that are not finite.")
        lengths = np.linalg.norm(self.positions, axis=1)
        if not (np.abs(lengths - 1) < _UNIT).all():
            raise ValueError(f"Expected directions of length 1; that of {self.names[int(np.abs(lengths - 1).argmax())]} is not.")
        for name, matrix in zip(self.names, self.tnt, strict=True):
            _check_tnt(name, matrix)


def _check_tnt(name: str, matrix: np.ndarray) -> None:
    largest = np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > _NEGATIVE * largest:
        raise ValueError(f"Expected a symmetric TNT for pulsar {name}; got one that is not. Is it the block of one pulsar?")
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    if values[0] < -_NEGATIVE * values[-1] or values[-1] <= 0:
        raise ValueError(
            f"Expected TNT of pulsar {name} to have no negative eigenvalue beyond rounding (-{_NEGATIVE:g} of the largest); got one of "
            f"{values[0] / abs(values).max():.2g} of it. T' N^-1 T cannot have any: look at how the file was made."
        )


def ng15_pulsars(pulsars: Sequence[str | int] | str = TEN) -> PulsarArray:
    """Pulsars of the NANOGrav 15-year data set: 67 with 30 frequencies each.

    Parameters
    ----------
    pulsars : sequence of str or int, or "all"
        Names or numbers in alphabetical order; by default the ten of the published timing study.

    Raises
    ------
    ConnectionError
        Where the files cannot be reached; the message names the entry of the registry and ``SBI_FLOWS_DATA``.
    ValueError
        For an unknown pulsar; the message suggests the nearest.

    Examples
    --------
    >>> ng15_pulsars(["J1909-3744", "J1713+0747"]).names  # doctest: +SKIP
    ('J1909-3744', 'J1713+0747')

    References
    ----------
    Agazie et al. 2023, "The NANOGrav 15 yr data set: observations and timing of 68 millisecond pulsars", arXiv:2306.16217.
    """
    array = _ng15()
    return array if isinstance(pulsars, str) and pulsars == "all" else array.subset([pulsars] if isinstance(pulsars, str) else pulsars)


@cache
def _ng15() -> PulsarArray:
    paths = [datasets.fetch(name) for name in (_NAMES, _POSITIONS, _SPAN, _STATISTICS)]
    names = sorted({key.split("_")[0] for key in json.loads(paths[0].read_text())} - {_WITHOUT_STATISTICS})
    positions, span = np.load(paths[1]), float(np.load(paths[2]))
    p = len(names)
    with np.load(paths[3]) as archive:
        tnr = archive["TNr"].reshape(p, -1)
        blocks = archive["TNT"].reshape(p, tnr.shape[1], p, tnr.shape[1])
    return PulsarArray(tuple(names), positions, span, np.stack([blocks[i, :, i] for i in range(p)]), tnr, _FOLDER)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:5])}, ... {names[-1]}"
