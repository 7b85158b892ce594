"""Whatever a user calls samples, read into one record of float64 draws in chain order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sbi_flows._random import numpy_generator
from sbi_flows.model_evidence.layout import every_so_many
from sbi_flows.results import Chains, WeightedSamples
from sbi_flows.weights import autocorrelation_time, kish_ess

LogPosterior = Callable[[np.ndarray], np.ndarray]

MIN_DRAWS = 100
ARVIZ_VALUES = (
    "log-posterior values were read from sample_stats.lp. Stan leaves constants out of it, Stan and PyMC put the Jacobian of their own "
    "coordinates in: if one of them wrote it, pass log_posterior instead"
)
LOG_POSTERIOR_COLUMNS = ("log_posterior", "lp", "log_prob", "lnprob")


@dataclass(frozen=True)
class Draws:
    """Posterior draws in chain-major order.

    Attributes
    ----------
    x : ndarray (n, d), float64
    chain : ndarray (n,)
        Chain of each row; rows of one chain are adjacent and in the order they were drawn.
    names : tuple of str
    log_p : ndarray (n,) or None
        Log-posterior (ln L + ln prior) of each row.
    log_posterior : callable or None
        The same as a function, ``(m, d)`` to ``(m,)``; absent when only values are known.
    ensemble : bool
        The chains are walkers of one ensemble, so only their step-by-step mean is a time series.
    notes, reasons : tuple of str
        What was done to the input, and what speaks against it.
    thin : int
        Steps of the sampler that one row stands for, where that is known.
    """

    x: np.ndarray
    chain: np.ndarray
    names: tuple[str, ...]
    log_p: np.ndarray | None = None
    log_posterior: LogPosterior | None = None
    ensemble: bool = False
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = field(default=())
    thin: int = 1

    @property
    def n(self) -> int:
        return self.x.shape[0]

    @property
    def features(self) -> int:
        return self.x.shape[1]

    def series(self, values: np.ndarray) -> np.ndarray:
        """One number a draw, ``(n,)``, as time series ``(chain, draw)``: walkers of an ensemble averaged step by step."""
        counts = np.unique(self.chain, return_counts=True)[1]
        if len(np.unique(counts)) > 1:
            return values[None]
        series = values.reshape(len(counts), -1)
        # The step mean of an ensemble is what its walkers' shared history leaves independent; too few steps cannot show it.
        return series.mean(axis=0, keepdims=True) if self.ensemble and series.shape[1] >= 2 * series.shape[0] ** 0.5 else series

    def variance_of_mean(self, values: np.ndarray) -> float:
        """Squared standard error of ``values.mean()``, autocorrelation and ensemble included.

        The one series of an ensemble's means shows what its walkers share, but loses a small slow part of the values in its noise; the
        walkers' averaged autocorrelation finds that, blind to what they share. The larger of the two errors is taken.
        """
        series = self.series(values)
        walkers = values.reshape(-1, series.shape[1])
        alike = len(walkers) == len(series)
        return _variance_of_mean(series) if alike else max(_variance_of_mean(series), _variance_of_mean(walkers))

    def effective_size(self, values: np.ndarray) -> float:
        """The number of independent draws whose mean would have the same error."""
        variance = values.var()
        return float(min(self.n, variance / self.variance_of_mean(values))) if variance > 0 else float(self.n)

    def size_within(self, values: np.ndarray) -> float:
        """What :meth:`effective_size` would be were each chain's own mean the true one, as those assume who average times of single chains.

        Far above the effective size, it tells of chains that move freely and never meet.
        """
        counts = np.unique(self.chain, return_counts=True)[1]
        if len(np.unique(counts)) > 1:
            return self.effective_size(values)
        series = values.reshape(len(counts), -1)
        return float(min(self.n, self.n / autocorrelation_time(series - series.mean(axis=1, keepdims=True))))


def _variance_of_mean(series: np.ndarray) -> float:
    return float(autocorrelation_time(series) * series.var() / series.size)


def read_draws(
    samples: Any,
    log_posterior: LogPosterior | np.ndarray | Sequence[float] | None = None,
    *,
    weights: np.ndarray | None = None,
    chain_ids: np.ndarray | None = None,
    max_draws: int | None = None,
    random_state=None,
) -> Draws:
    """Read samples of any accepted kind; see :func:`sbi_flows.evidence` for the kinds and the errors."""
    notes, against, thin = _told(samples), _against(samples), _thin(samples)
    if isinstance(samples, Chains):
        samples = samples.unweighted(numpy_generator(random_state))
    blocks, names, values, function, ensemble = unpack(samples)
    if callable(log_posterior):
        function, values = log_posterior, None
    elif isinstance(log_posterior, str):
        raise ValueError(f"Expected log_posterior as values or a callable; got the string {log_posterior!r}.")
    elif log_posterior is not None:
        values = [np.asarray(v, dtype=np.float64) for v in log_posterior] if _is_ragged(log_posterior) else [log_posterior]
    if values is not None and np.ndim(values[0]) == 2 and np.shape(values[0]) != (len(blocks), len(blocks[0])):
        raise ValueError(
            f"Expected log_posterior values of shape {(len(blocks), len(blocks[0]))}, (chain, draw) as the samples; "
            f"got {np.shape(values[0])}. Transpose them if they are (draw, chain)."
        )
    x = np.concatenate(blocks)
    chain = np.repeat(np.arange(len(blocks)), [len(b) for b in blocks])
    log_p = None if values is None else np.concatenate([np.asarray(v, dtype=np.float64).reshape(-1) for v in values])
    _check_samples(x, names)
    if log_p is not None and len(log_p) != len(x):
        raise ValueError(
            f"Expected one log_posterior value a draw, {len(x)} in all; got {len(log_p)}. "
            "Values must be in the order of the samples, shape (chain, draw) or (n,)."
        )
    if chain_ids is not None:
        chain, (x, log_p) = _by_chain(chain_ids, x, log_p)
    from_arviz = hasattr(samples, "posterior") and log_posterior is None
    draws = Draws(x, chain, names, log_p, function, ensemble, (*notes, ARVIZ_VALUES) if from_arviz else notes, against, thin)
    if weights is not None:
        draws = _resampled(draws, weights, random_state)
    return _checked_posterior(draws if max_draws is None else _thinned(draws, max_draws))


def _thinned(draws: Draws, max_draws: int) -> Draws:
    step, kept = every_so_many(np.unique(draws.chain, return_counts=True)[1], max_draws)
    if step == 1:
        return draws
    said = f"one in {step} draws of each chain was used, {kept.sum()} of {draws.n}: raise max_draws={max_draws} if more are independent"
    log_p = None if draws.log_p is None else draws.log_p[kept]
    return replace(draws, x=draws.x[kept], chain=draws.chain[kept], log_p=log_p, notes=(*draws.notes, said), thin=draws.thin * step)


def evaluate(log_posterior: LogPosterior, x: np.ndarray) -> np.ndarray:
    """Log-posterior of rows ``(m, d)`` as float64 ``(m,)``; NaN counts as no density.

    Raises
    ------
    ValueError
        On another shape, or ``+inf``.
    """
    values = log_posterior(x.copy())  # a copy: a function that works in place must not change the draws
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(x),):
        raise ValueError(
            f"Expected log_posterior to map (m, d) rows to (m,) values; for rows of shape {x.shape} it returned {values.shape}. "
            "Wrap a function of one parameter vector as lambda x: numpy.array([f(row) for row in x])."
        )
    if np.any(values == np.inf):
        row = x[np.argmax(values == np.inf)]
        raise ValueError(f"log_posterior returned +inf at {row!r}: a density there is infinite or the function overflows.")
    undefined = np.isnan(values)
    if undefined.any():
        warnings.warn(
            f"log_posterior returned NaN at {undefined.sum()} of {len(x)} points; they were counted as having no density.", stacklevel=2
        )
    return np.where(undefined, -np.inf, values)


def _is_ragged(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) > 0 and not np.isscalar(values[0])


def unpack(samples: Any):
    """Blocks (one a chain), names, log-posterior values by chain or None, callable or None, ensemble."""
    if isinstance(samples, Chains):
        return _from_chains(samples)
    if isinstance(samples, WeightedSamples):
        raise TypeError(
            "Got WeightedSamples. Pass evidence(result.samples, log_posterior, weights=result.weights), so it is seen what they are."
        )
    if hasattr(samples, "get_chain") and hasattr(samples, "compute_log_prob"):
        return _from_emcee(samples)
    if hasattr(samples, "columns") and hasattr(samples, "to_numpy"):
        return _from_dataframe(samples)
    if hasattr(samples, "posterior"):
        return _from_arviz(samples)
    if isinstance(samples, list | tuple) and len(samples) and np.ndim(samples[0]) == 2:
        blocks = [_as_float(block) for block in samples]
        widths = {block.shape[1] for block in blocks}
        if len(widths) > 1:
            raise ValueError(f"Expected chains of one width; got widths {sorted(widths)}.")
        return blocks, _default_names(blocks[0].shape[1]), None, None, False
    return _from_array(_as_float(samples), None, None, False)


def _as_float(samples: Any) -> np.ndarray:
    if hasattr(samples, "detach"):
        samples = samples.detach().cpu().numpy()
    if np.iscomplexobj(samples):
        raise ValueError("Expected real samples; got complex ones. Pass real and imaginary parts as two columns.")
    try:
        return np.asarray(samples, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Expected samples as numbers of shape (n, d) or (chain, draw, d), or a list of (n_i, d) chains; "
            f"got {type(samples).__name__} that does not convert to a float array ({error})."
        ) from error


def _default_names(d: int) -> tuple[str, ...]:
    return tuple(f"x{i}" for i in range(d))


def _from_array(samples: np.ndarray, names, log_posterior, ensemble: bool):
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim not in (2, 3) or 0 in samples.shape:
        raise ValueError(
            f"Expected samples of shape (n, d) or (chain, draw, d), not empty; got {samples.shape}. "
            "For a single parameter pass samples[:, None]."
        )
    blocks = list(samples) if samples.ndim == 3 else [samples]
    names = tuple(names) if names is not None else _default_names(samples.shape[-1])
    values = None if log_posterior is None else list(np.asarray(log_posterior).reshape(len(blocks), -1))
    return blocks, names, values, None, ensemble


def _from_chains(chains: Chains):
    if chains.weights is not None:
        raise TypeError("Got weighted Chains. Pass chains.unweighted(random_state), so that the seed of the resampling is yours.")
    parts = chains.split()
    values = None if chains.log_posterior is None else [part.log_posterior[0] for part in parts if part.log_posterior is not None]
    blocks = [np.asarray(part.samples[0], dtype=np.float64) for part in parts]
    return blocks, chains.names, values, None, chains.ensemble


def _told(samples: Any) -> tuple[str, ...]:
    """What is to be said of chains before anything is done with them."""
    if not isinstance(samples, Chains):
        return ()
    notes = tuple(samples.info.get("notes", ()))
    if samples.weights is None:
        return notes
    whole = not samples.independent and np.all(samples.weights[np.isfinite(samples.weights)] % 1 == 0)
    return notes if whole else (*notes, "weighted draws were resampled to their effective size")


def _against(samples: Any) -> tuple[str, ...]:
    """The chains' own verdict where it is not ok: whoever ran them knows causes of which their draws show the effects only."""
    verdict = samples.reliability if isinstance(samples, Chains) else None
    return () if verdict is None else tuple(f"the chains' own verdict: {reason}" for reason in verdict.reasons)


