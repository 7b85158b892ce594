"""Run a simulator over many parameters: in parallel, resumable, and without losing what is finished to what fails."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from joblib.parallel import get_active_backend
from tqdm import tqdm

from sbi_flows._random import RandomState, seed_from
from sbi_flows._validation import as_float, positive
from sbi_flows.inference.fingerprint import fingerprint
from sbi_flows.inference.simulation_cache import SimulationCache, row_keys

_TASK_SECONDS = 0.5  # work handed to a worker at once
_LARGEST_TASK = 1000
_VECTORIZED = 1000
_HOPELESS = 20  # this many failures without one success end the run


def simulate(
    simulator: Callable,
    theta: Any,
    *,
    n_jobs: int | None = None,
    vectorized: bool = False,
    batch_size: int | str = "auto",
    cache: str | Path | None = None,
    random_state: RandomState = None,
    progress: bool = False,
) -> np.ndarray:
    """Simulate every row of ``theta``.

    Parameters
    ----------
    simulator : callable
        From one row of parameters ``(d,)``, float64, to its data, an array of any shape that is the same every time; with ``vectorized``
        from rows ``(k, d)`` to ``(k, ...)``. With ``random_state`` it is called as ``simulator(theta, rng)`` with a
        ``numpy.random.Generator``.
    theta : array_like or DataFrame (n, d)
    n_jobs : int, optional
        Worker processes; -1 is one a core. By default what ``joblib.parallel_config`` says, else one. Dask and Ray are joblib backends:
        ``with joblib.parallel_config(backend="dask"): simulate(...)``.
    vectorized : bool
    batch_size : int or "auto"
        Rows handed to a worker at once: by default half a second's worth of single rows, or 1000 vectorized ones.
    cache : path, optional
        Folder, one for each simulator, in which finished simulations are kept, seconds after they are done. Called again, only what
        is not there is simulated; theta may have grown meanwhile. A simulator whose code, or values it refers to, have changed is refused.
    random_state : int, generator or None
        Each row gets random numbers of its own that depend on the seed and its parameters only (vectorized: on the seed and the first row
        of its batch), not on ``n_jobs`` or on what is in the cache. None leaves randomness to the simulator; in worker processes
        the global streams of numpy and torch are then seeded afresh, as some would be alike in all of them.
    progress : bool

    Returns
    -------
    ndarray (n, ...)
        Float64. A simulation that failed - raised an error, returned NaN throughout, infinities, or another shape than the others -
        is a row of NaN, which :meth:`NPE.fit` leaves out.

    Raises
    ------
    ValueError
        If the cache was made by another simulator (as far as :func:`sbi_flows.inference.fingerprint.fingerprint` sees) or is damaged.
    RuntimeError
        If the first 20 simulations (or all) fail.

    Warns
    -----
    UserWarning
        That some simulations failed and how; that all gave the same data.

    Examples
    --------
    >>> x = simulate(lambda theta, rng: theta + rng.normal(size=2), np.zeros((5, 2)), random_state=0)
    >>> x.shape
    (5, 2)
    """
    if not callable(simulator):
        raise TypeError(f"Expected simulate(simulator, theta) with a function first; got a {type(simulator).__name__}.")
    rows = as_float(theta, "theta").double().cpu().numpy()
    if rows.ndim != 2:
        hint = "For one parameter vector pass theta[None]; for one parameter theta[:, None]."
        raise ValueError(f"Expected theta of shape (n, d); got {rows.shape}. {hint}")
    if not len(rows):
        raise ValueError(f"Expected at least one row of theta; got none, an array of shape {rows.shape}.")
    if batch_size != "auto":
        positive("batch_size", batch_size, integer=True)
    seed = None if random_state is None else seed_from(random_state)
    store = SimulationCache(cache)
    parts = store.check(fingerprint(simulator))
    run = _Run(simulator, rows, row_keys(rows, seed), seed, vectorized, store)
    try:
        with tqdm(total=len(rows), initial=run.n_done, desc="simulating", disable=not progress) as bar:
            for _ in run.results(n_jobs, batch_size):
                bar.update(run.n_done - bar.n)
    finally:
        store.flush()  # also on Ctrl-C
        store.keep(parts, fingerprint(simulator))
    return run.collect()


def simulate_one(simulator: Callable, theta: np.ndarray, *, vectorized: bool, seed: int | None) -> np.ndarray | None:
    """One simulation of ``theta (d,)``, to see what it looks like; None if it fails."""
    row = np.asarray(theta, dtype=np.float64)[None]
    task = _Task(simulator, [0], row, row_keys(row, seed), seed, vectorized, os.getpid(), 0)
    return task.run()[0][1]


@dataclass(frozen=True)
class _Task:
    """Rows for a worker, with the keys from which their random numbers are seeded."""

    simulator: Callable
    index: Sequence[int]
    theta: np.ndarray
    keys: Sequence[bytes]
    seed: int | None
    vectorized: bool
    parent: int
    entropy: int

    def run(self) -> list[tuple[int, np.ndarray | None, str]]:
        """Row number, data or None, and what went wrong."""
        if self.seed is None and os.getpid() != self.parent:
            np.random.seed(self.entropy % 2**32)  # noqa: NPY002 (the simulator's own stream, in a process of ours)
            torch.manual_seed(self.entropy)
        if not self.vectorized:
            return [(i, *self._one(row, key)) for i, row, key in zip(self.index, self.theta, self.keys, strict=True)]
        together, problem = self._guarded(self.theta, self.keys[0])
        if together is not None and together.shape[:1] == (len(self.theta),):
            return [(i, *_judged(x)) for i, x in zip(self.index, together, strict=True)]
        if together is not None:
            problem = f"returned shape {together.shape} for {len(self.theta)} rows of theta, where the first axis should count rows"
            return [(i, None, problem) for i in self.index]
        # One bad row must not take the others with it.
        return [(i, *self._alone(row, key)) for i, row, key in zip(self.index, self.theta, self.keys, strict=True)]

    def _one(self, row: np.ndarray, key: bytes) -> tuple[np.ndarray | None, str]:
        x, problem = self._guarded(row, key)
        return (None, problem) if x is None else _judged(np.atleast_1d(x))

    def _alone(self, row: np.ndarray, key: bytes) -> tuple[np.ndarray | None, str]:
        x, problem = self._guarded(row[None], key)
        if x is not None and x.shape[:1] != (1,):
            return None, f"returned shape {x.shape} for one row of theta"
        return (None, problem) if x is None else _judged(x[0])

    def _guarded(self, theta: np.ndarray, key: bytes) -> tuple[np.ndarray | None, str]:
        try:
            if self.seed is None:
                result = self.simulator(theta.copy())
            else:
                result = self.simulator(theta.copy(), np.random.default_rng([self.seed, *np.frombuffer(key, dtype=np.uint32).tolist()]))
            if result is None:
                return None, "returned None"
            return np.array(as_float(result, "x").double().cpu().numpy()), ""
        except Exception as error:  # noqa: BLE001 (a user's simulator may raise anything, and the others must go on)
            return None, f"raised {type(error).__name__}: {error}"


def _work(task: _Task) -> list[tuple[int, np.ndarray | None, str]]:
    return task.run()


def _judged(x: np.ndarray) -> tuple[np.ndarray | None, str]:
    x = np.atleast_1d(x)
    if np.isnan(x).all():
        return None, "returned NaN"
    if np.isinf(x).any():
        return None, "returned infinities"
    return x, ""


class _Run:
    """One call of :func:`simulate`."""

    def __init__(self, simulator, theta: np.ndarray, keys: list[bytes], seed: int | None, vectorized: bool, store: SimulationCache):
        self.simulator, self.theta, self.keys, self.seed, self.vectorized, self.store = simulator, theta, keys, seed, vectorized, store
        known = store.read()
        self.done = {i: known[key] for i, key in enumerate(keys) if key in known}
        self.problems: dict[int, str] = {}
        self._fresh = np.random.SeedSequence()

    @property
    def n_done(self) -> int:
        return len(self.done) + len(self.problems)

    def results(self, n_jobs: int | None, batch_size: int | str) -> Iterator[None]:
        """Simulate what is missing, yielding whenever a piece of it is finished."""
        missing = [i for i in range(len(self.theta)) if i not in self.done]
        if not missing:
            return
        if self.vectorized:
            size = _VECTORIZED if batch_size == "auto" else int(batch_size)
            wanted = sorted({i // size for i in missing})
            groups = [list(range(g * size, min((g + 1) * size, len(self.theta)))) for g in wanted]
        else:
            began = time.perf_counter()
            self._take(self._task(missing[:1]).run())
            yield
            seconds = time.perf_counter() - began
            rest = missing[1:]
            size = int(np.clip(_TASK_SECONDS / max(seconds, 1e-6), 1, _LARGEST_TASK)) if batch_size == "auto" else int(batch_size)
            groups = [rest[start : start + size] for start in range(0, len(rest), size)]
        as_they_come = get_active_backend()[0].supports_return_generator
        pool = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered" if as_they_come else "list", batch_size=1)
        # Workers are given no more once nothing works, and finish what they have.
        tasks = (self._task(group) for group in takewhile(lambda _: not self.hopeless, groups))
        for finished in pool(joblib.delayed(_work)(task) for task in tasks):
            self._take(finished)
            yield
        if self.hopeless:
            raise RuntimeError(self._complaint())

    def collect(self) -> np.ndarray:
        """All simulations in order, NaN where they failed, with a warning about what should be known."""
        if not self.done:
            raise RuntimeError(self._complaint())
        shapes = Counter(x.shape for x in self.done.values())
        shape = shapes.most_common(1)[0][0]
        result = np.full((len(self.theta), *shape), np.nan)
        for i, x in self.done.items():
            if x.shape == shape:
                result[i] = x
            else:
                self.problems[i] = f"returned shape {x.shape}, where most have {shape}"
        for message in self._remarks(result):
            warnings.warn(message, UserWarning, stacklevel=3)
        return result

    def _remarks(self, x: np.ndarray) -> list[str]:
        messages = []
        if self.problems:
            kept = " Finished ones are in the cache; called again, only failed ones are run." if self.store.folder is not None else ""
            messages.append(
                f"{len(self.problems)} of {len(self.theta)} simulations failed and are rows of NaN: {_summary(self.problems)}.{kept}"
            )
        good = x[np.isfinite(x).reshape(len(x), -1).any(axis=1)]
        if len(good) > 1 and (good == good[:1]).all():
            messages.append(
                f"All {len(good)} simulations gave the same data, so nothing can be learned from them. Does the simulator use its "
                "parameters, and does it draw new random numbers every time?"
            )
        return messages

    def _task(self, index: Sequence[int]) -> _Task:
        entropy = int(self._fresh.spawn(1)[0].generate_state(1, np.uint64)[0] >> np.uint64(1))
        keys = [self.keys[i] for i in index]
        return _Task(self.simulator, list(index), self.theta[list(index)], keys, self.seed, self.vectorized, os.getpid(), entropy)

    def _take(self, finished: list[tuple[int, np.ndarray | None, str]]) -> None:
        for i, x, problem in finished:
            if x is None:
                self.problems.setdefault(i, problem)
                continue
            if i not in self.done:
                self.store.add(self.keys[i], x)
            self.done[i] = x

    @property
    def hopeless(self) -> bool:
        """Whether enough simulations failed, and none succeeded."""
        return not self.done and len(self.problems) >= _HOPELESS

    def _complaint(self) -> str:
        first = min(self.problems)
        call = "simulator(theta)" if self.seed is None else "simulator(theta, rng)"
        return (
            f"Expected a simulator that works; all of the first {len(self.problems)} simulations failed: {_summary(self.problems)}. "
            f"Call it on one row, theta = {self.theta[first].tolist()}. It is called as {call} with "
            f"theta of shape {'(k, d)' if self.vectorized else '(d,)'}."
        )


def _summary(problems: dict[int, str]) -> str:
    """The commonest problems with their counts and a row to look at."""
    counts = Counter(problems.values()).most_common(3)
    return "; ".join(f"{n} {text} (row {min(i for i, own in problems.items() if own == text)})" for text, n in counts)
