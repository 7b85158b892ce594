"""Figures. matplotlib is imported inside the functions and none of its global state is touched: each returns a ``Figure``."""

from sbi_flows.plots.calibration import (
    class_scores,
    coverage,
    diagnosis,
    local_preference,
    null_distribution,
    predictive,
    rank_ecdf,
    rank_histograms,
)
from sbi_flows.plots.canvas import COLOURS, GREY, new_figure, save_figure
from sbi_flows.plots.chains import compare_chains, traces
from sbi_flows.plots.evidences import evidence_bars
from sbi_flows.plots.fits import losses, weights
from sbi_flows.plots.marginals import corner

__all__ = [
    "COLOURS",
    "GREY",
    "class_scores",
    "compare_chains",
    "corner",
    "coverage",
    "diagnosis",
    "evidence_bars",
    "local_preference",
    "losses",
    "new_figure",
    "null_distribution",
    "predictive",
    "rank_ecdf",
    "rank_histograms",
    "save_figure",
    "traces",
    "weights",
]
