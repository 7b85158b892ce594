"""Functions of numpy arrays as log-densities of tensors: over processes where they are slow, and going on where they raise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import choose
from sbi_flows.targets.evaluation import no_gradient

_BLOCKS = 4  # a process, so that points of unequal cost spread evenly
_GIVEN = {  # by vectorized
    True: "It was given float64 arrays of shape (n, d), many points at once: for a function of one point pass vectorized=False.",
    False: "It was given one point at a time, float64 of shape (d,): for a function of many points, one a row, pass vectorized=True.",
}


def from_numpy(
    function: Callable,
    grad: Callable | None = None,
    *,
    vectorized: bool = True,
    n_jobs: int | None = None,
    on_error: str = "reject",
) -> NumpyFunction:
    """A numpy function as a function of tensors, for :func:`posterior` and :func:`from_log_prob`.

    Parameters
    ----------
    function : callable
        ``(n, d)`` float64 array to ``(n,)``, or ``(d,)`` to a number with ``vectorized=False``.
    grad : callable, optional
        Its gradient: ``(n, d)`` to ``(n, d)``, or ``(d,)`` to ``(d,)``. Without it gradients raise an error.
    vectorized : bool
        Whether the functions take many rows at once.
    n_jobs : int, optional
        Processes of joblib among which the rows of a batch are shared, -1 for all cores; joblib's own backends (Dask, Ray) work by
        ``joblib.parallel_config``. By default the calling process. Worth it above about a millisecond a row.
    on_error : "reject" or "raise"
        What happens where the function raises. By default that point's value is NaN, which every kernel rejects and counts; the first
        error is warned of, and the run's ``reliability`` tells how many there were. A function that fails at every point of its first
        call is broken, and its error is raised.

    Returns
    -------
    NumpyFunction
        Call it with a tensor ``(n, d)``; it counts ``n_evaluations`` and ``n_failed``.

    Examples
    --------
    >>> f = from_numpy(lambda theta: -0.5 * theta @ theta, vectorized=False)
    >>> f(torch.ones(2, 3))
    tensor([-1.5000, -1.5000], dtype=torch.float64)
    """
    choose("on_error", on_error, ("reject", "raise"))
    return NumpyFunction(function, grad, vectorized, n_jobs, on_error == "reject")


class NumpyFunction:
    """A numpy log-density that takes tensors; made by :func:`from_numpy`.

    Attributes
    ----------
    n_evaluations, n_gradients : int
        Rows given to the function so far, and rows given to ``grad``. Where a batch raises, its rows are given once more, one by one.
    n_failed : int
        Rows at which the function, or its gradient, raised.
    first_error : str or None
        The first error with the point at which it came.
    """

    _n_points = 0  # that were asked for, values and gradients

    def __init__(self, function: Callable, grad: Callable | None, vectorized: bool, n_jobs: int | None, reject: bool):
        self.function, self.grad = function, grad
        self.vectorized, self.n_jobs, self.reject = vectorized, n_jobs, reject
        self.n_evaluations = self.n_gradients = self.n_failed = 0
        self.first_error: str | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return _Differentiable.apply(x, self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report should say of this function."""
        if not self.n_failed:
            return ()
        n_rows, n_points = self.n_evaluations + self.n_gradients, self._n_points
        told = f"the function raised at {self.n_failed} of {n_points} points, which were rejected"
        if n_rows > n_points:
            told += f", and {n_rows - n_points} were evaluated twice, as batches that raise are done again row by row"
        return (f"{told}; the first was {self.first_error}",)

    def values(self, x: Tensor) -> Tensor:
        """``(n,)``, NaN where the function raises."""
        values, given = self._evaluate(self.function, x, (), self.n_evaluations == 0)
        self.n_evaluations += given
        return values

    def gradients(self, x: Tensor) -> Tensor:
        """``(n, d)``, NaN where ``grad`` raises."""
        if self.grad is None:
            raise ValueError(no_gradient("the numpy function"))
        values, given = self._evaluate(self.grad, x, x.shape[1:], self.n_gradients == 0)
        self.n_gradients += given
        if values.shape != x.shape:
            raise ValueError(
                f"Expected grad(x) of shape {tuple(x.shape)}, as x, one slope a column; got {tuple(values.shape)}. A gradient of one "
                "point at a time needs vectorized=False."
            )
        return values

    def _evaluate(self, call: Callable, x: Tensor, shape: tuple[int, ...], first: bool) -> tuple[Tensor, int]:
        """The values, and how many rows the function was given."""
        rows = x.detach().cpu().double().numpy()
        if self.reject:
            work = partial(_batch_or_rows if self.vectorized else _row_by_row, call, shape)
        else:
            work = partial(_whole_batch if self.vectorized else _every_row, call)
        parts = [work(rows)] if self.n_jobs is None or len(rows) < 2 else self._in_processes(work, rows)
        values = np.concatenate([np.asarray(part.values, dtype=np.float64) for part in parts]) if len(parts) > 1 else parts[0].values
        failures = [failure for part in parts for failure in part.failures]
        self._n_points += len(rows)
        if failures:
            self._record(failures, every=first and len(failures) == len(rows))
        return torch.as_tensor(np.asarray(values, dtype=np.float64), device=x.device), sum(part.given for part in parts)

    def _in_processes(self, work: Callable, rows: np.ndarray) -> list[_Part]:
        from joblib import Parallel, delayed, effective_n_jobs

        n_blocks = min(len(rows), effective_n_jobs(self.n_jobs) * (1 if self.vectorized else _BLOCKS))
        return Parallel(n_jobs=self.n_jobs)(delayed(work)(block) for block in np.array_split(rows, n_blocks))

    def _record(self, failures: list[tuple[np.ndarray, Exception]], *, every: bool) -> None:
        row, error = failures[0]
        text = f"{type(error).__name__}: {error} at {np.array2string(row, precision=6, threshold=20)}"
        if every:
            raise ValueError(
                f"The function raised at each of the {len(failures)} points of its first call, the first {text}. {_GIVEN[self.vectorized]}"
            ) from error
        if self.first_error is None:
            self.first_error = text
            warnings.warn(f"The function raised {text}; such points are rejected and counted.", stacklevel=2)
        self.n_failed += len(failures)


