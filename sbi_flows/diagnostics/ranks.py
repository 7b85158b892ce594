"""Simulation-based calibration: where true parameters rank among posterior draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.diagnostics.draws import (
    PosteriorDraws,
    PosteriorEstimator,
    Quantity,
    as_posterior_estimator,
    posterior_draws,
    quantity_ranks,
    ranks_among,
)
from sbi_flows.diagnostics.uniformity import central_coverage, distance, holm, p_text, shape_in_words, uniformity_p_value
from sbi_flows.results import Reliability

if TYPE_CHECKING:
    import pandas

FALSE_ALARM = 0.01
# Distance of the ranks from uniform ones that training hardly explains: draws all one half of their spread too low, or half as wide.
GROSS = 0.15
CHECK_FIRST = (
    "check first that theta is drawn from the prior the estimator was trained with, in the same columns and units, and that every row of x "
    "was simulated from its row of theta; then "
)


@dataclass(frozen=True)
class SBC:
    """Ranks of true parameters among posterior draws, and whether they are uniform as they must be.

    Attributes
    ----------
    names : tuple of str
        Parameters, then further test quantities.
    ranks : ndarray (m, k)
        Between 0 and ``n_draws``.
    n_draws : int
    p_value : float
        That all are uniform: the smallest of the Holm-adjusted p-values, right whatever the dependence of the columns.
    table : DataFrame
        One row a column: ``p_value`` (exact), ``p_holm``, ``inside_68`` and ``inside_90`` (how often the truth lies in the central
        interval that should hold it 68 % and 90 % of the time), ``shape`` (the largest departure in words).
    reliability : Reliability
        Not ok when ``p_value`` is below the false-alarm rate asked for.
    """

    names: tuple[str, ...]
    ranks: np.ndarray = field(repr=False)
    n_draws: int
    p_value: float
    table: pandas.DataFrame = field(repr=False)
    reliability: Reliability

    def __repr__(self) -> str:
        return f"SBC({len(self.ranks)} observations, p{p_text(self.p_value, 3)})   {self.reliability}"


def sbc(
    estimator: PosteriorEstimator,
    theta: Any,
    x: Any,
    *,
    n_draws: int = 1000,
    quantities: Mapping[str, Quantity] | None = None,
    names: Sequence[str] | None = None,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> SBC:
    """Simulation-based calibration: over prior predictive pairs, true parameters must rank uniformly among posterior draws.

    Parameters
    ----------
    estimator
        Has ``sample(x, n_samples, random_state) -> (m, n_samples, d)``: NPE, NLE, NRE, a ConditionalFlow, or your own.
    theta : array_like or DataFrame (m, d)
        Parameters drawn from the prior.
    x : array_like or DataFrame (m, ...)
        Their simulations, not used in training.
    n_draws : int
        Posterior draws an observation. The test is exact for any number; more resolve the tails better.
    quantities : mapping of str to callable, optional
        Further test quantities ``f(theta (n, d), x (n, ...)) -> (n,)``, such as ``{"log_prob": estimator.log_prob}`` or a
        log-likelihood. Quantities that depend on x see errors the parameters alone cannot, such as a posterior that ignores x.
    names : sequence of str, optional
    false_alarm : float
        Chance that an exact posterior is called not reliable.
    random_state : optional

    Returns
    -------
    SBC

    Raises
    ------
    ValueError
        When shapes do not match or draws are not finite.

    Examples
    --------
    >>> class Exact:
    ...     def sample(self, x, n_samples, random_state=None):
    ...         noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, 1))
    ...         return x[:, None] / 2 + np.sqrt(0.5) * noise
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(500, 1))
    >>> sbc(Exact(), theta, theta + rng.normal(size=(500, 1)), n_draws=100, random_state=0).reliability.ok
    True

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari & Gelman 2018, "Validating Bayesian inference algorithms with simulation-based calibration",
    arXiv:1804.06788. Modrák et al. 2023, "Simulation-based calibration checking for Bayesian computation: the choice of test
    quantities shapes sensitivity", arXiv:2211.02383.
    """
    rng = numpy_generator(random_state)
    estimator = as_posterior_estimator(estimator)
    posterior = posterior_draws(estimator, theta, x, n_draws, names=names, random_state=rng)
    return sbc_of_draws(posterior, quantities, false_alarm=false_alarm, random_state=rng)


def sbc_of_draws(
    posterior: PosteriorDraws,
    quantities: Mapping[str, Quantity] | None = None,
    *,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> SBC:
    """:func:`sbc` from draws already made by :func:`posterior_draws`."""
    rng = numpy_generator(random_state)
    n_draws = posterior.draws.shape[1]
    columns = [ranks_among(posterior.theta[:, j], posterior.draws[:, :, j], rng) for j in range(posterior.theta.shape[1])]
    columns += [quantity_ranks(f, posterior, rng, name) for name, f in (quantities or {}).items()]
    names = (*posterior.names, *(quantities or {}))
    return rank_record(names, np.stack(columns, axis=1), n_draws, false_alarm)


def rank_record(names: tuple[str, ...], ranks: np.ndarray, n_draws: int, false_alarm: float) -> SBC:
    """The verdict on ranks ``(m, k)``."""
    import pandas as pd

    p_values = np.array([uniformity_p_value(column, n_draws) for column in ranks.T])
    adjusted = holm(p_values)
    shapes = [shape_in_words(column, n_draws) for column in ranks.T]
    table = pd.DataFrame(
        {
            "p_value": p_values,
            "p_holm": adjusted,
            "inside_68": [central_coverage(column, n_draws, 0.68)[0] for column in ranks.T],
            "inside_90": [central_coverage(column, n_draws, 0.90)[0] for column in ranks.T],
            "shape": [shape if p < false_alarm else "uniform" for shape, p in zip(shapes, adjusted, strict=True)],
        },
        index=pd.Index(names, name="quantity"),
    )
    gross = {name for name, column in zip(names, ranks.T, strict=True) if distance(column, n_draws) > GROSS}
    reasons = [_reason(shape, rows, not gross.isdisjoint(rows.index)) for shape, rows in table[table.p_holm < false_alarm].groupby("shape")]
    return SBC(names, ranks, n_draws, float(adjusted.min()), table, Reliability.from_reasons(reasons))


def advice(wide: bool, gross: bool) -> str:
    """What to do about ranks that are not uniform."""
    first = CHECK_FIRST if gross else ""
    if wide:
        return f"{first}train longer or on more simulations, or give the estimator better summaries of x: it uses less of x than there is"
    return f"{first}train on more simulations or with more members"


def _reason(shape: str, rows: pandas.DataFrame, gross: bool) -> str:
    rows = rows.sort_values("p_value")
    named = ", ".join(rows.index[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
    worst = rows.iloc[0]
    return (
        f"{named}: {shape} (p{p_text(worst.p_holm)}; 90 % intervals of {rows.index[0]} hold the truth {worst.inside_90:.0%} of the time); "
        f"{advice('wide' in shape, gross)}"
    )
