"""Whether the parameters found explain the residuals at all."""

from __future__ import annotations

import dataclasses

import torch
from scipy import stats
from torch import Tensor

from sbi_flows.physics.pta.timing import TimingTarget
from sbi_flows.results import Reliability, WeightedSamples

LOOKED_AT = 64  # draws
_IMPOSSIBLE, _UNLIKELY = 1e-4, 1e-2  # of a posterior predictive p-value: not ok, and a note


def judged(weighted: WeightedSamples, target: TimingTarget) -> WeightedSamples:
    """The same draws, with what :func:`misfit` says as part of their verdict."""
    reasons, notes = misfit(target, torch.from_numpy(weighted.resample(LOOKED_AT, 0)))
    before = Reliability.from_reasons([]) if weighted.source is None else weighted.source
    return dataclasses.replace(weighted, source=Reliability.from_reasons([*before.reasons, *reasons], [*before.notes, *notes]))


def misfit(target: TimingTarget, theta: Tensor) -> tuple[list[str], list[str]]:
    """Reasons and notes where parameters drawn from the posterior, ``theta (n, d)``, do not explain the residuals of ``target``.

    By the posterior predictive p-value of chi-squared, its mean over the draws: one draw alone would decide by luck.

    References
    ----------
    Gelman, Meng & Stern 1996, "Posterior predictive assessment of model fitness via realized discrepancies", Statistica Sinica 6, 733.
    """
    chi_squared, count = target.chi_squared(theta)
    p_value, middle = float(stats.chi2.sf(chi_squared.numpy(), count).mean()), float(chi_squared.median())
    told = f"the residuals have a chi-squared of {middle:.4g} for {count} numbers (posterior predictive p = {p_value:.1g})"
    if p_value < _IMPOSSIBLE:
        why = "look for a line, a glitch, other units), or the draws are nowhere near its posterior"
        return [f"{told}: either the source and power laws cannot make such a sky ({why}"], []
    return [], [f"{told}: the sky has more than the source and power laws tell of"] if p_value < _UNLIKELY else []
