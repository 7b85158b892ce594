"""Which embedding suits data of a given shape, and back from plain data to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from sbi_flows._validation import choose
from sbi_flows.embeddings.base import Embedding
from sbi_flows.embeddings.dense import VectorEmbedding
from sbi_flows.embeddings.grids import ImageEmbedding, SeriesEmbedding, SpectrumEmbedding
from sbi_flows.embeddings.objects import ObjectEmbedding
from sbi_flows.embeddings.sets import SetEmbedding, TokenEmbedding

EMBEDDINGS: dict[str, Callable[..., Embedding]] = {
    "vector": VectorEmbedding,
    "set": SetEmbedding,
    "series": SeriesEmbedding,
    "spectrum": SpectrumEmbedding,
    "image": ImageEmbedding,
    "token": TokenEmbedding,
    "objects": ObjectEmbedding,
}
# Up to here the conditioners of a flow deal with the columns themselves.
_FEW_COLUMNS = 128
_ROWS_TO_LOOK_AT = 2000
# Probability, by Student's t, that order seems to matter by chance in one comparison; 1e-4 for all of a hundred trials, where means are
# normal.
_BY_CHANCE = 5e-7
_FEW_SIMULATIONS = 100  # with fewer, means of skew numbers are not normal enough for this
_LAGS = (1, 2, 3)
_SHORTEST_CURVE = 32
_NEARLY_ALL = 0.7  # of the neighbours: a line need not reach the ends, and blocks of three correlated columns are no curve
_FAR = 4.0  # standard errors of a correlation


def choose_embedding(
    shape: Sequence[int], kind: str = "auto", *, x: np.ndarray | None = None, missing: Sequence[int] = ()
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The spec of an embedding for observations of ``shape``; :func:`build_embedding` makes the network.

    Parameters
    ----------
    shape : sequence of int
        Shape of one observation.
    kind : {"auto", "vector", "set", "series", "spectrum", "image", "token"}
        With "auto", a few columns need none, more are read as a spectrum (each place has its own meaning), ``(trials, c)`` as a set, or
        as a series where the simulations show that order matters, ``(channels, h, w)`` as an image.
    x : ndarray (n, *shape), optional
        Simulations, NaN where missing, by which "auto" sees whether order matters.
    missing : sequence of int
        Flat indices of values that may be missing.

    Returns
    -------
    spec : dict or None
        None where the columns are best passed as they are.
    notes : tuple of str
        What "auto" decided where that was not plain.

    Raises
    ------
    ValueError
        For an unknown kind, or a shape that no embedding is for.

    Examples
    --------
    >>> spec, notes = choose_embedding((20, 2))
    >>> spec["embedding"]
    'set'
    """
    shape = tuple(int(size) for size in shape)
    notes: tuple[str, ...] = ()
    if kind == "auto":
        if len(shape) <= 1:
            kind = "none" if (shape or (1,))[0] <= _FEW_COLUMNS else "spectrum"
        elif len(shape) == 2:
            ordered = x is not None and order_matters(x)
            kind = "series" if ordered else "set"
            reading = (
                f"a series of {shape[0]} times, as their order matters; pass embedding='set' if you know that it does not"
                if ordered
                else f"{shape[0]} exchangeable trials; pass embedding='series' if their order means something"
            )
            notes = (f"x of shape {shape} is read as {reading}",)
        elif len(shape) == 3:
            kind = "image"
        else:
            raise ValueError(
                f"Expected observations of up to three axes for embedding='auto'; got {shape}. Pass a torch module of your own."
            )
    else:
        choose("embedding", kind, ["auto", *EMBEDDINGS])
    if kind == "none":
        return None, notes
    spec = {"embedding": kind, "shape": list(shape), "missing": [int(j) for j in missing]}
    return dict(build_embedding(spec).spec), notes


def build_embedding(spec: Mapping[str, Any], generator: torch.Generator | None = None) -> Embedding:
    """The architecture of ``embedding.spec`` again, with fresh weights.

    Examples
    --------
    >>> build_embedding({"embedding": "series", "shape": [50]}).outputs
    32
    """
    arguments = dict(spec)
    name = arguments.pop("embedding", None)
    if name not in EMBEDDINGS:
        raise ValueError(f"Expected an embedding among {', '.join(EMBEDDINGS)}; got {name!r}.")
    return EMBEDDINGS[name](**arguments, generator=generator)


