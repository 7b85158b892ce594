"""What ``NPE`` fits when it is not told: the settings, and a short trial that says whether simulations or training are scarce."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.base import clone

from sbi_flows.estimators import ConditionalFlow
from sbi_flows.training.lengths import auto_epochs

QUALITIES = ("default", "high")
_FEWEST_ROWS = 1000  # with fewer, simulations are taken to be scarce without a trial
_TRIAL_SHARE = 4
# Nats by which new rows are worse than those trained on. In trials on the tasks of benchmarks/sbibm.py (10 000 simulations) it was
# below .07 on the four where a longer fit helped and .26 or more on the others; above .6 where more members and fewer epochs helped.
_SCARCE, _VERY_SCARCE = 0.15, 0.5
_LARGE = {"n_members": 4, "layers": 5, "hidden": (96, 96, 96)}
_MANY = {"n_members": 12, "weight_decay": 0.3}


def default_estimator() -> ConditionalFlow:
    """Members of few, smooth layers, as simulations are fewer than one would like.

    Chosen on held-out simulations of the tasks in ``benchmarks/sbibm.py``; what was tried is in ``docs/benchmarks.md``.
    """
    return ConditionalFlow(layers=3, hidden=(64, 64, 64), bins=5, n_members=4, learning_rate=2e-2)


def settle(estimator: ConditionalFlow, rows: np.ndarray, theta: pd.DataFrame, quality: str) -> str:
    """Set how long and how many members an unfitted :func:`default_estimator` is to train, and return why in words.

    A trial fit of one member, a quarter as long, shows by how much it does worse on rows it has not seen. If much, simulations are scarce,
    and the mean of many short fits with decaying weights averages what each overfits; if not, it is training that is scarce, and
    fewer members train longer. "high" spends several times as much: on larger flows, or on yet more members with stronger decay.
    """
    epochs, high = auto_epochs(round((1 - estimator.validation_fraction) * len(rows))), quality == "high"
    gap = _trial_gap(estimator, rows, theta, epochs) if len(rows) >= _FEWEST_ROWS else _SCARCE
    if gap < _SCARCE:
        estimator.set_params(n_members=2, weight_decay=0.0, max_epochs=round(1.5 * epochs))
        if high:
            estimator.set_params(**_LARGE, weight_decay=0.1, max_epochs=2 * epochs)
        return "a trial fit did as well on simulations it had not seen: trained for longer"
    if gap < _VERY_SCARCE:
        estimator.set_params(n_members=4, patience=10)
        if high:
            estimator.set_params(**(_LARGE if len(rows) >= _FEWEST_ROWS else _MANY))
    else:
        estimator.set_params(n_members=8, max_epochs=max(10, epochs // 2))
        if high:
            estimator.set_params(**_MANY)
    return "a trial fit did worse on simulations it had not seen: more of them would make the posterior sharper"


def _trial_gap(estimator: ConditionalFlow, rows: np.ndarray, theta: pd.DataFrame, epochs: int) -> float:
    """Nats a row; infinite where the trial failed."""
    trial = clone(estimator).set_params(n_members=1, max_epochs=max(2, epochs // _TRIAL_SHARE))
    trial.target_called = estimator.target_called
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the fit itself says them again
        history = trial.fit(rows, theta).history_
    gap = float(np.min(history.validation_loss) - np.mean(history.train_loss[-1]))
    return gap if np.isfinite(gap) else np.inf
