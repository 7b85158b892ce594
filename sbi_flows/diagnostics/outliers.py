"""Misspecification: could the simulator have made this observation?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import positive
from sbi_flows.diagnostics.draws import as_observations, take
from sbi_flows.diagnostics.features import Scaling, flat_rows
from sbi_flows.diagnostics.ranks import FALSE_ALARM
from sbi_flows.diagnostics.uniformity import holm, p_text
from sbi_flows.results import Reliability

if TYPE_CHECKING:
    import pandas

NEIGHBOURS = 10
# Beyond this many, covariances cost more than they tell, and the leading directions stand for all columns.
MANY_COLUMNS = 80
SCORES = ("Mahalanobis distance", "distance to its neighbours", "largest column")


@dataclass(frozen=True)
class Misspecification:
    """How unusual observations are among simulations.

    Attributes
    ----------
    p_values : ndarray (m,)
        One an observation: the share of simulations and itself at least as unusual. Uniform for observations the simulator makes.
    p_value : float
        The smallest, adjusted for their number by Holm's method.
    score : ndarray (m,)
        Above 1 means beyond 99 % of the simulations in at least one of three distances.
    calibration : ndarray (n,)
        Scores of the simulations beside the most unusual observation.
    columns : DataFrame
        For the most unusual observation, one row a number of x: ``value, low, high`` (the central 99 % of simulations) and ``p_value``
        (two-sided, of this column alone).
    reliability : Reliability
    """

    p_values: np.ndarray
    p_value: float
    score: np.ndarray
    calibration: np.ndarray = field(repr=False)
    columns: pandas.DataFrame = field(repr=False)
    reliability: Reliability

    def __repr__(self) -> str:
        return f"Misspecification({len(self.p_values)} observation(s), p{p_text(self.p_value)})   {self.reliability}"


def misspecification(
    x: Any,
    x_o: Any,
    *,
    embedding: Callable[[Any], np.ndarray] | None = None,
    false_alarm: float = FALSE_ALARM,
    max_rows: int = 10_000,
    random_state: RandomState = None,
) -> Misspecification:
    """Does ``x_o`` lie where simulations lie? A posterior outside of its training data is an extrapolation.

    Put among the simulations, the observation is one of n + 1 rows. Each has a Mahalanobis distance, a distance to its tenth neighbour
    and a largest column, in units of their 99 % quantiles; the largest of the three is its score, and the rank of the observation's
    score its p-value. All rows are treated alike, so the p-value is exact in samples of any size from any distribution.

    Parameters
    ----------
    x : array_like or DataFrame (n, ...)
        Simulations from the prior predictive distribution, such as the training data; NaN means missing. The smallest possible p-value
        is 1 / (n + 1).
    x_o : array_like (...) or (m, ...)
        The observation, or several; each costs up to a few seconds at 1e4 simulations.
    embedding : callable, optional
        Maps observations ``(n, ...)`` to ``(n, k)``: distances are then taken there, for instance in an estimator's trained summary
        space. Pass simulations that it was not trained on.
    false_alarm : float
        Chance that an observation the simulator made is called impossible. Exact, whatever the distribution of x.
    max_rows : int
        Simulations that are used, drawn at random.
    random_state : optional

    Returns
    -------
    Misspecification

    Raises
    ------
    ValueError
        When ``x_o`` has another shape than the rows of ``x``, or simulations are fewer than 40.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(1000, 2)) @ np.array([[1.0, 0.95], [0.0, 0.3]])
    >>> misspecification(x, np.array([1.5, -1.5]), random_state=0).reliability.ok      # usual columns, impossible together
    False

    References
    ----------
    Schmitt, Bürkner, Köthe & Radev 2023, "Detecting model misspecification in amortized Bayesian inference with neural networks", GCPR,
    arXiv:2112.08866. Vovk, Gammerman & Shafer 2005, "Algorithmic learning in a random world" (the calibration).
    """
    import pandas as pd

    positive("max_rows", max_rows, integer=True)
    x, observed = as_observations(x), as_observations(x_o)
    observed = observed if np.ndim(observed) == np.ndim(x) else observed[None]
    if np.shape(observed)[1:] != np.shape(x)[1:]:
        raise ValueError(f"Expected x_o of shape {np.shape(x)[1:]} like a row of x, or several; got {np.shape(x_o)}.")
    if np.isinf(flat_rows(observed)).any():
        raise ValueError(f"Expected finite numbers in x_o, or NaN for missing ones; got inf in number {_first_inf(observed)}.")
    if len(x) < 40:
        raise ValueError(f"Expected at least 40 simulations to compare x_o with, better 1000; got {len(x)}. Simulate more from the prior.")
    rng = numpy_generator(random_state)
    kept = take(x, np.sort(rng.permutation(len(x))[:max_rows]))
    rows, observed_rows = (flat_rows(_embedded(embedding, value)) for value in (kept, observed))
    scores = [_scores(np.concatenate([rows, row[None]])) for row in observed_rows]
    p_values = np.array([np.mean(s.max(axis=1) >= s[-1].max()) for s in scores])
    p_value = float(holm(p_values).min())
    worst = int(np.argmin(p_values))
    table = _column_table(flat_rows(kept), flat_rows(observed)[worst], getattr(x, "columns", None), pd)
    notes = []
    smallest = len(p_values) / (1 + len(rows))
    if smallest > false_alarm:
        notes.append(
            f"x_o among simulations: this check alone cannot fail, as with {len(rows)} simulations its smallest possible p-value is "
            f"{smallest:.2g} and it fails below {false_alarm:.2g}: pass at least {int(np.ceil(len(p_values) / false_alarm))} simulations"
        )
    reasons = _reasons(p_value, false_alarm, scores[worst][-1], table)
    score = np.array([s[-1].max() for s in scores])
    return Misspecification(p_values, p_value, score, scores[worst][:-1].max(axis=1), table, Reliability.from_reasons(reasons, notes))


def _scores(rows: np.ndarray) -> np.ndarray:
    """Three distances of every row from the others, each in units of its 99 % quantile, ``(n, 3)``."""
    from sklearn.covariance import ledoit_wolf
    from sklearn.neighbors import NearestNeighbors

    scaled = Scaling.fit(rows)(rows)
    if scaled.shape[1] == 0:
        raise ValueError("Expected simulations that vary; got constant ones only. Look at what the simulator returns.")
    scaled = _to_unit_variance(scaled)
    largest = np.abs(scaled).max(axis=1)
    if scaled.shape[1] > MANY_COLUMNS:
        scaled = _to_unit_variance(_leading(scaled))
    values, vectors = np.linalg.eigh(np.atleast_2d(ledoit_wolf(scaled, assume_centered=True)[0]))
    whitened = scaled @ (vectors / np.sqrt(np.maximum(values, 1e-8 * values.max())))
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(whitened).kneighbors()[0][:, -1]
    distances = np.stack([np.linalg.norm(whitened, axis=1), near, largest], axis=1)
    return distances / np.maximum(np.quantile(distances, 0.99, axis=0), 1e-300)


def _to_unit_variance(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), 1e-300)


def _leading(rows: np.ndarray) -> np.ndarray:
    """Coordinates along the directions of largest variance, and the log distance from the space they span: ``(n, MANY_COLUMNS / 2 + 1)``.

    The second is where an observation shows that resembles the simulations in all they usually do, and differs in what they never do.
    """
    from sklearn.utils.extmath import randomized_svd

    # The random sketch mixes columns and treats all rows alike (hence no transposition), so ranks stay exact.
    directions = randomized_svd(rows, MANY_COLUMNS // 2, transpose=False, random_state=0)[2].T
    along = rows @ directions
    left = np.maximum((rows**2).sum(axis=1) - (along**2).sum(axis=1), 1e-12)
    return np.concatenate([along, np.log(left)[:, None]], axis=1)


def _embedded(embedding: Callable[[Any], np.ndarray] | None, x: Any) -> Any:
    if embedding is None:
        return x
    rows = embedding(x)
    array = np.asarray(rows.detach().cpu() if hasattr(rows, "detach") else rows, dtype=np.float64)
    if array.ndim != 2 or len(array) != len(x):
        raise ValueError(f"Expected embedding(x) of shape ({len(x)}, k) for {len(x)} observations; got {array.shape}.")
    return array


def _column_table(rows: np.ndarray, observed: np.ndarray, names: Any, pd) -> pandas.DataFrame:
    below = (rows < observed).sum(axis=0)
    above = (rows > observed).sum(axis=0)
    equal = len(rows) - below - above
    p_value = np.minimum(1.0, 2 * (1 + np.minimum(below, above) + 0.5 * equal) / (1 + len(rows)))
    low, high = np.nanquantile(np.where(np.isfinite(rows), rows, np.nan), [0.005, 0.995], axis=0)
    labels = list(map(str, names)) if names is not None and len(names) == len(observed) else [f"x_{j}" for j in range(len(observed))]
    columns = {"value": observed, "low": low, "high": high, "p_value": np.where(np.isfinite(observed), p_value, np.nan)}
    return pd.DataFrame(columns, index=pd.Index(labels, name="column"))


def _first_inf(observed: Any) -> int:
    return int(np.flatnonzero(np.isinf(flat_rows(observed)).any(axis=0))[0])


def _reasons(p_value: float, false_alarm: float, scores: np.ndarray, table: pandas.DataFrame) -> list[str]:
    if p_value >= false_alarm:
        return []
    missing = table.value.isna()
    strange = table[(table.p_value < false_alarm / len(table)) | (table.value < table.low) | (table.value > table.high) | missing]
    labels = [f"{name} (missing)" if missing[name] else name for name in strange.sort_values("p_value").index[:5]]
    where = ", ".join(labels) or "no single column, but their combination"
    return [
        f"x_o is unlike any simulation (p{p_text(p_value)}, by the {SCORES[int(np.argmax(scores))]}; {where}): "
        "its posterior is an extrapolation; mend the simulator or widen the prior"
    ]
