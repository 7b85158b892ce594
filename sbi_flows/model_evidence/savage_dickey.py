"""Savage-Dickey ratio: the Bayes factor of a model nested in a larger one, from the larger one's posterior alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.results import Chains, Reliability, words
from sbi_flows.weights import autocorrelation_time

if TYPE_CHECKING:
    import pandas

    Draws: TypeAlias = np.ndarray | pandas.DataFrame | Chains

BALL = 0.2        # share of the draws, nearest to the point, that anchor the density there
SMALL_BALL = 0.05        # a second anchor, to see whether the density has the right shape inside the first
FLOW_DRAWS = 100_000
MIN_EFFECTIVE = 25        # independent draws below which a count says little


class HasLogProb(Protocol):
    """Anything with ``log_prob(x (n, k)) -> (n,)``."""

    def log_prob(self, x: Any) -> Any: ...


@dataclass(frozen=True)
class NestedBayesFactor:
    """ln of B_01, the restricted model (0) over the one it is nested in (1).

    Attributes
    ----------
    log_bf, log_bf_err : float
        ln B_01 and one standard error; positive favours the restriction. The error is NaN where only a density was given.
    log_posterior, log_prior : float
        ln density of the tested parameters at the point, under the posterior and the prior of the larger model.
    point : ndarray (k,)
        Where the restricted model fixes them.
    reliability : Reliability
    """

    log_bf: float
    log_bf_err: float
    log_posterior: float
    log_prior: float
    point: np.ndarray
    reliability: Reliability

    def __repr__(self) -> str:
        claim = words(self.log_bf).replace("against", "against the restriction").replace("for", "for the restriction")
        return f"NestedBayesFactor(log_bf={self.log_bf:.3f} +- {self.log_bf_err:.2g}, {claim})   {self.reliability}"


def savage_dickey(
    samples: Draws | HasLogProb,
    prior: HasLogProb,
    point: float | ArrayLike | Mapping[str, float],
    *,
    columns: Sequence[int] | Sequence[str] | None = None,
    density: HasLogProb | None = None,
    random_state: RandomState = None,
) -> NestedBayesFactor:
    """Bayes factor of the model with some parameters fixed at ``point`` over the model with them free.

    ``B_01 = p(point | data, M1) / p(point | M1)``, exact when M0's prior on the other parameters is M1's given the point (as it
    is when the prior is a product). The posterior density comes from a flow fitted to the draws, rescaled so that the ball around
    the point that holds a fifth of them has the mass they say; the error is that count's, with the chains' autocorrelation.

    Parameters
    ----------
    samples : array (n, d) or (chain, draw, d), DataFrame, list of such (chains of any lengths), Chains, or an object with ``log_prob``
        Posterior draws of M1 in the order they were drawn; or the tested parameters' posterior density itself, when it is known.
    prior : object with ``log_prob``
        Prior of the tested parameters alone, normalised, ``(n, k)`` to ``(n,)``. Its ``support``, if it has one, is kept.
    point : float, sequence (k,), or mapping of name to float
        Where M0 fixes them. On an edge of the support the draws are mirrored there.
    columns : sequence of int or str, optional
        The tested columns of ``samples``, in the order of ``point``; the mapping's names, or all columns, by default.
    density : object with ``log_prob`` (and ``sample``), optional
        A density of the tested parameters to use in place of the flow.
    random_state : int, generator or None

    Returns
    -------
    NestedBayesFactor

    Raises
    ------
    ValueError
        Shapes that do not match, unknown columns, draws that are not finite, a point without prior density.

    References
    ----------
    Dickey 1971, Annals of Mathematical Statistics 42, 204. Verdinelli & Wasserman 1995, JASA 90, 614.

    Examples
    --------
    >>> import pandas as pd
    >>> from sbi_flows.distributions import BoxUniform
    >>> chain = pd.DataFrame({"slope": np.random.default_rng(0).normal(size=2000), "offset": np.random.default_rng(1).normal(size=2000)})
    >>> ratio = savage_dickey(chain, BoxUniform([-5.0], [5.0]), {"slope": 0.0}, random_state=0)
    >>> type(ratio).__name__
    'NestedBayesFactor'
    """
    rng = numpy_generator(random_state)
    if callable(getattr(samples, "log_prob", None)):        # a column of that name is not
        known, draws = samples, None
        value = np.atleast_1d(np.asarray(list(point.values()) if isinstance(point, Mapping) else point, dtype=np.float64))
    else:
        known, (draws, value) = density, _tested(samples, point, columns)
    log_prior = _log_prob(prior, value[None], "prior")[0]
    if not np.isfinite(log_prior):
        raise ValueError(f"Expected the prior to have a finite log-density at {value}; got {log_prior}. Is the point inside?")
    if draws is None:
        log_posterior = float(_log_prob(known, value[None], "samples")[0])
        verdict = Reliability(True, notes=("the density was given without draws, so its error is not known",))
        return NestedBayesFactor(log_posterior - log_prior, np.nan, log_posterior, float(log_prior), value, verdict)
    log_posterior, error, reasons = _density_at(value, draws, known, getattr(prior, "support", None), rng)
    verdict = Reliability.from_reasons(reasons)
    return NestedBayesFactor(float(log_posterior - log_prior), error, log_posterior, float(log_prior), value, verdict)


# --- Density at the point -----------------------------------------------------------------------------------------------------


def _density_at(
    point: np.ndarray, draws: np.ndarray, known: Any, support: Sequence | None, rng: np.random.Generator
) -> tuple[float, float, list[str]]:
    """ln density at ``point (k,)`` from ``draws (chain, draw, k)``, its error, and what speaks against it."""
    flat = draws.reshape(-1, draws.shape[-1])
    scale = flat.std(axis=0)
    if (scale == 0).any():
        raise ValueError("Expected the tested columns to vary; at least one is constant. Test the columns that M1 leaves free.")
    model, edges = (known, []) if known is not None else _fit(flat, point, support, rng)
    log_model = float(_log_prob(model, point[None], "density")[0])
    if not np.isfinite(log_model):
        return log_model, np.nan, ["the fitted density vanishes at the point: it lies outside the draws or the support"]

    reasons = []
    lower = _log_prob(model, flat, "density") < log_model
    beyond = lower.sum() / autocorrelation_time(lower.reshape(draws.shape[:2]))
    if beyond < MIN_EFFECTIVE:
        reasons.append(
            f"only {beyond:.0f} independent draws are less likely than the point: the density there is an extrapolation. "
            "Run longer chains, or compare the evidences of both models"
        )
    if not hasattr(model, "sample"):
        return log_model + len(edges) * np.log(2), np.nan, [*reasons, "a density without sample() cannot be checked by the draws"]
    distance = np.linalg.norm((draws - point) / scale, axis=-1)
    model_distance = np.linalg.norm((_sample(model, FLOW_DRAWS, rng) - point) / scale, axis=-1)
    correction, variance = _ball_ratio(distance, model_distance, BALL)
    small_correction, small_variance = _ball_ratio(distance, model_distance, SMALL_BALL)
    spread = np.sqrt(variance + small_variance)
    if not abs(small_correction - correction) < 3 * spread:        # NaN, an empty ball, counts as disagreement
        reasons.append(
            f"the density and the draws disagree near the point (by {small_correction - correction:.2g} in ln between a large "
            "and a small ball): fit it to more draws, or pass a better density"
        )
    error = float(np.sqrt(variance))
    if not error < 1 / np.sqrt(MIN_EFFECTIVE):
        reasons.append(f"the draws near the point are worth fewer than {MIN_EFFECTIVE} independent ones: run longer chains")
    return log_model + len(edges) * np.log(2) + correction, error, reasons


def _ball_ratio(distance: np.ndarray, model_distance: np.ndarray, share: float) -> tuple[float, float]:
    """ln of (mass of the draws / mass of the model) within the radius that holds ``share`` of the draws, and its variance."""
    radius = np.quantile(distance, share)
    inside = distance <= radius
    fraction, model_fraction = inside.mean(), np.mean(model_distance <= radius)
    if model_fraction == 0:
        return np.nan, np.nan
    variance = (1 - fraction) / fraction * autocorrelation_time(inside) / inside.size
    return np.log(fraction / model_fraction), variance + (1 - model_fraction) / model_fraction / model_distance.size


def _fit(flat: np.ndarray, point: np.ndarray, support: Sequence | None, rng: np.random.Generator) -> tuple[Any, list[int]]:
    """A flow on the draws; columns whose point is an edge of the support are mirrored there, half of the draws on each side."""
    from sbi_flows.estimators import FlowDensity

    entries = list(support) if support is not None else ["real"] * len(point)
    mirrored, edges = flat.copy(), []
    for i, entry in enumerate(entries):
        if isinstance(entry, str) or entry[0] == "circular" or point[i] not in entry:
            continue
        low, high = entry
        sign = rng.choice([-1.0, 1.0], size=len(flat))
        mirrored[:, i] = point[i] + sign * (flat[:, i] - point[i])
        width = high - low
        entries[i] = "real" if np.isinf(width) else (point[i] - width, point[i] + width)
        edges.append(i)
    # Small and quick: a few columns, and the counts near the point correct what is left of its error.
    flow = FlowDensity(layers=2, hidden=(32, 32), patience=5, support=entries, random_state=int(rng.integers(2**31)))
    return flow.fit(mirrored), edges


def _sample(model: Any, n: int, rng: np.random.Generator) -> np.ndarray:
    draws = model.sample(n, random_state=int(rng.integers(2**31))) if hasattr(model, "get_params") else model.sample(n)
    return np.asarray(draws, dtype=np.float64).reshape(n, -1)


# --- Input --------------------------------------------------------------------------------------------------------------------


def _tested(samples: Any, point: Any, columns: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the tested columns ``(chain, draw, k)`` and the point ``(k,)``."""
    array, names = _array(samples)
    if isinstance(point, Mapping):
        columns = list(point) if columns is None else columns
        unnamed = [c for c in columns if c not in point]
        if unnamed or len(point) != len(columns):
            raise ValueError(f"Expected point to give one value a tested column {list(columns)}; it names {list(point)}.")
        value = np.array([point[c] for c in columns], dtype=np.float64)
    else:
        value = np.atleast_1d(np.asarray(point, dtype=np.float64))
    index = [_index(c, names) for c in columns] if columns is not None else list(range(array.shape[-1]))
    if value.shape != (len(index),):
        raise ValueError(
            f"Expected a point of {len(index)} values, one a tested column; got shape {value.shape}. "
            "Name the tested columns with columns=[...]."
        )
    tested = array[..., index]
    if not np.isfinite(tested).all():
        raise ValueError("Expected finite draws; some are NaN or infinite. Drop those rows and say how many.")
    if tested.shape[0] * tested.shape[1] < 100:
        raise ValueError(f"Expected at least 100 draws; got {tested.shape[0] * tested.shape[1]}. A density needs more.")
    return tested, value


