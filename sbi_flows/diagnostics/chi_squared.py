"""Whether parameters drawn from a posterior explain data with known Gaussian errors, or explain them too well."""

from __future__ import annotations

import numpy as np
from scipy import stats

LOOKED_AT = 64  # draws
IMPOSSIBLE, UNLIKELY = 1e-4, 1e-2  # of a posterior predictive p-value: not ok, and a note


def predictive_p(chi_squared: np.ndarray, count: int) -> float:
    """Two-sided posterior predictive p-value of chi-squared at draws of the posterior ``(n,)``: twice the smaller of both mean tails.

    Its mean over the draws, as one draw alone would decide by luck. NaN, of impossible draws, does not count; 0 where all are.

    References
    ----------
    Gelman, Meng & Stern 1996, "Posterior predictive assessment of model fitness via realized discrepancies", Statistica Sinica 6, 733.
    """
    values = chi_squared[np.isfinite(chi_squared)]
    if not len(values):
        return 0.0
    return min(1.0, 2 * float(min(stats.chi2.sf(values, count).mean(), stats.chi2.cdf(values, count).mean())))


def misfit(chi_squared: np.ndarray, count: int, data: str = "the data have") -> tuple[list[str], list[str]]:
    """Reasons and notes where ``chi_squared (n,)`` of parameters drawn from the posterior is too large or too small for ``count`` numbers.

    By :func:`predictive_p`.

    Examples
    --------
    >>> misfit(np.array([50.0, 55.0]), 52)
    ([], [])
    >>> misfit(np.array([133.0]), 52)[0][0][:84]
    'the data have a chi-squared of 133 for 52 numbers (posterior predictive p = 1e-08): '
    """
    p_value, middle = predictive_p(chi_squared, count), float(np.median(chi_squared))
    if not p_value < UNLIKELY:
        return [], []
    told = f"{data} a chi-squared of {middle:.4g} for {count} numbers (posterior predictive p = {p_value:.1g})"
    if middle > count:
        why = "more than the model and the errors can make (outliers, errors too small, other units), or no draw is near its posterior"
    else:
        why = "less scatter than the errors say (errors too large, other units, or data that are smoothed or a model's)"
    return ([f"{told}: {why}"], []) if p_value < IMPOSSIBLE else ([], [f"{told}: {why}"])
