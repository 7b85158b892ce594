"""Marginals of draws, and Bayes factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sbi_flows.plots.canvas import COLOURS, GREY, new_figure

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (0.68, 0.95)


def corner(
    draws: Mapping[str, np.ndarray],
    labels: Sequence[str],
    *,
    ranges: Sequence[tuple[float, float]] | None = None,
    title: str | None = None,
    bins: int = 40,
) -> Figure:
    """One- and two-dimensional marginals of one or several sets of draws.

    Parameters
    ----------
    draws : mapping of str to ndarray (n, d)
        Sets of draws by the name that enters the legend; the first is filled, the others are lines.
    labels : sequence of str
        Axis labels with units, one a column.
    ranges : sequence of (low, high), optional
        By default the pooled 0.2-99.8 % range of each column.
    title : str, optional
    bins : int
        Along each axis.

    Returns
    -------
    Figure
        Contours hold 68 % and 95 % of the draws.
    """
    d = len(labels)
    if ranges is None:
        pooled = np.concatenate(list(draws.values()))
        ranges = [tuple(np.quantile(pooled[:, j], [0.002, 0.998])) for j in range(d)]
    figure = new_figure(1.9 * d + 1.2, 1.9 * d + 0.9)
    axes = figure.subplots(d, d, squeeze=False)
    for row in range(d):
        for column in range(d):
            axis = axes[row, column]
            if column > row:
                axis.set_axis_off()
                continue
            for k, sample in enumerate(draws.values()):
                if row == column:
                    _marginal(axis, sample[:, row], ranges[row], bins, k)
                else:
                    _contours(axis, sample[:, column], sample[:, row], ranges[column], ranges[row], bins, k)
            _corner_axis(axis, row, column, d, labels)
            axis.set_xlim(*ranges[column])
    handles = [_legend_patch(k, name) for k, name in enumerate(draws)]
    # The upper right corner is free except where there is but one panel.
    figure.legend(handles=handles, loc="outside upper right", frameon=False, title=title, alignment="left")
    return figure


def evidence_bars(table: pandas.DataFrame, *, reference: str, titles: Mapping[str, str] | None = None) -> Figure:
    """ln Bayes factors with their errors, best at the top.

    Parameters
    ----------
    table : DataFrame
        Columns ``model, log_bf, log_bf_err, reliable``; rows without a Bayes factor are left out.
    reference : str
        The model against which they are taken, as the axis should name it.
    titles : mapping of str to str, optional
        What to call each model.
    """
    table = table.dropna(subset=["log_bf"]).sort_values("log_bf")
    figure = new_figure(6.4, 1.3 + 0.36 * max(len(table), 2))
    axis = figure.subplots()
    positions = np.arange(len(table))
    reliable = table["reliable"].to_numpy(dtype=bool)
    for good, colour, marker, label in ((True, COLOURS[0], "o", "reliable"), (False, COLOURS[1], "X", "not reliable")):
        rows = table[reliable == good]
        y = positions[reliable == good]
        if len(rows):
            axis.errorbar(rows["log_bf"], y, xerr=rows["log_bf_err"], fmt=marker, color=colour, capsize=3, label=label)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(positions, [(titles or {}).get(name, name) for name in table["model"]])
    axis.set_ylim(-0.6, max(len(table), 2) - 0.4)
    axis.set_xlabel(f"ln Bayes factor against {reference}")
    for (_, row), y in zip(table.iterrows(), positions, strict=True):
        axis.annotate(f"{row.log_bf:.2f}", (row.log_bf, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    if not reliable.all():
        axis.legend(frameon=False, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.08)
    return figure


def _marginal(axis: Axes, x: np.ndarray, ends: tuple[float, float], bins: int, k: int) -> None:
    density, edges = np.histogram(x, bins=bins, range=ends, density=True)
    axis.stairs(density, edges, color=COLOURS[k], fill=k == 0, alpha=0.35 if k == 0 else 1.0, linewidth=1.4)


def _contours(axis: Axes, x: np.ndarray, y: np.ndarray, ends_x, ends_y, bins: int, k: int) -> None:
    from scipy.ndimage import gaussian_filter

    counts, edges_x, edges_y = np.histogram2d(x, y, bins=bins, range=[ends_x, ends_y])
    # Reflection keeps the mass that smoothing would carry over a hard prior edge.
    density = gaussian_filter(counts, 1.3, mode="reflect")
    ranked = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ranked) / ranked.sum()
    levels = sorted({float(ranked[np.searchsorted(mass, level).clip(max=len(ranked) - 1)]) for level in LEVELS})
    centres_x, centres_y = 0.5 * (edges_x[1:] + edges_x[:-1]), 0.5 * (edges_y[1:] + edges_y[:-1])
    # Cell centres stop half a cell short of a hard edge; the padded copies of the outer cells reach it.
    centres_x = np.concatenate([edges_x[:1], centres_x, edges_x[-1:]])
    centres_y = np.concatenate([edges_y[:1], centres_y, edges_y[-1:]])
    density = np.pad(density, 1, mode="edge")
    if k == 0:
        for level, alpha in zip(levels, (0.2, 0.35), strict=False):
            axis.contourf(centres_x, centres_y, density.T, levels=[level, density.max() * 1.01], colors=[COLOURS[k]], alpha=alpha)
        return
    axis.contour(centres_x, centres_y, density.T, levels=levels, colors=[COLOURS[k]], linewidths=1.2)
    axis.set_ylim(*ends_y)


def _corner_axis(axis: Axes, row: int, column: int, d: int, labels: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
    axis.tick_params(labelsize=8, direction="in")
    if row == column:
        axis.set_yticks([])
    else:
        axis.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
    if row == d - 1:
        axis.set_xlabel(labels[column])
    else:
        axis.set_xticklabels([])
    if column == 0 and row > 0:
        axis.set_ylabel(labels[row])
    elif row != column:
        axis.set_yticklabels([])


def _legend_patch(k: int, name: str):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return Patch(color=COLOURS[k], alpha=0.35, label=name) if k == 0 else Line2D([], [], color=COLOURS[k], label=name)
