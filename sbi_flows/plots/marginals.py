"""Marginals of draws: corner figures, of continuous parameters and of those that take a few values."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows.plots.canvas import COLOURS, GREY, new_figure
from sbi_flows.plots.sets import DrawSet, read_sets
from sbi_flows.plots.smoothing import narrowest_scale, smoothed, smoothing_kernel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = (0.68, 0.95)
# Paint laid on each level, the larger first, and what lies on the inner one then.
_PAINT = (0.2, 0.35)
_SHADES = (1 - (1 - _PAINT[0]) * (1 - _PAINT[1]), _PAINT[0])
# A column of at most so many values, each met this often on average, is discrete: draws of a density hardly ever repeat.
_MOST_VALUES = 30
_REPEATS = 10
_MOST_TICKS = 6
# Bins of a marginal and cells of a joint panel in the standard deviation of the narrowest structure, and how many there may be.
_BINS_PER_SCALE, _CELLS_PER_SCALE = 1, 6
_MOST_BINS, _MOST_CELLS = 200, 400


@dataclass(frozen=True)
class _Column:
    """Where the cells of an axis are.

    Attributes
    ----------
    ends : (float, float)
        Of the axis.
    edges : ndarray (bins + 1,)
        Of the bins of the marginal.
    cells : ndarray (n + 1,)
        Of the cells in which draws are counted in joint panels: finer, where their structure is; those of the bins where discrete.
    spans : ndarray (n, 2)
        Of the cells as drawn: with gaps between discrete values.
    discrete : bool
    """

    ends: tuple[float, float]
    edges: np.ndarray
    cells: np.ndarray
    spans: np.ndarray
    discrete: bool

    @classmethod
    def read(cls, x: np.ndarray, ends: tuple[float, float] | None, bins: int) -> _Column:
        """From the draws of all sets."""
        values = np.unique(x)
        if len(values) > _MOST_VALUES or len(x) < _REPEATS * len(values):
            low, high = _reached(x) if ends is None else ends
            fine = narrowest_scale(x[(x >= low) & (x <= high)])
            scales = (high - low) / fine if fine > 0 else 0.0
            edges = np.linspace(low, high, max(bins, math.ceil(min(_BINS_PER_SCALE * scales, _MOST_BINS))) + 1)
            cells = np.linspace(low, high, max(2 * bins, math.ceil(min(_CELLS_PER_SCALE * scales, _MOST_CELLS))) + 1)
            return cls((float(low), float(high)), edges, cells, np.column_stack([cells[:-1], cells[1:]]), discrete=False)
        gap = float(np.diff(values).min()) if len(values) > 1 else 1.0
        middles = 0.5 * (values[1:] + values[:-1])
        edges = np.concatenate([[values[0] - gap], middles, [values[-1] + gap]])
        spans = values[:, None] + 0.4 * gap * np.array([-1.0, 1.0])
        low, high = (values[0] - 0.6 * gap, values[-1] + 0.6 * gap) if ends is None else ends
        # An axis that ends on a value must not cut its bar in half.
        return cls((float(min(low, spans[0, 0])), float(max(high, spans[-1, 1]))), edges, edges, spans, discrete=True)


def _reached(x: np.ndarray) -> tuple[float, float]:
    """Ends of an axis: beyond nearly all draws by a twelfth of their range, so that no mode is cut, and never beyond the last one."""
    low, high = np.quantile(x, [0.002, 0.998])
    margin = (high - low) / 12
    return max(float(x.min()), low - margin), min(float(x.max()), high + margin)


def corner(
    draws: Any,
    labels: Sequence[str] | None = None,
    *,
    truth: Sequence[float] | Mapping[str, float] | None = None,
    ranges: Sequence[tuple[float, float]] | None = None,
    title: str | None = None,
    bins: int = 40,
    ess: Mapping[str, float] | None = None,
) -> Figure:
    """One- and two-dimensional marginals of one or several sets of draws.

    A column of a few values that repeat is drawn as discrete: bars of shares, and strips instead of contours.

    Parameters
    ----------
    draws
        Rows ``(n, d)``, a DataFrame, `Chains`, `WeightedSamples` or a posterior of one observation, or a mapping of several of these by
        the name that enters the legend; the first is filled, the others are lines.
    labels : sequence of str, optional
        Axis labels with units, one a column; by default the names that the draws bring.
    truth : sequence of float (d,), or mapping from the draws' names, optional
        Parameters to mark in black, such as those of a test; NaN, or a name left out, for one not known.
    ranges : sequence of (low, high), optional
        By default the pooled 0.2-99.8 % range of each column, and a twelfth more on both sides where draws are.
    title : str, optional
    bins : int
        Along each axis, at least: where draws lie in narrow modes there are more.
    ess : mapping of str to float, optional
        Effective number of draws of a set, where it is smaller than the number of rows, as in a chain: contours are smoothed the more,
        the fewer there are.

    Returns
    -------
    Figure
        Contours hold 68 % and 95 % of the draws. They are smoothed as much as best predicts draws that were left out.

    Raises
    ------
    ValueError
        When the sets have different parameters, when ``truth`` does not fit them, or a posterior holds several observations.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
    >>> figure = corner({"posterior": rows}, ["mass", "spin"], truth=[0.1, -0.3])
    """
    sets = read_sets(draws)
    names = _names(sets)
    labels = names if labels is None else labels
    d = len(labels)
    point = _point(truth, names)
    pooled = np.concatenate([each.rows for each in sets.values()])
    columns = [_Column.read(pooled[:, j], None if ranges is None else ranges[j], bins) for j in range(d)]
    if ranges is None:
        columns = [_reaching(column, value) for column, value in zip(columns, point, strict=True)]
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
                    _marginal(axis, each.rows[:, row], columns[row], k)
                else:
                    effective = (ess or {}).get(name, each.ess)
                    _joint(axis, each.rows[:, [column, row]], (columns[column], columns[row]), effective, k)
            _mark(axis, point[column], None if row == column else point[row])
            _corner_axis(axis, row, column, labels, columns)
            axis.set_xlim(*columns[column].ends)
            if row != column:
                axis.set_ylim(*columns[row].ends)
    _corner_legend(figure, axes, list(sets), title, marked=bool(np.isfinite(point).any()))
    return figure


def _names(sets: Mapping[str, DrawSet]) -> Sequence[str]:
    """The names of the first set that has any; all must have the same columns."""
    widths = {each.rows.shape[1] for each in sets.values()}
    if len(widths) != 1:
        raise ValueError(f"Expected sets of draws of the same parameters; got {', '.join(map(str, sorted(widths)))} columns.")
    named = [each.names for each in sets.values() if each.names is not None]
    for names in named[1:]:
        if names != named[0]:
            raise ValueError(f"Expected sets of draws of the same parameters; got {', '.join(named[0])} and {', '.join(names)}.")
    return named[0] if named else [f"column {j}" for j in range(widths.pop())]


def _point(truth: Sequence[float] | Mapping[str, float] | None, names: Sequence[str]) -> np.ndarray:
    """``(d,)``, NaN where nothing is to be marked."""
    if truth is None:
        return np.full(len(names), np.nan)
    # A mapping or a row of a DataFrame goes by name.
    if hasattr(truth, "items"):
        given = {str(name): value for name, value in truth.items()}
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ValueError(f"Expected truth for some of {', '.join(names)}; got also {', '.join(unknown)}.")
        return np.array([given.get(name, np.nan) for name in names], dtype=np.float64)
    point = np.asarray(truth, dtype=np.float64)
    if point.shape != (len(names),):
        raise ValueError(
            f"Expected truth of {len(names)} numbers, one a column ({', '.join(names)}); got shape {point.shape}. "
            "Use NaN for one not known."
        )
    return point


def _reaching(column: _Column, value: float) -> _Column:
    """With an axis long enough to show a truth outside the draws."""
    low, high = column.ends
    if not np.isfinite(value) or low <= value <= high:
        return column
    margin = 0.05 * (max(high, value) - min(low, value))
    ends = (min(low, value - margin), max(high, value + margin))
    return replace(column, ends=ends)


def _marginal(axis: Axes, x: np.ndarray, column: _Column, k: int) -> None:
    if not column.discrete:
        density, edges = np.histogram(x, bins=column.edges, density=True)
        axis.stairs(density, edges, color=COLOURS[k], fill=k == 0, alpha=0.35 if k == 0 else 1.0, linewidth=1.4)
        return
    share = np.histogram(x, bins=column.edges)[0] / len(x)
    left, right = column.spans.T
    paint: dict[str, Any] = {"color": COLOURS[0], "alpha": 0.35} if k == 0 else {"fill": False, "edgecolor": COLOURS[k], "linewidth": 1.4}
    axis.bar(left, share, right - left, align="edge", **paint)


def _joint(axis: Axes, pair: np.ndarray, columns: tuple[_Column, _Column], ess: float, k: int) -> None:
    """Regions of the highest smoothed density that hold 68 % and 95 % of the draws.

    The levels are quantiles of the density at the draws: of the smoothed mass itself, regions of what is curved or split would hold more
    draws than they say, as smoothing spreads it.
    """
    counts = np.histogram2d(pair[:, 0], pair[:, 1], bins=[column.cells for column in columns])[0]
    if counts.sum() == 0:
        return
    density = smoothed(counts, _smoothing_kernel(pair, columns, ess))
    if columns[0].discrete or columns[1].discrete:
        _strips(axis, density, columns, _levels(np.repeat(density.ravel(), counts.ravel().astype(int))), k)
    else:
        _contours(axis, pair, density, columns, k)


def _levels(at_draws: np.ndarray) -> list[float]:
    """Densities at or above which the shares `LEVELS` of the draws lie, the least first."""
    ranked = np.sort(at_draws)[::-1]
    return sorted({float(ranked[math.ceil(level * len(ranked)) - 1]) for level in LEVELS})


def _contours(axis: Axes, pair: np.ndarray, density: np.ndarray, columns: tuple[_Column, _Column], k: int) -> None:
    from scipy.interpolate import RegularGridInterpolator

    # Cell centres stop half a cell short of a hard edge; the padded copies of the outer cells reach it.
    centres = [np.concatenate([c.cells[:1], 0.5 * (c.cells[1:] + c.cells[:-1]), c.cells[-1:]]) for c in columns]
    density = np.pad(density, 1, mode="edge")
    at_draws = RegularGridInterpolator(centres, density, bounds_error=False)(pair)
    levels = _levels(at_draws[np.isfinite(at_draws)])
    density = density.T
    if k > 0:
        axis.contour(*centres, density, levels=levels, colors=[COLOURS[k]], linewidths=1.2)
        return
    for level, alpha in zip(levels, _PAINT, strict=False):
        axis.contourf(*centres, density, levels=[level, density.max() * 1.01], colors=[COLOURS[k]], alpha=alpha)


def _strips(axis: Axes, density: np.ndarray, columns: tuple[_Column, _Column], levels: Sequence[float], k: int) -> None:
    """The same regions, one strip for each discrete value; the cells of a continuous column join along it."""
    from matplotlib.patches import Rectangle

    x, y = columns
    for level, alpha in zip(levels, _PAINT, strict=False):
        inside = (density >= level) & (density > 0)
        outline: dict[str, Any] = {"fill": False, "edgecolor": COLOURS[k], "linewidth": 1.2}
        paint = {"facecolor": COLOURS[0], "alpha": alpha} if k == 0 else outline
        boxes = (
            [(left, right, *y.spans[j]) for j in range(len(y.spans)) for left, right in _runs(inside[:, j], x)]
            if y.discrete
            else [(*x.spans[i], low, high) for i in range(len(x.spans)) for low, high in _runs(inside[i], y)]
        )
        for left, right, low, high in boxes:
            axis.add_patch(Rectangle((left, low), right - left, high - low, **paint))


def _runs(inside: np.ndarray, column: _Column) -> list[tuple[float, float]]:
    """Ends of the stretches of cells that are inside; each discrete value is a stretch of its own."""
    if column.discrete:
        return [(float(low), float(high)) for low, high in column.spans[inside]]
    steps = np.diff(np.concatenate([[0], inside.astype(int), [0]]))
    return list(zip(column.cells[steps == 1].tolist(), column.cells[steps == -1].tolist(), strict=True))


def _smoothing_kernel(pair: np.ndarray, columns: tuple[_Column, _Column], ess: float) -> np.ndarray:
    inside = np.all([(x >= c.cells[0]) & (x <= c.cells[-1]) for x, c in zip(pair.T, columns, strict=True)], axis=0)
    width = np.array([column.cells[1] - column.cells[0] for column in columns])
    edges = (columns[0].cells / width[0], columns[1].cells / width[1])
    return smoothing_kernel(pair[inside] / width, edges, np.array([not column.discrete for column in columns]), ess)


def _mark(axis: Axes, x: float, y: float | None) -> None:
    """The truth: a line on a marginal, a cross where both are known."""
    if y is None:
        if np.isfinite(x):
            axis.axvline(x, color="black", linewidth=1)
        return
    if np.isfinite([x, y]).all():
        axis.plot(x, y, "+", color="black", markersize=9, zorder=5)


def _corner_axis(axis: Axes, row: int, column: int, labels: Sequence[str], columns: Sequence[_Column]) -> None:
    axis.tick_params(labelsize=8, direction="in")
    axis.xaxis.set_major_locator(_ticks(columns[column]))
    if row == column:
        axis.set_yticks([])
    else:
        axis.yaxis.set_major_locator(_ticks(columns[row]))
    if row == len(columns) - 1:
        axis.set_xlabel(labels[column])
    else:
        axis.set_xticklabels([])
    if column == 0 and row > 0:
        axis.set_ylabel(labels[row])
    elif row != column:
        axis.set_yticklabels([])


def _ticks(column: _Column):
    """At discrete values, where these are few."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    if column.discrete and len(column.spans) <= _MOST_TICKS:
        return FixedLocator(column.spans.mean(axis=1).tolist())
    return MaxNLocator(3, prune="both")


def _corner_legend(figure: Figure, axes: np.ndarray, names: Sequence[str], title: str | None, *, marked: bool) -> None:
    """In the free upper right corner; above the panel where there is but one."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [_legend_patch(k, name) for k, name in enumerate(names)]
    truth = [Line2D([], [], color="black", marker="+", markersize=9, linewidth=1, label="truth")] if marked else []
    if len(axes) == 1:
        handles += truth
        figure.legend(handles=handles, loc="outside upper right", frameon=False, ncols=len(handles))
        axes[0, 0].set_title(title, loc="left", fontsize=11)
        return
    # With several sets no colour is that of all levels.
    colour = COLOURS[0] if len(names) == 1 else GREY
    shades = zip(LEVELS, _SHADES, strict=True)
    handles += [Patch(color=colour, alpha=alpha, linewidth=0, label=f"{level:.0%} of the draws") for level, alpha in shades]
    handles += truth
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
