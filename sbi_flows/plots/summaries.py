"""Marginals of draws, and Bayes factors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows.plots.canvas import COLOURS, GREY, new_figure
from sbi_flows.plots.sets import DrawSet, read_sets

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (0.68, 0.95)


def corner(
    draws: Any,
    labels: Sequence[str] | None = None,
    *,
    ranges: Sequence[tuple[float, float]] | None = None,
    title: str | None = None,
    bins: int = 40,
    ess: Mapping[str, float] | None = None,
) -> Figure:
    """One- and two-dimensional marginals of one or several sets of draws.

    Parameters
    ----------
    draws
        Rows ``(n, d)``, a DataFrame, `Chains`, `WeightedSamples` or a posterior, or a mapping of several of these by the name that
        enters the legend; the first is filled, the others are lines.
    labels : sequence of str, optional
        Axis labels with units, one a column; by default the names that the draws bring.
    ranges : sequence of (low, high), optional
        By default the pooled 0.2-99.8 % range of each column.
    title : str, optional
    bins : int
        Along each axis.
    ess : mapping of str to float, optional
        Effective number of draws of a set, where it is smaller than the number of rows, as in a chain: contours are smoothed the more,
        the fewer there are.

    Returns
    -------
    Figure
        Contours hold 68 % and 95 % of the draws.
    """
    sets = read_sets(draws)
    labels = _labels(sets) if labels is None else labels
    d = len(labels)
    if ranges is None:
        pooled = np.concatenate([each.rows for each in sets.values()])
        ranges = [tuple(np.quantile(pooled[:, j], [0.002, 0.998])) for j in range(d)]
    figure = new_figure(1.9 * d + 1.2, 1.9 * d + 0.9)
    axes = figure.subplots(d, d, squeeze=False)
    for row in range(d):
        for column in range(d):
            axis = axes[row, column]
            if column > row:
                axis.set_axis_off()
                continue
            for k, (name, each) in enumerate(sets.items()):
                if row == column:
                    _marginal(axis, each.rows[:, row], ranges[row], bins, k)
                else:
                    effective = (ess or {}).get(name, each.ess)
                    _contours(axis, each.rows[:, [column, row]], (ranges[column], ranges[row]), bins, effective, k)
            _corner_axis(axis, row, column, d, labels)
            axis.set_xlim(*ranges[column])
    _corner_legend(figure, axes, list(sets), title)
    return figure


def _labels(sets: Mapping[str, DrawSet]) -> Sequence[str]:
    """The names of the first set that has any; all must have the same columns."""
    widths = {each.rows.shape[1] for each in sets.values()}
    if len(widths) != 1:
        raise ValueError(f"Expected sets of draws of the same parameters; got {', '.join(map(str, sorted(widths)))} columns.")
    named = [each.names for each in sets.values() if each.names is not None]
    for names in named[1:]:
        if names != named[0]:
            raise ValueError(f"Expected sets of draws of the same parameters; got {', '.join(named[0])} and {', '.join(names)}.")
    return named[0] if named else [f"column {j}" for j in range(widths.pop())]


def evidence_bars(
    table: pandas.DataFrame, *, reference: str | None = None, titles: Mapping[str, str] | None = None
) -> Figure:
    """ln Bayes factors with their errors, best at the top.

    Parameters
    ----------
    table : DataFrame
        What :func:`sbi_flows.compare_models` returns, or any table with columns ``log_bf, log_bf_err, reliable`` and the models as a
        column ``model`` or as the index. Rows without a Bayes factor are left out.
    reference : str, optional
        The model against which they are taken, as the axis should name it; by default the one whose factor and error are both zero.
    titles : mapping of str to str, optional
        What to call each model.

    Raises
    ------
    ValueError
        When columns are missing.

    Examples
    --------
    >>> from sbi_flows.plots import evidence_bars, save_figure
    >>> save_figure(evidence_bars(compare_models({"flat": z_flat, "tilted": z_tilted})), "evidence.pdf")  # doctest: +SKIP
    """
    missing = [name for name in ("log_bf", "log_bf_err", "reliable") if name not in table.columns]
    if missing:
        raise ValueError(
            f"Expected a table with columns log_bf, log_bf_err and reliable, as compare_models returns; {', '.join(missing)} missing "
            f"among {list(table.columns)}."
        )
    table = table if "model" in table.columns else table.rename_axis("model").reset_index()
    table = table.dropna(subset=["log_bf"]).sort_values("log_bf")
    names = {name: (titles or {}).get(name, str(name)) for name in table["model"]}
    if reference is None:
        own = table["model"][(table["log_bf"] == 0) & (table["log_bf_err"] == 0)]
        reference = names[own.iloc[0]] if len(own) else "the reference"
    figure = new_figure(6.4, 1.3 + 0.36 * max(len(table), 2))
    axis = figure.subplots()
    positions = np.arange(len(table))
    reliable = table["reliable"].to_numpy(dtype=bool)
    axis.axvline(0, color=GREY, linewidth=1, zorder=0)
    for good, colour, marker, label in ((True, COLOURS[0], "o", "reliable"), (False, COLOURS[1], "X", "not reliable")):
        rows = table[reliable == good]
        y = positions[reliable == good]
        if len(rows):
            axis.errorbar(rows["log_bf"], y, xerr=rows["log_bf_err"], fmt=marker, color=colour, capsize=3, label=label)
    axis.set_yticks(positions, [names[name] for name in table["model"]])
    axis.set_ylim(-0.6, max(len(table), 2) - 0.4)
    axis.set_xlabel(f"ln Bayes factor against {reference}")
    beneath = {"facecolor": axis.get_facecolor(), "edgecolor": "none", "pad": 0.8}  # or the line at zero strikes numbers through
    for (_, row), y in zip(table.iterrows(), positions, strict=True):
        text, place = f"{row.log_bf:.2f}", (row.log_bf, y)
        axis.annotate(text, place, (0, 6), textcoords="offset points", ha="center", fontsize=8, bbox=beneath)
    if not reliable.all():
        axis.legend(frameon=False, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.08)
    return figure


def _marginal(axis: Axes, x: np.ndarray, ends: tuple[float, float], bins: int, k: int) -> None:
    density, edges = np.histogram(x, bins=bins, range=ends, density=True)
    axis.stairs(density, edges, color=COLOURS[k], fill=k == 0, alpha=0.35 if k == 0 else 1.0, linewidth=1.4)


def _contours(axis: Axes, pair: np.ndarray, ends: Sequence[tuple[float, float]], bins: int, ess: float, k: int) -> None:
    from scipy.ndimage import convolve

    counts, edges_x, edges_y = np.histogram2d(pair[:, 0], pair[:, 1], bins=bins, range=[*ends])
    # Reflection keeps the mass that smoothing would carry over a hard prior edge.
    density = convolve(counts, _smoothing_kernel(pair, ends, bins, ess), mode="reflect")
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
    axis.set_ylim(*ends[1])


def _smoothing_kernel(pair: np.ndarray, ends: Sequence[tuple[float, float]], bins: int, ess: float) -> np.ndarray:
    """A normal distribution on the cells, with the shape of the draws and the width of Scott's rule for their number.

    Its shape follows their correlation, so a thin ridge is smoothed along and not across. The width is a fifth below the rule's, which
    is meant for one normal mode: posteriors bend and split.
    """
    per_cell = np.asarray(ends, dtype=np.float64) @ [-1 / bins, 1 / bins]
    inside = np.all([(column >= low) & (column <= high) for column, (low, high) in zip(pair.T, ends, strict=True)], axis=0)
    if inside.sum() < 3:
        return np.ones((1, 1))
    scale = 0.8 * max(ess, 1.0) ** (-1 / 6)
    # A third of a cell at least, below which cells would stand out one by one.
    covariance = scale**2 * np.cov((pair[inside] / per_cell).T) + np.eye(2) / 3
    half = int(np.ceil(3 * np.sqrt(np.diag(covariance).max())))
    offsets = np.stack(np.meshgrid(*[np.arange(-half, half + 1)] * 2, indexing="ij"), axis=-1)
    kernel = np.exp(-0.5 * np.einsum("abi,ij,abj->ab", offsets, np.linalg.inv(covariance), offsets))
    return kernel / kernel.sum()


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


def _corner_legend(figure: Figure, axes: np.ndarray, names: Sequence[str], title: str | None) -> None:
    """In the free upper right corner; above the panel where there is but one."""
    from matplotlib.patches import Patch

    handles = [_legend_patch(k, name) for k, name in enumerate(names)]
    if len(axes) == 1:
        figure.legend(handles=handles, loc="outside upper right", frameon=False, ncols=len(handles))
        axes[0, 0].set_title(title, loc="left", fontsize=11)
        return
    shades = zip(LEVELS, (0.55, 0.25), strict=True)
    handles += [Patch(color=GREY, alpha=alpha, linewidth=0, label=f"{level:.0%} of the draws") for level, alpha in shades]
    free = figure.add_subplot(axes[0, 1].get_gridspec()[0, 1:])
    free.set_axis_off()
    # A long title breaks, instead of pushing the panels apart or covering one.
    lines = None if title is None else textwrap.fill(title, 24 * (len(axes) - 1))
    legend = free.legend(handles=handles, loc="upper right", frameon=False, title=lines, alignment="left")
    legend.set_in_layout(False)


def _legend_patch(k: int, name: str):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return Patch(color=COLOURS[k], alpha=0.35, label=name) if k == 0 else Line2D([], [], color=COLOURS[k], label=name)
