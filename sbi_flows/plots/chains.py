"""Two runs laid over each other."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from sbi_flows.diagnostics import ChainComparison
from sbi_flows.plots.canvas import COLOURS, GREY, new_figure
from sbi_flows.plots.records import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 16
_BINS = 50


def compare_chains(comparison: ChainComparison, *, title: str | None = None) -> Figure:
    """Marginals of both runs, with what sets them apart written above each.

    Beyond 16 parameters, those are drawn whose Kolmogorov-Smirnov p-values are smallest.

    Parameters
    ----------
    comparison : ChainComparison
        What :func:`sbi_flows.diagnostics.compare_chains` returns.
    title : str, optional
        The verdict by default.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> from sbi_flows.diagnostics import compare_chains as compare
    >>> rng = np.random.default_rng(0)
    >>> figure = compare_chains(compare(rng.normal(size=(4, 500, 2)), rng.normal(size=(4, 500, 2)), random_state=0))
    """
    require(comparison, "compare_chains", "ChainComparison")
    table = comparison.table
    d = len(table)
    shown = np.sort(np.argsort(table["ks_p"].fillna(0.0).to_numpy(), kind="stable")[:_MOST_PANELS])
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(max(2.6 * columns, 4.6), 2.3 * rows + 1.0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, j in zip(axes, shown, strict=False):
        _panel(axis, comparison, int(j))
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    said = f"{comparison.labels[0]} and {comparison.labels[1]}: {comparison.verdict}" if title is None else title
    more = f" (the {len(shown)} of {d} parameters that differ most)" if d > len(shown) else ""
    figure.suptitle(textwrap.fill(said + more, 30 * max(columns, 2)), x=0.01, ha="left", fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
    return figure


def _panel(axis: Axes, comparison: ChainComparison, j: int) -> None:
    row = comparison.table.iloc[j]
    draws = [run.samples[..., j].ravel() for run in (comparison.a, comparison.b)]
    low, high = np.quantile(np.concatenate(draws), [0.001, 0.999])
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.linspace(low - 0.5, low + 0.5, _BINS + 1)
    a, b = (np.histogram(each, edges, density=True)[0] for each in draws)
    axis.stairs(a, edges, fill=True, color=COLOURS[0], alpha=0.35, label=comparison.labels[0])
    axis.stairs(b, edges, color=COLOURS[1], linewidth=1.4, label=comparison.labels[1])
    axis.set_xlabel(str(row.name))
    axis.set_yticks([])
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(GREY)
    axis.tick_params(labelsize=8)
    words = f"H = {row.hellinger:.3f}, floor {row.hellinger_floor:.3f}\nmean {row.mean_shift:+.1f}, sd {row.sd_shift:+.1f} errors"
    axis.set_title(words, fontsize=8, loc="left")