def _thin(samples: Any) -> int:
    return int(samples.info.get("thin", 1)) if isinstance(samples, Chains) and samples.weights is None else 1


def _from_emcee(sampler: Any):
    chain = np.swapaxes(sampler.get_chain(), 0, 1)
    log_prob = np.swapaxes(sampler.get_log_prob(), 0, 1)
    blocks, names, values, _, _ = _from_array(chain, None, log_prob, True)

    def log_posterior(x: np.ndarray) -> np.ndarray:
        return np.asarray(sampler.compute_log_prob(x)[0], dtype=np.float64)

    return blocks, names, values, log_posterior, True


def _from_dataframe(frame: Any):
    column = next((c for c in LOG_POSTERIOR_COLUMNS if c in frame.columns), None)
    values = None if column is None else [frame[column].to_numpy(dtype=np.float64)]
    parameters = frame if column is None else frame.drop(columns=column)
    blocks, _, _, _, _ = _from_array(_as_float(parameters.to_numpy()), None, None, False)
    return blocks, tuple(str(c) for c in parameters.columns), values, None, False


def _from_arviz(data: Any):
    posterior = data.posterior
    columns, names = [], []
    for name in posterior.data_vars:
        values = np.asarray(posterior[name].transpose("chain", "draw", ...).values, dtype=np.float64)
        flat = values.reshape(*values.shape[:2], -1)
        columns.append(flat)
        names += [name] if flat.shape[-1] == 1 else [f"{name}[{i}]" for i in range(flat.shape[-1])]
    has_stats = hasattr(data, "sample_stats") and "lp" in data.sample_stats
    log_p = data.sample_stats["lp"].transpose("chain", "draw").values if has_stats else None
    return _from_array(np.concatenate(columns, axis=-1), names, log_p, False)


