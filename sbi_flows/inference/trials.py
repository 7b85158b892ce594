"""Columns of x that are repeated trials: found by a test, and turned into numbers that do not depend on the trials' order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

_FEWEST_ROWS = 1000  # with fewer simulations, columns that are only nearly alike could pass
_FEWEST_TRIALS = 3  # pairs of columns are alike by accident too easily, and there is little to gain
_MOST_COLUMNS = 128
_ROWS_TO_LOOK_AT = 10_000
_OVERLOOKED = 0.01  # bound on the probability that true trials are not recognised, in each comparison of two of them
_LAGS = 3
_WAVES = 6
_RANDOM_FUNCTIONS = 24


@dataclass(frozen=True)
class Trials:
    """Exchangeable trials among the columns of x, and summaries that say all about them but their order.

    Attributes
    ----------
    columns : ndarray of int (k, p)
        Of x flattened: the p values of each of k trials.

    Examples
    --------
    >>> trials = Trials(np.array([[0, 1], [2, 3], [4, 5]]))
    >>> x = np.array([[1.0, 9.0, 3.0, 8.0, 2.0, 7.0, 5.0]])
    >>> trials.summaries(x)[0, :7].tolist()
    [5.0, 1.0, 9.0, 2.0, 7.0, 3.0, 8.0]
    """

    columns: np.ndarray

    def summaries(self, x: np.ndarray) -> np.ndarray:
        """``(n, c)`` to the other columns, the trials sorted, and their means, deviations and correlations; NaN stays out."""
        rest = np.delete(x, self.columns.ravel(), axis=1)
        trials = x[:, self.columns]
        # Ties in the first value are broken by the next, or the order of equal trials would show.
        order = np.lexsort(np.moveaxis(trials, 2, 0)[::-1], axis=-1)
        trials = np.take_along_axis(trials, order[:, :, None], axis=1)
        mean, spread, correlation = _moments(trials)
        return np.hstack([rest, trials.reshape(len(x), -1), mean, spread, correlation])

    def to_data(self) -> list[list[int]]:
        """The columns as lists."""
        return self.columns.tolist()

    @classmethod
    def from_data(cls, data: Any) -> Trials:
        """What :meth:`to_data` wrote."""
        return cls(np.array(data, dtype=int))


def _moments(trials: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of ``(n, k, p)``: means and standard deviations ``(n, p)``, and Fisher's z of each pair's correlation."""
    mean = trials.mean(axis=1)
    apart = trials - mean[:, None]
    spread = np.sqrt((apart**2).mean(axis=1))
    scaled = apart / np.where(spread > 0, spread, 1.0)[:, None]
    first, second = np.triu_indices(trials.shape[2], 1)
    correlation = (scaled[:, :, first] * scaled[:, :, second]).mean(axis=1)
    return mean, spread, np.arctanh(np.clip(correlation, -1, 1) * (1 - 1e-6))


