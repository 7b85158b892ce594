"""Draws spoiled in the three ways that an evidence estimator ought to notice."""

import numpy as np

from benchmarks.evidence_problem import Array, Problem, wrap


def shifted(problem: Problem, draws: Array, rng: np.random.Generator) -> Array:
    """The draws moved by one posterior standard deviation along one axis taken at random, inside the support.

    Bounded columns are moved on the logit scale, half-lines on the log scale, angles around the circle.
    """
    column = int(rng.integers(problem.features))
    free = to_free(problem, draws)
    free[..., column] += rng.choice([-1.0, 1.0]) * _deviation(problem, free, column).std()
    return _from_free(problem, free)


def widened(problem: Problem, draws: Array, factor: float = 1.5) -> Array:
    """Every coordinate's distance from its mean stretched by ``factor``, inside the support (on the scales of `shifted`)."""
    free = to_free(problem, draws)
    for column in range(problem.features):
        free[..., column] += (factor - 1) * _deviation(problem, free, column)
    return _from_free(problem, free)


def without_a_mode(problem: Problem, draws: Array, rng: np.random.Generator) -> Array:
    """The draws whose nearest listed mode is not one taken at random; needs a problem with ``modes``."""
    if problem.modes is None:
        raise ValueError(f"Expected a problem with several modes; {problem.name} has none listed. Use gmm-9 or rastrigin-2.")
    lost = problem.modes[rng.integers(len(problem.modes))]
    reach = 0.5 * min(np.linalg.norm(problem.modes - m, axis=1)[np.any(problem.modes != m, axis=1)].min() for m in problem.modes)
    return draws[np.abs(draws - lost).max(axis=1) > reach]


def to_free(problem: Problem, draws: Array) -> Array:
    columns = [_free(draws[..., i], support) for i, support in enumerate(problem.support)]
    return np.stack(columns, axis=-1)


def _from_free(problem: Problem, free: Array) -> Array:
    columns = [_bound(free[..., i], support) for i, support in enumerate(problem.support)]
    return np.stack(columns, axis=-1)


def _free(x: Array, support) -> Array:
    if isinstance(support, str):
        return x.copy()
    low, high = support
    return np.log(x - low) if np.isinf(high) else np.log(x - low) - np.log(high - x)


def _bound(z: Array, support) -> Array:
    if isinstance(support, str):
        return wrap(z) if support == "circular" else z
    low, high = support
    return low + np.exp(z) if np.isinf(high) else low + (high - low) / (1 + np.exp(-z))


def _deviation(problem: Problem, free: Array, column: int) -> Array:
    """Distance from the mean, the short way round for an angle."""
    z = free[..., column]
    if problem.support[column] == "circular":
        return wrap(z - np.angle(np.exp(1j * z).mean()))
    return z - z.mean()