def _check_samples(x: np.ndarray, names: tuple[str, ...]) -> None:
    n, d = x.shape
    if not np.all(np.isfinite(x)):
        rows = np.flatnonzero(~np.isfinite(x).all(axis=1))
        raise ValueError(
            f"Expected finite samples; {len(rows)} of {n} rows hold NaN or infinity (first: row {rows[0]}). "
            "Remove them, or mend what wrote them."
        )
    if n < max(MIN_DRAWS, 10 * d):
        raise ValueError(f"Expected at least {max(MIN_DRAWS, 10 * d)} draws for {d} parameters; got {n}. Run the chains longer.")
    for i, name in enumerate(names):
        distinct = len(np.unique(x[:, i]))
        if distinct == 1:
            raise ValueError(
                f"Column '{name}' is constant at {x[0, i]:g}: a fixed parameter has no density. Drop it from the samples "
                "and fix it in log_posterior."
            )
        if distinct <= 20:
            raise ValueError(
                f"Column '{name}' takes only {distinct} distinct values in {n} draws: a discrete parameter has no density. "
                "Compute one evidence a value and add them."
            )
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(x.T)) if d > 1 else np.ones(1)
    if eigenvalues[0] < 1e-10:
        i, j = _most_correlated(x)
        raise ValueError(
            f"Columns '{names[i]}' and '{names[j]}' are duplicates or the columns are linearly dependent: the draws lie in a "
            "subspace, where no density in all columns exists. Drop the redundant one."
        )