def find_trials(theta: np.ndarray, x: np.ndarray) -> Trials | None:
    """Exchangeable trials among the columns of ``x (n, c)``: three or more groups of columns that may change places.

    Trials are exchangeable if the joint distribution of theta and x is the same with any two of them swapped. Then the difference that a
    swap makes to any function of theta and x has a distribution symmetric about zero, and the sum of such differences over the
    simulations, divided by the root of the sum of their squares, exceeds t with a probability below 2 exp(-t^2 / 2), whatever the
    distribution. Some thousand functions are looked at: ranks of the values, what theta does not explain of them, their distances from
    the trials' mean, products and random functions of these, times waves and random functions of theta, other trials and other columns,
    and products of neighbours.
    Where none tells two trials apart, they are taken for exchangeable. True trials are overlooked with a probability below 1 % a
    comparison; what differs by less than about 5 / sqrt(n) deviations in all of these functions is not seen: of series of six values
    whose volatility persists, 2 of 40 passed with 1000 simulations and none with 2000. Then a posterior is wider than it need be, as
    the order is lost, but not wrong.

    Parameters
    ----------
    theta : ndarray (n, d)
        Parameters; a function of x that depends on them in another way from trial to trial is no set.
    x : ndarray (n, c)

    Returns
    -------
    Trials or None
        None also for fewer than 1000 simulations, more than 128 columns, or values that are missing.

    References
    ----------
    Efron 1969, "Student's t-test under symmetry conditions", JASA 64 (the bound).
    """
    n, c = x.shape
    if n < _FEWEST_ROWS or not _FEWEST_TRIALS <= c <= _MOST_COLUMNS or not np.isfinite(x).all():
        return None
    step = -(-n // _ROWS_TO_LOOK_AT)
    theta, x = theta[::step], x[::step]
    given = _functions_of(theta)
    classes = _alike(x, given)
    for size in sorted({len(own) for own in classes if len(own) >= _FEWEST_TRIALS}, reverse=True):
        # Columns of noise may be alike as well: those that say most about theta come first, and ever fewer are tried.
        channels = sorted((own for own in classes if len(own) == size), key=lambda own: -_told_by(x[:, own[0]], given))
        for some in range(len(channels), 0, -1):
            columns = _matched(channels[:some], x, given)
            columns = columns[:, np.argsort(columns[0])]
            columns = columns[np.argsort(columns[:, 0])]
            if _exchangeable(columns, x, given):
                return Trials(columns)
    return None


# --- Functions that are compared -----------------------------------------------------------------------------------------------


def _functions_of(theta: np.ndarray) -> np.ndarray:
    """A basis of constants, waves of each parameter and random functions of all, ``(n, g)``, of order one."""
    ranks = np.stack([_ranks(column[:, None])[:, 0] for column in theta.T], axis=1)
    waves = [np.cos(np.pi * order * (ranks + 1) / 2) for order in range(1, _WAVES + 1)]
    functions = np.hstack([np.ones((len(theta), 1)), *waves, _random(ranks)])
    return np.linalg.qr(functions)[0] * np.sqrt(len(theta))  # orthogonal, so that a regression on them is a product


def _random(values: np.ndarray) -> np.ndarray:
    """Smooth random functions of ``values (..., q)`` of order one: always the same."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(values.shape[-1], _RANDOM_FUNCTIONS)) * 3 / np.sqrt(values.shape[-1])
    return np.tanh(values @ weights + rng.normal(size=_RANDOM_FUNCTIONS))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from -1 to 1 among all the values of ``(n, k)``: alike for values that change places in a row."""
    return (2 * rankdata(values) / values.size - 1).reshape(values.shape)


def _views(trials: np.ndarray, given: np.ndarray) -> np.ndarray:
    """How each trial of ``(n, k, p)`` looks by itself, beside theta and beside the other trials, ``(n, k, q)``, of order one.

    A swap of trials swaps the results and does nothing else, as ranks and regressions are of all trials together.
    """
    n, k, p = trials.shape
    ranks = np.stack([_ranks(trials[:, :, j]) for j in range(p)], axis=2)
    unexplained = ranks - (given @ (given.T @ ranks.mean(axis=1)) / n)[:, None]
    views = [ranks, np.stack([_ranks(unexplained[:, :, j]) for j in range(p)], axis=2)]
    if k >= _FEWEST_TRIALS:
        apart = trials - trials.mean(axis=1, keepdims=True)
        spread = np.sqrt((apart**2).mean(axis=1, keepdims=True))
        views.append(apart / np.where(spread > 0, spread, 1.0))
    return np.concatenate(views, axis=2)


def _features(views: np.ndarray) -> np.ndarray:
    """The views, their products and random functions of them."""
    first, second = np.triu_indices(views.shape[2])
    return np.concatenate([views, views[:, :, first] * views[:, :, second], _random(views)], axis=2)


def _differ(change: np.ndarray, given: np.ndarray) -> bool:
    """Whether the ``change (n, f)`` that a swap makes has a sign that goes with some of ``given (n, g)``, which it leaves alone."""
    sums, squares = change.T @ given, (change**2).T @ (given**2)
    largest = (sums**2 / np.where(squares > 0, squares, 1.0)).max()
    return bool(largest > 2 * np.log(2 * sums.size / _OVERLOOKED))


# --- Search --------------------------------------------------------------------------------------------------------------------


def _alike(x: np.ndarray, given: np.ndarray) -> list[np.ndarray]:
    """Columns sorted into classes of the same distribution given theta, each looked at alone."""
    apart = _plainly_different(x, given)
    classes: list[list[int]] = []
    for j in range(x.shape[1]):
        for own in classes:
            if not apart[own, j].any() and not _pair_differs(x[:, [own[0], j]], given):
                own.append(j)
                break
        else:
            classes.append([j])
    return [np.array(own) for own in classes]


def _told_by(column: np.ndarray, given: np.ndarray) -> float:
    """How much a column goes with functions of theta."""
    ranks = _ranks(column[:, None])
    return float(np.abs(np.hstack([ranks, ranks**2 - (ranks**2).mean()]).T @ given[:, 1:]).max())


def _pair_differs(pair: np.ndarray, given: np.ndarray) -> bool:
    ranks = _ranks(pair)
    powers = np.stack([ranks, ranks**2], axis=2)
    if _differ(powers[:, 0] - powers[:, 1], given):  # most pairs need no closer look
        return True
    features = _features(_views(pair[:, :, None], given))
    return _differ(features[:, 0] - features[:, 1], given)


def _plainly_different(x: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Pairs of columns of which quartiles or covariances with functions of theta are far apart, ``(c, c)`` bool: a sieve."""
    n = len(x)
    quartiles = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    width = quartiles[2] - quartiles[0]
    apart = (np.abs(quartiles[:, :, None] - quartiles[:, None, :]) > 5 * (width[:, None] + width) / np.sqrt(n)).any(axis=0)
    apart &= (width[:, None] > 0) & (width > 0)  # quartiles of numbers with few levels may jump
    ranks = np.stack([_ranks(column[:, None])[:, 0] for column in x.T], axis=1)
    sums, errors = ranks.T @ given, np.sqrt((ranks**2).T @ (given**2))
    for sum_, error in zip(sums.T, errors.T, strict=True):
        apart |= np.abs(sum_[:, None] - sum_) > 5 * (error[:, None] + error)
    return apart


def _matched(channels: list[np.ndarray], x: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Which columns of several classes belong to one trial, ``(k, p)``: those whose distances from their means go together."""
    k = len(channels[0])
    apart = [_views(x[:, own][:, :, None], given)[:, :, -1] for own in channels]
    columns = [channels[0]]
    for own, values in zip(channels[1:], apart[1:], strict=True):
        together = np.stack(
            [[np.abs((apart[0][:, i] * values[:, j]) @ given).max() for j in range(k)] for i in range(k)]
        ) / np.sqrt(len(x))
        # Where nothing goes together, any match will do; that by order is the natural one.
        _, order = linear_sum_assignment(-(together + 1e-3 * np.eye(k)))
        columns.append(own[order])
    return np.stack(columns, axis=1)


def _exchangeable(columns: np.ndarray, x: np.ndarray, given: np.ndarray) -> bool:
    """Whether no two trials in neighbouring rows of ``columns (k, p)`` are told apart; swaps of neighbours make all orders."""
    views = _views(x[:, columns], given)
    features = _features(views)
    rest = np.delete(x, columns.ravel(), axis=1)
    others = np.hstack([given, *([_rest_ranks(rest)] if rest.shape[1] else [])])
    k = len(columns)
    if any(_differ(change, given) for change in _neighbours(features)):
        return False
    for a in range(k - 1):
        beside = views[:, [j for j in range(k) if j not in (a, a + 1)]].reshape(len(x), -1)
        if _differ(features[:, a] - features[:, a + 1], np.hstack([others, beside, beside**2])):
            return False
    return True


def _neighbours(features: np.ndarray) -> Iterator[np.ndarray]:
    """What a random order changes in the mean product of neighbours, ``(n, f)``, for each distance between them: tells a series."""
    n, k, _ = features.shape
    apart = features - features.mean(axis=1, keepdims=True)
    order = np.random.default_rng(0).random((n, k)).argsort(axis=1)
    shuffled = np.take_along_axis(apart, order[:, :, None], axis=1)
    for lag in range(1, min(_LAGS, k - 2) + 1):
        yield (apart[:, :-lag] * apart[:, lag:]).mean(axis=1) - (shuffled[:, :-lag] * shuffled[:, lag:]).mean(axis=1)


def _rest_ranks(rest: np.ndarray) -> np.ndarray:
    ranks = np.stack([_ranks(column[:, None])[:, 0] for column in rest.T], axis=1)
    return np.hstack([ranks, ranks**2])