def _array(samples: Any) -> tuple[np.ndarray, list[str]]:
    if isinstance(samples, Chains):
        return _joined([chain.to_dataframe() for chain in samples.unweighted(0).split()])
    if isinstance(samples, list | tuple) and samples and all(np.ndim(chain) == 2 for chain in samples):
        return _joined(samples)
    names = [str(c) for c in getattr(samples, "columns", [])]
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim not in (2, 3):
        raise ValueError(f"Expected samples of shape (n, d) or (chain, draw, d); got {array.shape}. One column: x[:, None].")
    return (array[None] if array.ndim == 2 else array), names or [f"x{i}" for i in range(array.shape[-1])]


def _joined(chains: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Chains of one width; where their lengths differ they become one, whose autocorrelation is about theirs."""
    arrays, names = zip(*(_array(chain) for chain in chains), strict=True)
    if any(name != names[0] for name in names):
        raise ValueError(f"Expected chains with the same columns; got {' and '.join(str(name) for name in names[:3])}.")
    equal = len({array.shape for array in arrays}) == 1
    return np.concatenate(arrays, axis=0 if equal else 1), names[0]


def _index(column: int | str, names: list[str]) -> int:
    if isinstance(column, str):
        if column not in names:
            raise ValueError(f"Unknown column {column!r}; the samples have {', '.join(names)}.")
        return names.index(column)
    if not -len(names) <= column < len(names):
        raise ValueError(f"Expected a column between 0 and {len(names) - 1}; got {column}.")
    return int(column)


def _log_prob(density: Any, x: np.ndarray, what: str) -> np.ndarray:
    if not callable(getattr(density, "log_prob", None)):
        raise TypeError(
            f"Expected {what} to have log_prob(x); got {type(density).__name__}. "
            "Wrap a scipy distribution with sbi_flows.distributions.from_scipy."
        )
    import torch

    values = density.log_prob(torch.as_tensor(x) if isinstance(density, torch.nn.Module) else x)
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.shape != (len(x),):
        raise ValueError(
            f"Expected {what}.log_prob to map ({len(x)}, {x.shape[1]}) to ({len(x)},); got {values.shape}. "
            "It must be a density of the tested columns only."
        )
    return values.astype(np.float64)
