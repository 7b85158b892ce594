"""Whether the parameters found explain the residuals at all."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sbi_flows.diagnostics.chi_squared import IMPOSSIBLE, LOOKED_AT, UNLIKELY, predictive_p
from sbi_flows.physics.pta.timing import TimingTarget
from sbi_flows.results import Reliability, WeightedSamples


def judged(weighted: WeightedSamples, target: TimingTarget) -> WeightedSamples:
    """The same draws, with what :func:`misfit` says as part of their verdict."""
    reasons, notes = misfit(target, torch.from_numpy(weighted.resample(LOOKED_AT, 0)))
    before = Reliability.from_reasons([]) if weighted.source is None else weighted.source
    return dataclasses.replace(weighted, source=Reliability.from_reasons([*before.reasons, *reasons], [*before.notes, *notes]))


def misfit(target: TimingTarget, theta: Tensor) -> tuple[list[str], list[str]]:
    """Reasons and notes where parameters drawn from the posterior, ``theta (n, d)``, do not explain the residuals of ``target``.

    By the p-value of their chi-squared (:func:`sbi_flows.diagnostics.chi_squared.predictive_p`): residuals may be too loud, or too quiet.
    """
    chi_squared, count = target.chi_squared(theta)
    if not bool(torch.isfinite(chi_squared).any()):
        return ["every draw has a background that the likelihood calls impossible: the draws are nowhere near the posterior"], []
    p_value, middle = predictive_p(chi_squared.numpy(), count), float(chi_squared.nanmedian())
    told = f"the residuals have a chi-squared of {middle:.4g} for {count} numbers (posterior predictive p = {p_value:.1g})"
    loud = middle > count
    if p_value < IMPOSSIBLE:
        nowhere = "or the draws are nowhere near its posterior"
        if loud:
            why = "look for a line, a glitch, other units"
            return [f"{told}: either the source and power laws cannot make such a sky ({why}), {nowhere}"], []
        why = "the errors behind TNT are too large, or TNr has other units than TNT"
        return [f"{told}: the sky is quieter than its own measurement errors ({why}), {nowhere}"], []
    what = "has more than the source and power laws tell of" if loud else "is quieter than its measurement errors say"
    return [], [f"{told}: the sky {what}"] if p_value < UNLIKELY else []
