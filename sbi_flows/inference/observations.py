"""How observations become finite, well-scaled numbers: missing values by mask, heavy tails by maps chosen from the data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from sbi_flows._validation import as_float
from sbi_flows.inference.labels import labels
from sbi_flows.inference.maps import LINEAR, ROOT, STAGE_PARTS, Stage, choose_stage, stride
from sbi_flows.inference.relevance import idle_columns
from sbi_flows.inference.start import straight
from sbi_flows.inference.trials import Trials

_STAGES = 3
# x_o may lie this share of the simulations' range beyond it. A new draw of the same distribution lies beyond the range of n others
# at all in 2 / n of cases.
_MARGIN = 0.1
_ROUNDING = 1e-13


class Observations:
    """From x as the simulator gives it to the rows ``(n, k)`` that an estimator is conditioned on.

    Every column is mapped by the one among linear, asinh and log (up to three in turn) under which the simulations are nearest to a normal
    by likelihood, and standardised: the result does not depend on units, and a column of Cauchy noise does no harm. Counts and other
    amounts that can be zero get a square root where they are skewed, which makes the noise of counts even. Missing values
    (NaN) become 0, with a column of zeros and ones for each column that misses some. Columns that are the same in all simulations, or
    missing in all, are left out, and ``idle`` ones. An embedding network that needs the layout of the data takes these rows: with
    ``keep_layout`` no column is left out, so that the first c columns are x flattened.

    Parameters
    ----------
    keep_layout : bool
    shared : sequence of int
        Axes of one simulation along which values share one map, as pixels of an image do; implies ``keep_layout``.
    trials : bool
        Whether the first axis holds exchangeable trials: they share one map, an observation may have fewer than the simulations, and any of
        them may be missing where some were.
    repeats : Trials, optional
        Columns that are exchangeable trials, counted among those that are not idle: the rows are then made of summaries without the
        trials' order.
    idle : sequence of int
        Columns that have nothing to do with theta, which are left out.

    Attributes
    ----------
    event_shape : tuple of int
        Shape of one simulation.
    n_columns : int
        Columns of the result, k.
    notes : tuple of str
        Columns left out, columns with missing values.

    Examples
    --------
    >>> x = np.array([[1.0, 7.0], [2.0, 7.0], [np.nan, 7.0], [3.0, 7.0]])
    >>> rows = Observations().fit(x).transform(x)
    >>> rows.shape, rows[2].tolist()
    ((4, 2), [0.0, 1.0])
    """

    event_shape: tuple[int, ...]
    notes: tuple[str, ...]

    def __init__(
        self,
        keep_layout: bool = False,
        shared: Sequence[int] = (),
        trials: bool = False,
        *,
        repeats: Trials | None = None,
        idle: Sequence[int] = (),
    ):
        self.shared = tuple(sorted({*shared, 0} if trials else shared))
        self.keep_layout = keep_layout or bool(self.shared)
        self.trials = trials
        self.repeats = repeats
        self.idle = list(idle)

    # --- Fitting -----------------------------------------------------------------------------------------------------------

    def fit(self, x: np.ndarray, names: Sequence[str] | None = None, *, given: np.ndarray | None = None) -> Observations:
        """Choose the maps from simulations.

        Parameters
        ----------
        x : ndarray (n, ...)
            Float64; NaN marks what is missing.
        names : sequence of str, optional
            Column names, where x has two axes.
        given : ndarray (n, d), optional
            Parameters of the simulations, where these were not drawn from one prior: a column that needs no map given them gets none.

        Raises
        ------
        ValueError
            If no column varies.
        """
        self.event_shape = x.shape[1:]
        self.names = None if names is None else [str(name) for name in names]
        self._group = self._groups()
        flat = x.reshape(len(x), -1)
        missing = np.isnan(flat)
        low, high = self._range(flat)
        constant = ~(high - low > _ROUNDING * np.maximum(np.abs(low), np.abs(high)))
        ever = missing.any(axis=0)
        if self.trials:
            ever = np.bincount(self._group, weights=ever)[self._group] > 0
        absent = np.isnan(low)
        self._masked = np.flatnonzero(ever & ~absent)
        if constant.all() and not len(self._masked):
            raise ValueError(
                f"Expected x to vary from simulation to simulation; all {len(constant)} of its columns are constant, so nothing can be "
                "learned from them. Does the simulator use its parameters?"
            )
        self._constant = np.where(constant, low, np.nan)
        idle = np.isin(np.arange(len(constant)), self.idle)
        self._kept = np.flatnonzero(~constant & ~idle | self.keep_layout)
        self._absent = np.flatnonzero(absent)
        self.notes = self._describe(constant, missing)
        values = self._pooled(np.where(constant, 0.0, flat)[:, self._kept])
        every = stride(len(values), len(values) // len(x))
        thinned = values[::every]
        self._stages: list[Stage] = []
        settled = np.zeros(values.shape[1], dtype=bool)
        for _ in range(_STAGES):
            stage = choose_stage(thinned, settled)
            if given is not None and not self.shared and not self._stages:
                settled = straight(thinned, given[::every], stage.kind != LINEAR)
                stage = choose_stage(thinned, settled)
            settled |= stage.kind == ROOT
            self._stages.append(stage.of_groups(self._group) if self.shared else stage)
            if not stage.kind.any():
                break
            thinned = stage(thinned)
        self._low, self._high = self._range(self._map(flat))
        counts = self._n_trials(flat)
        self._trial_range = None if counts is None else (int(counts.min()), int(counts.max()))
        self._most_missing = int(missing.sum(axis=1).max())
        if self.repeats is not None:
            self._of_summaries = Observations().fit(self.repeats.summaries(self._used(flat)))
        return self

    def _used(self, flat: np.ndarray) -> np.ndarray:
        return np.delete(flat, self.idle, axis=1)

    def _groups(self) -> np.ndarray:
        """For each column the number of the map that it shares with others."""
        places = np.indices(self.event_shape).reshape(len(self.event_shape), -1)
        kept = [axis for axis in range(len(self.event_shape)) if axis not in self.shared]
        sizes = [self.event_shape[axis] for axis in kept]
        return np.ravel_multi_index(list(places[kept]), sizes) if kept else np.zeros(places.shape[1], dtype=int)

    def _pooled(self, values: np.ndarray) -> np.ndarray:
        """``(n, c)`` to one column a map, the columns that share it one under another."""
        if not self.shared:
            return values
        order = np.argsort(self._group, kind="stable")
        stacked = values[:, order].reshape(len(values), self._group.max() + 1, -1)
        return stacked.swapaxes(1, 2).reshape(-1, stacked.shape[1])

    def _range(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of each column, among all that share its map; NaN where all are missing."""
        pooled = self._pooled(values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanmin(pooled, axis=0), np.nanmax(pooled, axis=0)
        return (low[self._group], high[self._group]) if self.shared else (low, high)

    def _n_trials(self, flat: np.ndarray) -> np.ndarray | None:
        """Trials that are there in each row, ``(n,)``."""
        if not self.trials:
            return None
        return (~np.isnan(flat.reshape(len(flat), self.event_shape[0], -1))).any(axis=2).sum(axis=1)

    def _describe(self, constant: np.ndarray, missing: np.ndarray) -> tuple[str, ...]:
        notes = []
        masked = np.isin(np.arange(len(constant)), self._masked)
        if (idle := constant & ~masked).any():
            notes.append(f"x: {self._labels(np.flatnonzero(idle))} the same in all simulations, so nothing can be learned from there")
        if (told := constant & masked).any():
            notes.append(f"x: {self._labels(np.flatnonzero(told))} the same in all simulations that have it; whether they do is used")
        if len(self._masked):
            share = missing[:, self._masked].mean(axis=0).max()
            notes.append(f"x: {self._labels(self._masked)} missing in up to {share:.1%} of the simulations; a mask tells the network")
        if self.idle:
            notes.append(
                f"x: {self._labels(np.array(self.idle))} left out, as nothing there goes with theta, nor with columns that do; pass "
                "embedding=None to use them all the same"
            )
        return tuple(notes)

    # --- Use ---------------------------------------------------------------------------------------------------------------

    @property
    def missing(self) -> list[int]:
        """Columns of x flattened that have a column of zeros and ones at the end of the rows, in order."""
        return self._masked.tolist()

    @property
    def n_columns(self) -> int:
        return len(self._kept) + len(self._masked) if self.repeats is None else self._of_summaries.n_columns

    def rows_of(self, x: Any, name: str = "x") -> tuple[np.ndarray, bool]:
        """``x`` as float64 ``(m, *event_shape)``, and whether it was a single observation without the leading axis.

        Raises
        ------
        ValueError
            If x has another shape or no rows, misses what no simulation missed, or is infinite.
        """
        rows, single = self._in_shape(x, name)
        never = self._gaps(rows.reshape(len(rows), -1)).any(axis=0)
        if never.any():
            raise ValueError(
                f"{name} misses {self._labels(np.flatnonzero(never))}, which no simulation missed, so that the network cannot know what to "
                "make of it. Set x to NaN there in a share of the simulations, at random, and fit again."
            )
        return rows, single

    def readable(self, x: np.ndarray) -> np.ndarray:
        """Which of further simulations ``(n, *event_shape)`` miss nothing but what some before missed, ``(n,)`` bool."""
        gaps = self._gaps(self._in_shape(x, "x")[0].reshape(len(x), -1))
        return np.logical_not(gaps.any(axis=1))

    def outgrown_by(self, x: np.ndarray, theta: np.ndarray | None = None) -> str:
        """What further simulations ``(n, *event_shape)`` show that was left out, in words; nothing for "".

        Given their parameters, columns that had nothing to do with these are looked at again.
        """
        flat = self._in_shape(x, "x")[0].reshape(len(x), -1)
        gaps, moved = self._gaps(flat).any(axis=0), self._moved(flat).any(axis=0)
        told = [f"{self._labels(np.flatnonzero(gaps))} missing for the first time"] if gaps.any() else []
        if moved.any():
            told.append(f"{self._labels(np.flatnonzero(moved))} no longer the same in all simulations")
        if self.idle and theta is not None and len(awake := np.setdiff1d(self.idle, np.flatnonzero(idle_columns(theta, flat)))):
            told.append(f"{self._labels(awake)} found to tell of theta")
        return " and ".join(told)

    def _gaps(self, flat: np.ndarray) -> np.ndarray:
        """Where ``(n, c)`` misses what no simulation did."""
        gaps = np.isnan(flat) & np.isnan(self._constant)
        gaps[:, self._masked] = False
        gaps[:, self._absent] = False
        return gaps

    def _moved(self, flat: np.ndarray) -> np.ndarray:
        """Where ``(n, c)`` has another value than all simulations, or one where they had none."""
        moved = np.abs(flat - self._constant) > _ROUNDING * np.abs(self._constant)
        moved[:, self._absent] = ~np.isnan(flat[:, self._absent])
        return moved

    def _in_shape(self, x: Any, name: str) -> tuple[np.ndarray, bool]:
        array = as_float(x, name).double().cpu().numpy()
        shape = self.event_shape
        if array.ndim == 0 and shape == (1,):
            array = array[None]
        if self.trials:
            array = self._padded(array)
        single = array.shape == shape
        if not single and array.shape[1:] != shape:
            raise ValueError(
                f"Expected {name} of shape {shape} like one simulation, or (m, {', '.join(map(str, shape))}) for m observations; "
                f"got {array.shape}. Summarise it exactly as the simulations were."
            )
        rows = array[None] if single else array
        if not len(rows):
            raise ValueError(f"Expected at least one observation in {name}; got none, an array of shape {array.shape}.")
        flat = rows.reshape(len(rows), -1)
        if np.isinf(flat).any():
            where = np.flatnonzero(np.isinf(flat).any(axis=0))
            raise ValueError(f"Expected finite {name} (NaN where it is missing); got infinite values in {self._labels(where)}.")
        return rows, single

    def first_maps(self) -> np.ndarray:
        """How each column of x flattened looked at first, ``(c,)``: ``LINEAR``, ``ASINH``, ``LOG``, ``ROOT``, or -1 for one left out."""
        kinds = np.full(len(self._constant), -1)
        kinds[self._kept] = self._stages[0].kind
        return kinds

    def _padded(self, array: np.ndarray) -> np.ndarray:
        """Observations of fewer trials than the simulations, with NaN for those they lack."""
        axis = array.ndim - len(self.event_shape)
        lacking = self.event_shape[0] - array.shape[axis] if axis in (0, 1) else 0
        if lacking <= 0:
            return array
        return np.pad(array, [(0, lacking if i == axis else 0) for i in range(array.ndim)], constant_values=np.nan)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """``(n, *event_shape)`` to ``(n, k)``, finite."""
        flat = x.reshape(len(x), -1)
        if self.repeats is not None:
            return self._of_summaries.transform(self.repeats.summaries(self._used(flat)))
        values = self._map(flat)
        return np.hstack([np.where(np.isnan(values), 0.0, values), np.isnan(flat[:, self._masked])])

    def reasons(self, x: np.ndarray) -> list[str]:
        """Why results for observations ``(m, *event_shape)`` should not be believed: they look like no simulation, column by column.

        A cheap check; combinations of columns that no simulation shows are left to :mod:`sbi_flows.diagnostics`.
        """
        flat = x.reshape(len(x), -1)
        values = self._map(flat)
        span = self._high - self._low
        strange = self._moved(flat)
        strange[:, self._kept] |= (values < self._low - _MARGIN * span) | (values > self._high + _MARGIN * span)
        reasons = self._strange_numbers_of_trials(flat) if self.trials else self._too_much_missing(flat)
        if not strange.any():
            return reasons
        columns, rows = np.flatnonzero(strange.any(axis=0)), np.flatnonzero(strange.any(axis=1))
        what = "x_o lies" if len(x) == 1 else f"{len(rows)} of {len(x)} observations (the first is number {rows[0]}) lie"
        return [
            *reasons,
            f"{what} outside the range of the simulations in {self._labels(columns)}: the posterior there is a guess. "
            "Check units and summaries, or widen the prior or the simulator so that it can make such data",
        ]

    def _strange_numbers_of_trials(self, flat: np.ndarray) -> list[str]:
        counts = self._n_trials(flat)
        if counts is None or self._trial_range is None:
            return []
        fewest, most = self._trial_range
        strange = counts[(counts < fewest) | (counts > most)]
        if not len(strange):
            return []
        return [
            f"x_o has {int(strange[0])} trials where the simulations had {fewest} to {most}: the posterior there is a guess. "
            "Simulate with as many, others left out as NaN"
        ]

    def _too_much_missing(self, flat: np.ndarray) -> list[str]:
        most, whole = int(np.isnan(flat).sum(axis=1).max()), flat.shape[1]
        if most <= self._most_missing:
            return []
        return [
            f"x_o misses {most} of its {whole} values where no simulation missed more than {self._most_missing}: the posterior there is a "
            "guess. Set as many values to NaN in a share of the simulations, and fit again"
        ]

    def _map(self, flat: np.ndarray) -> np.ndarray:
        varies = np.isnan(self._constant)
        varies[self._absent] = False
        values = np.where(varies[self._kept], flat[:, self._kept], 0.0)
        for stage in self._stages:
            values = stage(values)
        return values

    def _labels(self, columns: np.ndarray) -> str:
        return labels(columns, self.names, self.event_shape)

    # --- Files -------------------------------------------------------------------------------------------------------------

    def to_data(self) -> dict[str, Any]:
        """Everything as lists and numbers; None stands for NaN."""
        return {
            "keep_layout": self.keep_layout,
            "shared": list(self.shared),
            "trials": self.trials,
            "idle": self.idle,
            "repeats": None if self.repeats is None else [self.repeats.to_data(), self._of_summaries.to_data()],
            "trial_range": self._trial_range,
            "most_missing": self._most_missing,
            "event_shape": list(self.event_shape),
            "names": self.names,
            "notes": list(self.notes),
            "constant": [None if np.isnan(value) else value for value in self._constant.tolist()],
            "kept": self._kept.tolist(),
            "masked": self._masked.tolist(),
            "absent": self._absent.tolist(),
            "low": self._low.tolist(),
            "high": self._high.tolist(),
            "stages": [{name: getattr(stage, name).tolist() for name in STAGE_PARTS} for stage in self._stages],
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Observations:
        """What :meth:`to_data` wrote."""
        shared, trials, idle = data.get("shared", ()), data.get("trials", False), data.get("idle", ())
        observations = cls(keep_layout=data["keep_layout"], shared=shared, trials=trials, idle=idle)
        observations.event_shape, observations.names = tuple(data["event_shape"]), data["names"]
        observations._group = observations._groups()
        observations._most_missing = data["most_missing"]
        observations._trial_range = None if data.get("trial_range") is None else tuple(data["trial_range"])
        observations.notes = tuple(data["notes"])
        observations._constant = np.array([np.nan if value is None else value for value in data["constant"]])
        observations._kept, observations._masked = np.array(data["kept"], dtype=int), np.array(data["masked"], dtype=int)
        observations._absent = np.array(data.get("absent", []), dtype=int)
        observations._low, observations._high = np.array(data["low"]), np.array(data["high"])
        observations._stages = [Stage(**{name: np.array(stage[name]) for name in STAGE_PARTS}) for stage in data["stages"]]
        if data.get("repeats") is not None:
            repeats, of_summaries = data["repeats"]
            observations.repeats, observations._of_summaries = Trials.from_data(repeats), cls.from_data(of_summaries)
        return observations