def _most_correlated(x: np.ndarray) -> tuple[int, int]:
    correlation = np.abs(np.corrcoef(x.T))
    np.fill_diagonal(correlation, 0)
    i, j = np.unravel_index(np.argmax(correlation), correlation.shape)
    return int(min(i, j)), int(max(i, j))


def _by_chain(chain_ids, x, log_p):
    chain_ids = np.asarray(chain_ids).reshape(-1)
    if len(chain_ids) != len(x):
        raise ValueError(f"Expected chain_ids of shape ({len(x)},), one a draw; got {chain_ids.shape}.")
    order = np.argsort(chain_ids, kind="stable")
    return np.unique(chain_ids[order], return_inverse=True)[1], (x[order], None if log_p is None else log_p[order])


def _resampled(draws: Draws, weights, random_state) -> Draws:
    weights = np.asarray(weights, dtype=np.float64).reshape(-1)
    if len(weights) != draws.n or not np.all(np.isfinite(weights)) or np.any(weights < 0) or weights.sum() <= 0:
        raise ValueError(
            f"Expected weights of shape ({draws.n},), finite, non-negative and not all zero; got shape {weights.shape}. "
            "Log-weights must be exponentiated first."
        )
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    size = int(kish_ess(log_weights))
    if size < MIN_DRAWS:
        raise ValueError(f"The weights leave an effective size of {size} draws; at least {MIN_DRAWS} are needed.")
    index = WeightedSamples(np.arange(draws.n)[:, None], log_weights, ("row",)).resample(size, numpy_generator(random_state))[:, 0]
    note = f"{draws.n} weighted draws were resampled to their effective size, {size}"
    return replace(
        draws,
        x=draws.x[index],
        chain=np.zeros(size, dtype=int),
        log_p=None if draws.log_p is None else draws.log_p[index],
        notes=(*draws.notes, note),
    )


def _checked_posterior(draws: Draws) -> Draws:
    """Log-posterior at every draw; draws of no density are dropped and reported."""
    if draws.log_p is None and draws.log_posterior is None:
        raise ValueError(
            "No log_posterior: pass its values at the draws, (chain, draw) or (n,), or a callable on rows (n, d), meaning "
            "ln L + ln prior with both normalised."
        )
    log_p = evaluate(draws.log_posterior, draws.x) if draws.log_p is None and draws.log_posterior is not None else draws.log_p
    log_p = np.asarray(log_p, dtype=np.float64)
    if np.any(log_p == np.inf):
        raise ValueError(f"log_posterior is +inf at draw {int(np.argmax(log_p == np.inf))}: a density there is infinite.")
    usable = np.isfinite(log_p)
    if usable.all():
        return replace(draws, log_p=log_p)
    lost = int((~usable).sum())
    if lost > draws.n // 2:
        raise ValueError(
            f"log_posterior is -inf or NaN at {lost} of {draws.n} draws: these samples are not from this posterior. "
            "Check the order and the units of the columns."
        )
    said = f"log_posterior is -inf or NaN at {lost} of {draws.n} draws, which a sampler of this posterior cannot visit; they were dropped"
    harmful = lost > 0.001 * draws.n
    return replace(
        draws,
        x=draws.x[usable],
        chain=draws.chain[usable],
        log_p=log_p[usable],
        reasons=(*draws.reasons, f"{said}: remove the burn-in and check column order and units") if harmful else draws.reasons,
        notes=draws.notes if harmful else (*draws.notes, said),
    )
