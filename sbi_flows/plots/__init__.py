"""Figures. matplotlib is imported inside the functions and none of its global state is touched: each returns a ``Figure``."""

from sbi_flows.plots.canvas import COLOURS, GREY, new_figure, save_figure
from sbi_flows.plots.summaries import corner, evidence_bars

__all__ = ["COLOURS", "GREY", "corner", "evidence_bars", "new_figure", "save_figure"]
