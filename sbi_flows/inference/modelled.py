"""x as something that has a density: which columns are modelled, where they live, and whole numbers made continuous."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbi_flows.flows import CountColumn
from sbi_flows.flows.counts import UNIT
from sbi_flows.inference.cells import CONTINUOUS, Cells
from sbi_flows.inference.labels import label
from sbi_flows.inference.observations import Observations
from sbi_flows.inference.start import choose_scale, choose_support

_FEW_LEVELS = 10
# Where a number fills this share of the simulations, its probability is modelled as such: the noise that would make it continuous is a
# shape that a flow must learn, and at parameters where it fills nearly all, the flow would learn little else.
_COARSE = 0.005


class Modelled:
    """From x as the simulator gives it to rows ``(n, k)`` whose density given theta a flow learns, as in :class:`NLE`.

    Columns that are the same in all simulations are left out. Whole numbers that repeat get probabilities
    (:class:`sbi_flows.flows.CountFlow`). Those that hardly do, and all where the flow is one of the user's, are spread over cells of a
    line, and the density integrated over a cell is the probability of its number (:class:`sbi_flows.inference.cells.Cells`). Heavy tails
    and columns of one sign become a support, which the flow maps to the line, where that makes x given theta more probable: the density
    stays one of x itself.

    Attributes
    ----------
    observations : Observations
        Reads x and knows its range.
    support : list
        One entry a modelled column, in the support grammar.
    counts : dict of int to CountColumn
        The modelled columns of whole numbers that get probabilities.
    cells : Cells
        The cells of the other whole numbers, and the rule by which densities are integrated over them.
    notes, reasons : tuple of str
        Treatments, and what spoils the density.

    Examples
    --------
    >>> x = np.stack([np.arange(20.0), np.full(20, 3.0), np.linspace(-1, 1, 20)], axis=1)
    >>> modelled = Modelled().fit(x, np.zeros((20, 1)))
    >>> modelled.rows(x[:1]).tolist(), modelled.support
    ([[0.0, -1.0]], ['real', 'real'])

    References
    ----------
    Theis, van den Oord & Bethge 2016, "A note on the evaluation of generative models", arXiv:1511.01844 (uniform dequantisation).
    """

    observations: Observations
    support: list
    counts: dict[int, CountColumn]
    cells: Cells
    notes: tuple[str, ...]
    reasons: tuple[str, ...]

    def fit(
        self, x: np.ndarray, given: np.ndarray, names: Sequence[str] | None = None, *, plain: bool = False, probabilities: bool = True
    ) -> Modelled:
        """Look at simulations ``(n, ...)``.

        Parameters
        ----------
        x : ndarray (n, ...)
        given : ndarray (n, c)
            Their parameters, as the network gets them.
        names : sequence of str, optional
        plain : bool
            Whether x itself is modelled whatever it looks like, whole numbers on unit cells, because its support was given.
        probabilities : bool
            Whether the flow can give probabilities to whole numbers.

        Raises
        ------
        ValueError
            If values are missing, or no column varies.
        """
        flat = x.reshape(len(x), -1)
        missing = np.isnan(flat).any(axis=0)
        if missing.any():
            raise ValueError(
                f"Expected x without missing values; {missing.sum()} of {len(missing)} columns hold NaN, and NLE models the density of x "
                "itself. Use NPE or NRE, which take them, or leave those columns out."
            )
        self.observations = Observations().fit(x, names)
        self._columns = np.flatnonzero(self.observations.first_maps() >= 0)
        own = flat[:, self._columns]
        whole = (own == np.round(own)).all(axis=0)
        levels = np.array([len(np.unique(column)) if each else 0 for column, each in zip(own.T, whole, strict=True)])
        repeated = [probabilities and not plain and bool(n) and _repeats(column) for column, n in zip(own.T, levels, strict=True)]
        self.counts = {i: _count_column(own[:, i], given) for i in np.flatnonzero(repeated).tolist()}
        levels[list(self.counts)] = 0
        scales = [
            CONTINUOUS if not n else UNIT if plain or n <= _FEW_LEVELS or column.min() < 0 else choose_scale(column, given)
            for column, n in zip(own.T, levels, strict=True)
        ]
        self.cells = Cells(scales)
        self.support = [
            "real" if i in self.counts else _whole_support(own[:, i], scale, levels[i]) if levels[i] else choose_support(own[:, i], given)
            for i, scale in enumerate(scales)
        ]
        self.notes, self.reasons = self._remarks(levels)
        return self

    @property
    def labels(self) -> list[str]:
        """What messages call the modelled columns: their names, or their place in x."""
        return [label(int(j), self.observations.names, self.observations.event_shape) for j in self._columns]

    def refuse_impossible(self, x: np.ndarray) -> None:
        """``ValueError`` where further simulations ``(n, ...)`` hold numbers that were taken to be impossible."""
        rows = self.rows(x)
        for i, column in self.counts.items():
            low, high = -np.inf if column.lowest is None else column.lowest, np.inf if column.highest is None else column.highest
            strange = (rows[:, i] != np.round(rows[:, i])) | (rows[:, i] < low) | (rows[:, i] > high)
            if strange.any():
                raise ValueError(
                    f"Expected {self.labels[i]} to hold such whole numbers as in the first simulations; got "
                    f"{float(rows[strange, i][0]):g} and {int(strange.sum()) - 1} more of another kind. Fit a new NLE to all together."
                )

    def noisy_rows(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``(n, ...)`` to ``(n, k)`` with noise on whole numbers: to fit a density to."""
        return self.cells.noisy(self.rows(x), rng)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """``(n, ...)`` to ``(n, k)`` with whole numbers as they are: what ``cells`` takes."""
        return x.reshape(len(x), -1)[:, self._columns]

    def to_data(self) -> dict[str, Any]:
        """Everything as lists and numbers; None stands for an infinite end."""
        entries = [entry if isinstance(entry, str) else [end if np.isfinite(end) else None for end in entry] for entry in self.support]
        return {
            "observations": self.observations.to_data(),
            "columns": self._columns.tolist(),
            "counts": [[i, [column.scale, column.lowest, column.highest]] for i, column in self.counts.items()],
            "scales": list(self.cells.scales),
            "level": self.cells.level,
            "support": entries,
            "notes": list(self.notes),
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Modelled:
        """What :meth:`to_data` wrote."""
        modelled = cls()
        modelled.observations = Observations.from_data(data["observations"])
        modelled._columns = np.array(data["columns"], dtype=int)
        modelled.counts = {i: CountColumn(*told) for i, told in data.get("counts", [])}
        modelled.cells = Cells(data["scales"], data["level"])
        modelled.support, modelled.notes, modelled.reasons = data["support"], tuple(data["notes"]), tuple(data["reasons"])
        return modelled

    def _remarks(self, levels: np.ndarray) -> tuple[tuple[str, ...], tuple[str, ...]]:
        notes, reasons = list(self.observations.notes), []
        n_whole, n_few = int((levels > 0).sum()), int(((levels > 0) & (levels <= _FEW_LEVELS)).sum())
        if n_whole:
            notes.append(f"x: {n_whole} columns hold whole numbers only; noise within their cells makes them continuous (dequantisation)")
        if self.counts:
            notes.append(f"x: {len(self.counts)} columns hold whole numbers, of which probabilities are learned")
        if n_few:
            reasons.append(
                f"x: {n_few} columns take at most {_FEW_LEVELS} different whole values, which a continuous density fits badly: leave the "
                "support to NLE and take flow='nsf', 'maf' or 'realnvp', which gives them probabilities"
            )
        return tuple(notes), tuple(reasons)


def _whole_support(column: np.ndarray, scale: str, levels: int):
    return (float(column.min()), float(column.max()) + 1) if scale == UNIT and levels <= _FEW_LEVELS else "real"


def _repeats(column: np.ndarray) -> bool:
    return bool(np.unique(column, return_counts=True)[1].max() >= _COARSE * len(column))


def _count_column(column: np.ndarray, given: np.ndarray) -> CountColumn:
    low, high = int(column.min()), int(column.max())
    if (low, high) == (0, 1):
        return CountColumn(UNIT, 0, 1)
    return CountColumn(UNIT) if low < 0 else CountColumn(choose_scale(column, given), 0)