class _Part(NamedTuple):
    """What came of some rows: values, the rows at which the function raised with their errors, and how many rows it was given."""

    values: np.ndarray
    failures: list[tuple[np.ndarray, Exception]]
    given: int


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, wrapped):
        ctx.save_for_backward(x)
        ctx.wrapped = wrapped
        return wrapped.values(x)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return (upstream[:, None] * ctx.wrapped.gradients(x)).to(x.dtype), None


# Functions of the module, so that processes need not be sent the object that counts.


def _whole_batch(call: Callable, rows: np.ndarray) -> _Part:
    return _Part(np.asarray(call(rows)), [], len(rows))


def _every_row(call: Callable, rows: np.ndarray) -> _Part:
    return _Part(np.array([call(row) for row in rows]), [], len(rows))


def _row_by_row(call: Callable, shape: tuple[int, ...], rows: np.ndarray) -> _Part:
    values, failures = np.full((len(rows), *shape), np.nan), []
    for i, row in enumerate(rows):
        try:
            value = call(row)
        except Exception as error:  # noqa: BLE001 (a user's function may raise anything, and the other points must go on)
            failures.append((row, _plain(error)))
        else:
            if np.shape(value) != shape:
                raise ValueError(
                    f"Expected the function of one point to return {'a number' if not shape else f'shape {shape}'}; "
                    f"got shape {np.shape(value)}. A function of many points at once takes vectorized=True."
                )
            values[i] = value
    return _Part(values, failures, len(rows))


def _batch_or_rows(call: Callable, shape: tuple[int, ...], rows: np.ndarray) -> _Part:
    try:
        return _whole_batch(call, rows)
    except Exception as error:  # noqa: BLE001 (which of the points is at fault is found one by one)
        if len(rows) == 1:
            return _Part(np.full((1, *shape), np.nan), [(rows[0], _plain(error))], 1)
        one_by_one = _row_by_row(lambda row: np.asarray(call(row[None]))[0], shape, rows)
        return one_by_one._replace(given=2 * len(rows))


def _plain(error: Exception) -> Exception:
    """The error without its traceback, which would keep the frames of the user's function alive."""
    return error.with_traceback(None)
