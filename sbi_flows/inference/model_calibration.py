"""Are stated model probabilities right? Bins on held-out simulations, and one temperature that makes them better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, special, stats

if TYPE_CHECKING:
    import pandas

_BINS = 10
COLUMNS = ["model", "stated", "observed", "n"]


@dataclass(frozen=True)
class Calibration:
    """How stated probabilities compare with how often models were right, on simulations kept from the fit.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a model and bin: ``model, stated, observed, n``.
    p_value : float
        That the probabilities are right: the smallest of the models' chi-squared p-values over bins, times the number of models
        (Bonferroni).
    error : float
        Mean distance of stated and observed, weighted by rows and averaged over models.
    temperature : float
        By which log Bayes factors were divided; 1 where the network was neither too sure nor too timid.
    log_loss : float
        Mean of -ln p(true model), nats.
    n : int
        Simulations it rests on.
    """

    table: pandas.DataFrame = dataclasses.field(repr=False)
    p_value: float
    error: float
    temperature: float
    log_loss: float
    n: int


def calibration(stated: np.ndarray, labels: np.ndarray, names: Sequence[str], temperature: float = 1.0) -> Calibration:
    """Compare probabilities ``(n, k)`` with the models ``labels (n,)`` that the rows are from, in bins of equally many rows.

    Given x, a label is a draw from the right probabilities, so that in every bin the count of a model has a known mean and variance.
    """
    import pandas as pd

    n, k = stated.shape
    # Rows often come model by model: where stated probabilities are equal, their order must not decide on the bin.
    shuffled = np.random.default_rng(0).permutation(n)
    table, p_values, errors = [], [], []
    for m in range(k):
        order = shuffled[np.argsort(stated[shuffled, m], kind="stable")]
        chi_squared, used, error = 0.0, 0, 0.0
        for rows in np.array_split(order, min(_BINS, n)):
            p, hits = stated[rows, m], labels[rows] == m
            table.append({"model": names[m], "stated": p.mean(), "observed": hits.mean(), "n": len(rows)})
            error += abs(hits.sum() - p.sum()) / n
            variance = (p * (1 - p)).sum()
            # A count whose mean is below one is no normal number; such bins are sure of themselves and judged by the error.
            if variance > 1:
                chi_squared, used = chi_squared + (hits.sum() - p.sum()) ** 2 / variance, used + 1
        p_values.append(stats.chi2.sf(chi_squared, used) if used else 1.0)
        errors.append(error)
    log_loss = -np.log(np.maximum(stated[np.arange(n), labels], np.finfo(float).tiny)).mean()
    return Calibration(
        pd.DataFrame(table)[COLUMNS], float(min(1.0, k * min(p_values))), float(np.mean(errors)), float(temperature), float(log_loss), n
    )


def best_temperature(log_ratios: np.ndarray, log_shares: np.ndarray, labels: np.ndarray) -> float:
    """By which to divide log Bayes factors so that the log loss of ``labels`` is least."""

    def log_loss(log_temperature: float) -> float:
        scores = log_ratios * np.exp(-log_temperature) + log_shares
        return float(-special.log_softmax(scores, axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(optimize.minimize_scalar(log_loss, bounds=(-2.0, 2.0), method="bounded").x))
