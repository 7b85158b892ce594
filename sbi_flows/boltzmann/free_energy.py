"""Free energies and their differences, with errors: by importance weights, by bridges (Bennett), by maps between systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sbi_flows.results import Reliability, WeightedSamples
from sbi_flows.weights import bridge, kish_ess, largest_pareto_k, log_mean_error, log_mean_exp, pareto_k

_APART = 4.0  # standard errors by which two estimates may differ; false alarms 6e-5
_NEGLIGIBLE = 0.02  # kT


@dataclass(frozen=True)
class FreeEnergy:
    """A free energy, or a difference of two, in units of kT at the temperature of the system.

    Attributes
    ----------
    value, error : float
        The estimate of ``method`` and its standard error.
    method : str
    reliability : Reliability
    by_method : pandas.DataFrame
        One row an estimator: ``value, error, ess, pareto_k``; ess is a share of the draws.

    Examples
    --------
    >>> row = pd.DataFrame({"value": [1.5], "error": [0.01], "ess": [0.8], "pareto_k": [0.1]}, index=["bridge"])
    >>> FreeEnergy(1.5, 0.01, "bridge", Reliability(True), row)
    FreeEnergy(1.5000 +- 0.01 kT, bridge)   ok
        bridge 1.5000 +- 0.01
    """

    value: float
    error: float
    method: str
    reliability: Reliability
    by_method: pd.DataFrame = field(repr=False)

    def __repr__(self) -> str:
        rows = "   ".join(f"{name} {row.value:.4f} +- {row.error:.2g}" for name, row in self.by_method.iterrows())
        return f"FreeEnergy({self.value:.4f} +- {self.error:.2g} kT, {self.method})   {self.reliability}\n    {rows}"


Row = tuple[float, float, float, float]


def importance_row(log_weights: np.ndarray) -> Row:
    """``-ln Z`` from log-weights of draws of a normalised density, its error, share of effective draws, Pareto k."""
    n = len(log_weights)
    ess = kish_ess(log_weights)
    return -float(log_mean_exp(log_weights)), log_mean_error(log_weights), ess / n, pareto_k(log_weights)


def bridge_row(at_target: np.ndarray, at_proposal: np.ndarray) -> Row:
    """``-ln Z`` by a bridge, from log-ratios of target to proposal at independent draws of both."""
    log_z, error = bridge(at_target, at_proposal)
    return -log_z, error, np.nan, np.nan


def mapped_row(work: np.ndarray) -> Row:
    """Targeted free-energy perturbation: ``-ln mean exp(-work)`` (Jarzynski 2002, Phys. Rev. E 65, 046122)."""
    return importance_row(-work)


def chosen(rows: Mapping[str, Row], order: tuple[str, ...], reliability: Reliability, n: int) -> FreeEnergy:
    """The estimate with the smallest error among those whose weights can be believed, and what the others say about it."""
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "error", "ess", "pareto_k"])
    largest = largest_pareto_k(n)
    good = [name for name in order if name in rows and not rows[name][3] > largest]
    best = min(good or [name for name in order if name in rows], key=lambda name: rows[name][1])
    value, error, _, k = rows[best]
    reasons = list(reliability.reasons)
    if k > largest:
        reasons.append(f"Pareto k = {k:.2f} > {largest:.2g}: the error of {best} cannot be believed. Train longer, or use a larger flow")
    for name in good:
        other, other_error = rows[name][:2]
        if abs(other - value) > max(_APART * np.hypot(error, other_error), _NEGLIGIBLE):
            reasons.append(
                f"{name} gives {other:.3f} +- {other_error:.2g}, {best} {value:.3f} +- {error:.2g}: draws and chains do not see the same "
                "states. Fit with more particles, or longer"
            )
    return FreeEnergy(float(value), float(error), best, Reliability.from_reasons(reasons, reliability.notes), table)


def between_regions(
    drawn: WeightedSamples, in_a: np.ndarray, in_b: np.ndarray, names: tuple[str, str] = ("a", "b")
) -> FreeEnergy:
    """``F_b - F_a = -ln(P_b / P_a)`` of two sets of configurations, from weighted draws; the error by the delta method."""
    w = drawn.weights
    shares = float(w @ in_a), float(w @ in_b)
    for share, name in zip(shares, names, strict=True):
        if share == 0:
            raise ValueError(
                f"Expected some draws in region {name}; none of {len(w)} has weight there. Draw more (n_samples=), or look at the function "
                "that tells the region."
            )
    influence = in_b / shares[1] - in_a / shares[0]
    error = float(np.sqrt(np.sum((w * influence) ** 2)))
    value = float(np.log(shares[0] / shares[1]))
    rows = {"importance": (value, error, drawn.ess / len(w), drawn.pareto_k)}
    return chosen(rows, ("importance",), drawn.reliability, len(w))


def as_region(function: Callable, x, name: str) -> np.ndarray:
    """0/1 for each row of ``x (n, d)``, whatever kind of truth the function returns."""
    values = np.asarray(function(x))
    if values.shape != (len(x),):
        raise ValueError(
            f"Expected region {name} to map configurations (n, {x.shape[1]}) to n truth values; for n = {len(x)} it returned shape "
            f"{values.shape}."
        )
    return values.astype(bool).astype(np.float64)
