"""What a finished fit says of itself."""

from __future__ import annotations

import numpy as np

from sbi_flows.results import Reliability
from sbi_flows.training.checkpoints import FitState
from sbi_flows.training.findings import Findings


def verdict(state: FitState, findings: Findings = Findings()) -> Reliability:  # noqa: B008  frozen
    """Reasons against the result: members that failed, steps that were skipped, held-out rows without density, data that are not whole."""
    reasons, notes = [*findings.reasons], [*findings.notes]
    members = len(state.best_loss)
    if state.failed.any():
        reasons.append(
            f"{state.failed.sum()} of {members} members saw an epoch without one finite loss and keep their best weights: "
            + (findings.unusable or "lower learning_rate, look for extreme values in the data, or use dtype='float64'")
        )
    elif state.n_skipped.sum() > 0.05 * max(1, state.n_steps * members):
        reasons.append(
            f"{state.n_skipped.sum() / (state.n_steps * members):.0%} of the steps had no finite loss and were skipped: "
            + (findings.unusable or "lower learning_rate or use dtype='float64'")
        )
    elif state.n_skipped.any():
        (reasons if findings.unusable else notes).append(
            f"{int(state.n_skipped.sum())} steps had no finite loss and were skipped" + (findings.unusable and f": {findings.unusable}")
        )
    if state.bad_validation.any():
        reasons.append(
            f"{int(state.bad_validation.max())} validation rows have no finite density: "
            + (findings.unusable or "they lie where the flow has none; look at them, or give support= with ends that contain the data")
        )
    if not state.failed.any() and (state.best_epoch < 0).any() and not np.isnan(state.validation_loss).all():
        notes.append(
            "training did not lower the validation loss: the start was already the best on held-out rows and is kept (the weights of the "
            "fit before; or, given a context, a linear Gaussian regression fitted to the data, which needs no training where it is right)"
        )
    return Reliability.from_reasons(reasons, notes)
