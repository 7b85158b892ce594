"""Posterior predictive checks: do simulations from the posterior look like the observation?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator, seed_from
from sbi_flows._validation import positive
from sbi_flows.diagnostics.features import flat_rows
from sbi_flows.diagnostics.outliers import misspecification
from sbi_flows.diagnostics.ranks import FALSE_ALARM
from sbi_flows.diagnostics.uniformity import p_text
from sbi_flows.inference.simulate import simulate
from sbi_flows.results import Reliability

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class PosteriorPredictive:
    """The observation beside simulations from its posterior.

    Attributes
    ----------
    table : DataFrame
        One row a summary: ``observed, median, low, high`` (central 95 %), ``p_value`` (two-sided, of this summary alone) and
        ``p_adjusted``: the share of simulations of which any summary is as far out, right whatever the number and dependence of summaries.
    p_value : float
        Of all summaries jointly: the share of simulations at least as unusual as x_o, by :func:`misspecification` among them.
    x : ndarray (n, c)
        The summaries of the simulations that succeeded.
    n_failed : int
        Simulations that returned NaN or inf, kept out.
    reliability : Reliability
    """

    table: pandas.DataFrame = field(repr=False)
    p_value: float
    x: np.ndarray = field(repr=False)
    n_failed: int
    reliability: Reliability

    def __repr__(self) -> str:
        head = f"PosteriorPredictive({len(self.x)} simulations, {len(self.table)} summaries, p{p_text(self.p_value)})"
        return f"{head}   {self.reliability}"


def posterior_predictive(
    posterior: Any,
    simulator: Callable[..., Any],
    x_o: Any,
    *,
    vectorized: bool | None = None,
    n_samples: int = 1000,
    summaries: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    names: Sequence[str] | None = None,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> PosteriorPredictive:
    """Simulate from posterior draws and compare with ``x_o``.

    Parameters
    ----------
    posterior
        Has ``sample(n_samples, random_state) -> (n, d)``: what ``NPE.posterior(x_o)`` gives.
    simulator : callable
        ``simulator(theta)`` of an ``(n, d)`` array of parameters, giving ``(n, ...)`` observations; or ``simulator(theta, rng)`` of one row
        ``(d,)``, as :func:`sbi_flows.simulate` takes it. To run a slow one on several cores or with a cache, wrap it:
        ``lambda theta: simulate(simulator, theta, n_jobs=8)``.
    x_o : array_like (...)
        The observation.
    vectorized : bool, optional
        Whether the simulator takes all rows at once. By default one of theta alone does, one of theta and a generator does not.
    n_samples : int
    summaries : mapping of str to callable, optional
        ``f(x (n, ...)) -> (n,)``; by default every number of x is one.
    names : sequence of str, optional
        Of the numbers of x, where these are the summaries.
    false_alarm : float
        An exact posterior is called not reliable at most about this often: the data are used twice, once for the posterior and once for
        the check, which makes p-values larger than uniform.
    random_state : optional

    Returns
    -------
    PosteriorPredictive

    Raises
    ------
    TypeError
        When arguments are in another order.
    ValueError
        When the simulator's output does not match ``x_o``, or fewer than 40 simulations succeed.

    Examples
    --------
    >>> class Posterior:
    ...     def sample(self, n_samples=1, random_state=None):
    ...         return np.random.default_rng(random_state).normal(1.0, 0.1, size=(n_samples, 1))
    >>> noise = np.random.default_rng(1)
    >>> posterior_predictive(Posterior(), lambda theta: theta + noise.normal(size=(len(theta), 3)), [1.2, 0.5, 9.0]).reliability.ok
    False

    References
    ----------
    Gelman, Meng & Stern 1996, "Posterior predictive assessment of model fitness via realized discrepancies", Statistica Sinica 6.
    Westfall & Young 1993, "Resampling-based multiple testing", Wiley (the adjusted p-values).
    """
    import pandas as pd

    positive("n_samples", n_samples, integer=True)
    _check_order(posterior, simulator, x_o)
    rng = numpy_generator(random_state)
    theta = np.asarray(posterior.sample(n_samples, random_state=rng))
    simulated = _simulated(simulator, theta, vectorized, rng)
    observed = np.asarray(x_o.to_numpy() if hasattr(x_o, "to_numpy") else x_o, dtype=np.float64)
    observed = observed[0] if observed.ndim > 1 and observed.shape[0] == 1 and observed.ndim == simulated.ndim else observed
    if simulated.shape[:1] != (len(theta),) or simulated.shape[1:] != observed.shape:
        raise ValueError(
            f"Expected simulator(theta) of shape {(len(theta), *observed.shape)} for theta {theta.shape} and x_o {observed.shape}; "
            f"got {simulated.shape}. A simulator of one row of theta is called row by row with vectorized=False."
        )
    # A value missing from x_o tells nothing; the simulator is then not asked for it either.
    known = np.isfinite(observed.reshape(-1))
    finite = np.isfinite(flat_rows(simulated)[:, known]).all(axis=1)
    n_failed = int((~finite).sum())
    if finite.sum() < 40 or not known.any():
        raise ValueError(f"Expected at least 40 finite simulations; {n_failed} of {len(theta)} are not. Look at the simulator's output.")
    simulated = simulated[finite]
    values, at_x_o, labels = _summaries(summaries, names, simulated, observed, known)
    rows = np.concatenate([values, at_x_o[None]])
    varying = np.ptp(rows, axis=0) > 0
    p_value = misspecification(values[:, varying], at_x_o[varying], random_state=rng).p_value if varying.any() else 1.0
    low, median, high = np.quantile(values, [0.025, 0.5, 0.975], axis=0)
    columns = {"observed": at_x_o, "median": median, "low": low, "high": high}
    columns |= {"p_value": _two_sided(values, at_x_o), "p_adjusted": _adjusted(rows)}
    table = pd.DataFrame(columns, index=pd.Index(labels, name="summary"))
    reasons = []
    if p_value < false_alarm:
        strange = table[table.p_adjusted < max(false_alarm, 0.01)].sort_values("p_value").index[:5]
        where = ", ".join(strange) or "no single summary, but their combination"
        reasons.append(f"simulations from the posterior do not look like x_o: {where} (p{p_text(p_value)}); model or posterior is wrong")
    notes = [f"{n_failed} of {len(theta)} simulations were not finite and are left out"] if n_failed else []
    return PosteriorPredictive(table, p_value, values, n_failed, Reliability.from_reasons(reasons, notes))


def _check_order(posterior: Any, simulator: Any, x_o: Any) -> None:
    order = "Expected posterior_predictive(posterior, simulator, x_o)"
    if not callable(getattr(posterior, "sample", None)):
        raise TypeError(f"{order} with a posterior that has sample(n_samples, random_state); got {type(posterior).__name__}.")
    if not callable(simulator) or callable(x_o):
        raise TypeError(f"{order}; got {type(simulator).__name__} for the simulator and {type(x_o).__name__} for x_o.")
    if callable(getattr(posterior, "posterior", None)):
        raise TypeError(f"{order} with the posterior of one observation; got the estimator. Pass its .posterior(x_o).")


def _simulated(simulator: Callable[..., Any], theta: np.ndarray, vectorized: bool | None, rng: np.random.Generator) -> np.ndarray:
    """What the simulator makes of ``theta (n, d)``, whichever of the ways it wants to be called."""
    wants_rng = _wants_generator(simulator)
    at_once = not wants_rng if vectorized is None else vectorized
    if wants_rng or not at_once:
        return simulate(simulator, theta, vectorized=at_once, random_state=seed_from(rng) if wants_rng else None)
    try:
        return np.asarray(simulator(theta), dtype=np.float64)
    except Exception as error:  # a user's simulator may raise anything
        raise ValueError(
            f"Expected a simulator of all rows at once, called as simulator(theta) with theta of shape {theta.shape}; it raised "
            f"{type(error).__name__}: {error}. If it takes one row (d,), pass vectorized=False; if also a generator, simulator(theta, rng)."
        ) from error


def _wants_generator(simulator: Callable[..., Any]) -> bool:
    """Whether a second argument must be given."""
    try:
        parameters = inspect.signature(simulator).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(needed) >= 2


def _summaries(summaries, names, simulated, observed, known) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Summaries of simulations ``(n, k)`` and of the observation ``(k,)``, with their names."""
    if summaries is None:
        flat = flat_rows(simulated)
        labels = [f"x_{j}" for j in range(flat.shape[1])] if names is None else [str(name) for name in names]
        if len(labels) != flat.shape[1]:
            raise ValueError(f"Expected {flat.shape[1]} names, one a number of x; got {len(labels)}.")
        return flat[:, known], observed.reshape(-1)[known], [label for label, there in zip(labels, known, strict=True) if there]
    together = np.concatenate([simulated, observed[None]])
    columns = []
    for name, function in summaries.items():
        value = np.asarray(function(together), dtype=np.float64)
        if value.shape != (len(together),) or not np.isfinite(value).all():
            raise ValueError(f"Expected summary {name!r} to give one finite number a row, ({len(together)},); got {value.shape}.")
        columns.append(value)
    stacked = np.stack(columns, axis=1)
    return stacked[:-1], stacked[-1], list(summaries)


def _two_sided(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Two-sided p-values from the place of the observation among simulations; ties count half."""
    below = (values < observed).sum(axis=0)
    above = (values > observed).sum(axis=0)
    tail = np.minimum(below, above) + 0.5 * (len(values) - below - above)
    return np.minimum(1.0, 2 * (1 + tail) / (1 + len(values)))


def _adjusted(rows: np.ndarray) -> np.ndarray:
    """p-values of the columns of the last row, adjusted by the largest deviation over columns of every row, ``(k,)``."""
    deviation = np.abs(rows - np.median(rows, axis=0))
    unit = np.quantile(deviation, 0.99, axis=0)
    # A column that is constant but for a few rows: any departure counts as large.
    unit = np.where(unit > 0, unit, np.maximum(deviation.max(axis=0), 1e-300) / 10)
    deviation /= unit
    return (deviation.max(axis=1)[:, None] >= deviation[-1]).mean(axis=0)
