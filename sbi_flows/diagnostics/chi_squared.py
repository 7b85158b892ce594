"""Whether parameters drawn from a posterior explain data with known Gaussian errors, or explain them too well."""

from __future__ import annotations

import numpy as np
from scipy import stats

LOOKED_AT = 64  # draws
_IMPOSSIBLE, _UNLIKELY = 1e-4, 1e-2  # of a posterior predictive p-value: not ok, and a note


def misfit(chi_squared: np.ndarray, count: int, data: str = "the data have") -> tuple[list[str], list[str]]:
    """Reasons and notes where ``chi_squared (n,)`` of parameters drawn from the posterior is too large or too small for ``count`` numbers.

    By the posterior predictive p-value, the mean over the draws (one draw alone would decide by luck) of either tail, two-sided.

    Examples
    --------
    >>> misfit(np.array([50.0, 55.0]), 52)
    ([], [])
    >>> misfit(np.array([133.0]), 52)[0][0][:84]
    'the data have a chi-squared of 133 for 52 numbers (posterior predictive p = 1e-08): '

    References
    ----------
    Gelman, Meng & Stern 1996, "Posterior predictive assessment of model fitness via realized discrepancies", Statistica Sinica 6, 733.
    """
    above, below = float(stats.chi2.sf(chi_squared, count).mean()), float(stats.chi2.cdf(chi_squared, count).mean())
    p_value = min(1.0, 2 * min(above, below))
    if not p_value < _UNLIKELY:
        return [], []
    told = f"{data} a chi-squared of {np.median(chi_squared):.4g} for {count} numbers (posterior predictive p = {p_value:.1g})"
    if above < below:
        why = "more than the model and the errors can make (outliers, errors too small, other units), or no draw is near its posterior"
    else:
        why = "less scatter than the errors say (errors too large, other units, or data that are smoothed or a model's)"
    return ([f"{told}: {why}"], []) if p_value < _IMPOSSIBLE else ([], [f"{told}: {why}"])
