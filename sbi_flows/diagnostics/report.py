"""``diagnose``: all calibration checks in one call, with one verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import positive
from sbi_flows.diagnostics.coverage import Coverage, coverage_of_draws
from sbi_flows.diagnostics.draws import (
    PosteriorDraws,
    PosteriorEstimator,
    as_observations,
    as_posterior_estimator,
    posterior_draws,
    take,
)
from sbi_flows.diagnostics.local import MOMENT_DRAWS, LocalC2ST, joint_c2st_of_draws, local_c2st_of_draws, one_observation
from sbi_flows.diagnostics.outliers import Misspecification, misspecification
from sbi_flows.diagnostics.predictive import PosteriorPredictive, posterior_predictive
from sbi_flows.diagnostics.random_points import tarp_of_draws
from sbi_flows.diagnostics.ranks import CHECK_FIRST, FALSE_ALARM, SBC, sbc_of_draws
from sbi_flows.diagnostics.uniformity import p_text
from sbi_flows.results import Reliability

if TYPE_CHECKING:
    import pandas


# With fewer, the coverage of 90 % regions is known to no better than six percent.
FEW = 100
# Above this share of pairs that the estimator was trained on, the checks say nothing about new data.
SEEN_BEFORE = 0.1


@dataclass(frozen=True)
class Diagnosis:
    """What the calibration checks say together; ``plots.diagnosis`` draws it.

    Attributes
    ----------
    table : DataFrame
        One row a check: ``p_value``, ``ok``, and ``says``, the number that matters in words.
    p_value : float
        The smallest p-value times the number of checks (Bonferroni): right whatever their dependence.
    sbc : SBC
    coverage, tarp : Coverage
        ``coverage`` is None for estimators without a density.
    joint : LocalC2ST
        Truth against draws over all observations.
    local : LocalC2ST or None
    misspecification : Misspecification or None
    predictive : PosteriorPredictive or None
        Where an observation (and, for the last, a simulator) was given.
    threshold : float
        A single check is not ok when its p-value is below this: the false-alarm rate asked for over the number of checks.
    seconds : float
        Wall time.
    reliability : Reliability
        Not ok when ``p_value`` is below the false-alarm rate asked for, or the estimator was trained on the pairs it is checked with.
    """

    table: pandas.DataFrame = field(repr=False)
    p_value: float
    sbc: SBC
    coverage: Coverage | None
    tarp: Coverage
    joint: LocalC2ST
    local: LocalC2ST | None
    misspecification: Misspecification | None
    predictive: PosteriorPredictive | None
    threshold: float
    seconds: float
    reliability: Reliability

    @property
    def verdict(self) -> str:
        """In words: "NOT RELIABLE", "no check finds an error", or "nothing found, too few to tell"."""
        if not self.reliability.ok:
            return "NOT RELIABLE"
        return "nothing found, too few to tell" if len(self.sbc.ranks) < FEW else "no check finds an error"

    def __repr__(self) -> str:
        lines = [*self.reliability.reasons, *(f"note: {note}" for note in self.reliability.notes)]
        lines += [
            f"{name:<22} p{p_text(row.p_value):<9} {'ok' if row.ok else 'NOT OK':<7} {row.says}" for name, row in self.table.iterrows()
        ]
        lines.append(f"a check is not ok below p={self.threshold:.2g}, its share of the false-alarm rate")
        return "\n    ".join([f"Diagnosis(p{p_text(self.p_value)})   {self.verdict}", *lines])


def diagnose(
    estimator: PosteriorEstimator,
    theta: Any,
    x: Any,
    x_o: Any = None,
    *,
    simulator: Callable[..., Any] | None = None,
    vectorized: bool | None = None,
    n_draws: int = 200,
    max_observations: int = 1000,
    max_seconds: float = 600.0,
    names: Sequence[str] | None = None,
    false_alarm: float = FALSE_ALARM,
    random_state: RandomState = None,
) -> Diagnosis:
    """Is this posterior estimator calibrated, and can its posterior for ``x_o`` be believed?

    Over all simulations: :func:`sbc` of each parameter, :func:`expected_coverage`, :func:`tarp` and :func:`joint_c2st`. For an observation:
    :func:`local_c2st` and :func:`misspecification`; with a simulator also :func:`posterior_predictive`. All share the same draws.

    Parameters
    ----------
    estimator
        Has ``sample(x, n_samples, random_state) -> (m, n_samples, d)`` and ``log_prob(theta, x) -> (n,)``.
    theta : array_like or DataFrame (m, d)
        Parameters drawn from the prior.
    x : array_like or DataFrame (m, ...)
        Their simulations, not used in training. A few hundred find gross errors, thousands find subtle ones.
    x_o : array_like (...), optional
        The observation.
    simulator : callable, optional
        ``(n, d)`` parameters to ``(n, ...)`` observations, or ``simulator(theta, rng)`` of one row as :func:`sbi_flows.simulate` takes it;
        see ``vectorized``.
    vectorized : bool, optional
        As in :func:`posterior_predictive`.
    n_draws : int
        Posterior draws an observation, at least 65. All tests are exact for any number.
    max_observations : int
        The first so many rows of ``theta`` and ``x`` are used for calibration: ``n_draws * max_observations`` draws and as many
        densities. The misspecification test uses up to 1e4 rows.
    max_seconds : float
        After this time no further observations are drawn for (posteriors by MCMC may take seconds each), and a note says how many
        were. Only then do results depend on the speed of the machine.
    names : sequence of str, optional
    false_alarm : float
        Chance that an exact estimator, with an observation from the same simulator, is called not reliable by any of the checks.
    random_state : optional

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        When shapes do not match, or draws or densities are not numbers.

    Examples
    --------
    >>> class TooNarrow:
    ...     def sample(self, x, n_samples, random_state=None):
    ...         noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, 1))
    ...         return x[:, None] / 2 + 0.5 * noise
    ...     def log_prob(self, theta, x):
    ...         return -2 * ((theta - x / 2) ** 2).sum(axis=1)
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(1000, 1))
    >>> diagnose(TooNarrow(), theta, theta + rng.normal(size=(1000, 1)), random_state=0).reliability.ok
    False

    References
    ----------
    See the functions of the single checks.
    """
    start = time.perf_counter()
    positive("n_draws", n_draws, integer=True)
    positive("max_observations", max_observations, integer=True)
    positive("max_seconds", max_seconds)
    if n_draws <= MOMENT_DRAWS:
        raise ValueError(f"Expected n_draws of at least {MOMENT_DRAWS + 1}; got {n_draws}.")
    rng = numpy_generator(random_state)
    estimator = as_posterior_estimator(estimator)
    x = as_observations(x)
    rows = slice(0, max_observations)
    if len(theta) != len(x):
        raise ValueError(f"Expected one row of x for each of theta; got {len(theta)} rows of theta and {len(x)} of x.")
    has_density = callable(getattr(estimator, "log_prob", None))
    n_checks = 3 + has_density + 2 * (x_o is not None) + (x_o is not None and simulator is not None)
    share = false_alarm / n_checks
    posterior = posterior_draws(
        estimator, take(theta, rows), take(x, rows), n_draws, names=names, max_seconds=max_seconds, random_state=rng
    )

    records: dict[str, Any] = {"sbc": sbc_of_draws(posterior, false_alarm=share, random_state=rng)}
    if has_density:
        records["coverage"] = coverage_of_draws(estimator, posterior, false_alarm=share, random_state=rng)
    records["tarp"] = tarp_of_draws(posterior, false_alarm=share, random_state=rng)
    # Enough exchanges for a p-value below this check's share of the false alarms.
    exchanges = max(999, int(np.ceil(2 / share)))
    records["joint"] = joint_c2st_of_draws(posterior, n_permutations=exchanges, false_alarm=share, random_state=rng)
    if x_o is not None:
        row = one_observation(x_o, x)
        records["local"] = local_c2st_of_draws(estimator, posterior, row, n_permutations=exchanges, false_alarm=share, random_state=rng)
        records["misspecification"] = misspecification(x, row, false_alarm=share, random_state=rng)
        if simulator is not None:
            records["predictive"] = posterior_predictive(
                _At(estimator, row), simulator, _plain(row)[0], vectorized=vectorized, false_alarm=share, random_state=rng
            )
    table = _table(records)
    p_value = float(min(1.0, n_checks * table.p_value.min()))
    reasons = _said_once([reason for record in records.values() for reason in record.reliability.reasons])
    notes = [note for record in records.values() for note in record.reliability.notes]
    known = _trained_on(estimator, posterior)
    if known:
        told = f"{known} of {len(posterior.theta)} pairs were in the training data, on which errors do not show: simulate new ones"
        (reasons if known > SEEN_BEFORE * len(posterior.theta) else notes).append(told)
    wanted = min(len(x), max_observations)
    if len(posterior.theta) < wanted:
        notes.append(f"max_seconds={max_seconds:g} ended the draws after {len(posterior.theta)} of {wanted} observations")
    if not has_density:
        notes.append("the estimator has no log_prob: expected coverage is left out")
    return Diagnosis(
        table,
        p_value,
        records["sbc"],
        records.get("coverage"),
        records["tarp"],
        records["joint"],
        records.get("local"),
        records.get("misspecification"),
        records.get("predictive"),
        share,
        time.perf_counter() - start,
        Reliability.from_reasons(reasons, [*notes, _power(records["tarp"])]),
    )


class _At:
    """The posterior of one observation, from an estimator."""

    def __init__(self, estimator: PosteriorEstimator, row: Any):
        self._estimator, self._row = estimator, row

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        return np.asarray(self._estimator.sample(self._row, n_samples, random_state=random_state))[0]


def _said_once(reasons: list[str]) -> list[str]:
    """What to check first comes with the first reason that asks for it."""
    asked = [k for k, reason in enumerate(reasons) if CHECK_FIRST in reason]
    return [reason.replace(CHECK_FIRST, "") if k in asked[1:] else reason for k, reason in enumerate(reasons)]


def _trained_on(estimator: Any, posterior: PosteriorDraws) -> int:
    """How many rows of theta the estimator has seen with its training data, where it still has them."""
    simulations = getattr(estimator, "_simulations", None)
    if simulations is None:
        return 0
    seen = {row.tobytes() for row in np.ascontiguousarray(simulations.theta, dtype=np.float64)}
    return sum(row.tobytes() in seen for row in np.ascontiguousarray(posterior.theta))


def _plain(x: Any) -> np.ndarray:
    return x.to_numpy() if hasattr(x, "to_numpy") else np.asarray(x)


def _table(records: dict[str, Any]) -> pandas.DataFrame:
    import pandas as pd

    titles: dict[str, tuple[str, Callable[[Any], str]]] = {
        "sbc": ("ranks of parameters", _ranks_say),
        "coverage": ("expected coverage", _coverage_says),
        "tarp": ("coverage of balls", _coverage_says),
        "joint": ("truth against draws", _preference_says),
        "local": ("posterior at x_o", _preference_says),
        "misspecification": ("x_o among simulations", lambda r: f"x_o at {r.score.max():.2f} of the 99 % distance of simulations"),
        "predictive": ("simulations at x_o", lambda r: f"{(r.table.p_value < 0.05).sum()} of {len(r.table)} summaries beyond 95 %"),
    }
    rows = [
        {"check": titles[key][0], "p_value": record.p_value, "ok": record.reliability.ok, "says": titles[key][1](record)}
        for key, record in records.items()
    ]
    return pd.DataFrame(rows).set_index("check")


def _ranks_say(record: SBC) -> str:
    worst = record.table.p_value.idxmin()
    row = record.table.loc[worst]
    return f"worst: {worst}, its 90 % intervals hold the truth {row.inside_90:.0%} of the time"


def _coverage_says(record: Coverage) -> str:
    value, low, high = record.at(0.9)
    return f"{record.method}: 90 % regions hold {value:.1%} [{low:.1%}, {high:.1%}] of truths"


def _preference_says(record: LocalC2ST) -> str:
    return f"preference of the classifier {np.sqrt(record.statistic):.2f} (0 none, 1 certain)"


def _power(record: Coverage) -> str:
    m = len(record.ranks)
    return f"{m} observations: the coverage of 90 % regions is known to +-{2 * np.sqrt(0.09 / m):.1%}, smaller errors stay unseen"
