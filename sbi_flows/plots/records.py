"""Which record each figure of the diagnostics draws, and what to say to another one."""

from __future__ import annotations

from typing import Any

# What draws a record, by the name of its class.
_FIGURES = {
    "SBC": "rank_histograms or rank_ecdf",
    "Coverage": "coverage",
    "C2ST": "class_scores",
    "MMD": "null_distribution",
    "LocalC2ST": "local_preference or null_distribution",
    "Misspecification": "null_distribution",
    "PosteriorPredictive": "predictive",
    "Diagnosis": "diagnosis",
    "ChainComparison": "compare_chains",
}
# Where a Diagnosis keeps each of its parts.
_PARTS = {
    "SBC": ".sbc",
    "Coverage": ".coverage",
    "LocalC2ST": ".local",
    "Misspecification": ".misspecification",
    "PosteriorPredictive": ".predictive",
}


def require(record: Any, figure: str, *names: str) -> None:
    """Raise TypeError unless the record is of one of these classes."""
    from sbi_flows import diagnostics

    if isinstance(record, tuple(getattr(diagnostics, name) for name in names)):
        return
    kind = type(record).__name__
    if record is None:
        hint = "diagnose leaves a check out when what it needs is not given: x_o, a simulator, a log_prob"
    elif kind == "Diagnosis":
        parts = [_PARTS[name] for name in names if name in _PARTS]
        hint = f"pass its {' or '.join(parts)}" if parts else "it holds no such record"
    elif kind in _FIGURES:
        hint = f"for that use {_FIGURES[kind]}"
    else:
        hint = "make one with sbi_flows.diagnostics"
    raise TypeError(f"{figure} draws {' or '.join(names)}; got {'None' if record is None else kind}: {hint}.")