def order_matters(x: np.ndarray) -> bool:
    """Whether the items of ``x (n, items, c)`` show by their order that they are no set.

    Exchangeable items have one mean and one spread at all places, and products of neighbours, second and third neighbours that are
    distributed as in any other order, over all simulations and in each. All is compared on ranks, so that heavy tails do no harm;
    a hundred trials seem ordered by chance once in 10^4 times (measured: of 50 skew ones, four times in 2500 for 100 simulations, never in
    300 for 500). Fewer than 100 simulations are not judged. What shows in none of these, such as the direction of time alone, is not seen.
    """
    x = x[:_ROWS_TO_LOOK_AT]
    n, items, channels = x.shape
    if items < 3 or n < _FEW_SIMULATIONS:
        return False
    return any(_ordered(_ranks(x[:, :, c])) for c in range(channels))


def is_curve(x: np.ndarray) -> bool:
    """Whether columns ``(n, c)`` are the places of one curve: nearly all neighbours, of 32 or more, are more alike than places apart.

    Of inverse hyperbolic sines, so that heavy tails do no harm, and not of ranks, in which a narrow line would be lost. Columns of yes and
    no, and fewer than 100 simulations, are not judged.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> centre, places = rng.random((500, 1)), np.linspace(0, 1, 50)
    >>> is_curve(np.exp(-0.5 * ((places - centre) / 0.05) ** 2) + 0.1 * rng.normal(size=(500, 50)))
    True
    >>> is_curve(rng.normal(size=(500, 50)))
    False
    """
    x = x[:_ROWS_TO_LOOK_AT]
    n, columns = x.shape
    if n < _FEW_SIMULATIONS or columns < _SHORTEST_CURVE or np.isnan(x).any() or min(len(np.unique(column)) for column in x.T) <= 2:
        return False
    lower, middle, upper = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    spread = np.where(upper > lower, upper - lower, 1.0)
    correlation = np.corrcoef(np.arcsinh((x - middle) / spread), rowvar=False)
    neighbours, apart = correlation.diagonal(1), correlation.diagonal(columns // 2)
    return bool(np.mean(neighbours > np.median(apart) + _FAR / np.sqrt(n)) > _NEARLY_ALL)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks among all values, from -1 to 1; NaN stays."""
    flat = x.ravel()
    there = ~np.isnan(flat)
    ranks = np.full(flat.shape, np.nan)
    values, index = np.unique(flat[there], return_inverse=True)
    ranks[there] = 2 * index / max(1, len(values) - 1) - 1
    return ranks.reshape(x.shape)


def _ordered(ranks: np.ndarray) -> bool:
    there = ~np.isnan(ranks)
    count = there.sum(1)
    ranks, there, count = ranks[count > 2], there[count > 2], count[count > 2]
    if len(ranks) < _FEW_SIMULATIONS:
        return False
    filled = np.where(there, ranks, 0.0)
    apart = np.where(there, ranks - (filled.sum(1) / count)[:, None], np.nan)  # from the simulation's own mean
    squares = apart**2 - (np.nansum(apart**2, axis=1) / count)[:, None]
    if any(_far_from_zero(column[np.isfinite(column)]) for column in np.hstack([apart, squares]).T):
        return True
    # Missing values stay where they are; what is there changes places.
    rng = np.random.default_rng(0)
    for values in (apart, squares):
        # One other order, not the mean of many: the difference of two exchangeable orders is symmetric, however skew a square is.
        other = _shuffled(values, rng)
        for lag in _LAGS:
            given, by_chance = _products(values, lag), _products(other, lag)
            # The mean tells a correlation of one sign in all simulations, the square one whose sign differs between them.
            for power in (1, 2):
                excess = given**power - by_chance**power
                if _far_from_zero(excess[np.isfinite(excess)]):
                    return True
    return False


def _products(values: np.ndarray, lag: int) -> np.ndarray:
    """Mean product of items ``lag`` places apart in each simulation, NaN where there are none."""
    products = values[:, :-lag] * values[:, lag:]
    pairs = np.isfinite(products).sum(1)
    return np.where(pairs > 0, np.nansum(products, axis=1) / np.maximum(pairs, 1), np.nan)


def _shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row in an order of its own, NaN staying in place."""
    there = np.isfinite(values)
    places = np.argsort(np.where(there, rng.random(values.shape), np.inf), axis=1)  # those that are there first
    packed = np.take_along_axis(values, places, axis=1)
    result = np.full(values.shape, np.nan)
    result[there] = packed[np.arange(values.shape[1]) < there.sum(1)[:, None]]
    return result


def _far_from_zero(values: np.ndarray) -> bool:
    n = len(values)
    if n < _FEW_SIMULATIONS:
        return False
    return bool(abs(values.mean()) > stats.t.isf(_BY_CHANCE / 2, n - 1) * values.std(ddof=1) / np.sqrt(n) + 1e-12)
