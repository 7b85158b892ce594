"""Figures of the diagnostics: ranks, coverage, null distributions, predictive checks, and all of them on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows.plots.canvas import COLOURS, GREY, new_figure
from sbi_flows.plots.records import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sbi_flows.diagnostics import C2ST, MMD, SBC, Coverage, Diagnosis, LocalC2ST, Misspecification, PosteriorPredictive

# Panels a row, and summaries a predictive figure can hold before their labels overlap.
COLUMNS = 4
# Of the page of all checks: panels a row, their height in inches, and letters of its words that fit the width of one.
_PAGE = 3
_HEIGHT = 3.7
_LETTERS = 50
# Curves a panel can hold with a name and a style each.
_STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
MOST_SUMMARIES = 30


def rank_histograms(record: SBC, *, bins: int = 20) -> Figure:
    """Histogram of the ranks of each quantity; the band holds 95 % of the bars of uniform ranks, bar by bar.

    A valley means draws too narrow, a hill too wide, a slope a shift.
    """
    from matplotlib.ticker import MaxNLocator
    from scipy import stats

    require(record, "rank_histograms", "SBC")
    m, k = record.ranks.shape
    bins = min(bins, record.n_draws + 1)
    edges = np.linspace(0, record.n_draws + 1, bins + 1)
    # Bars hold unequal numbers of ranks where the bins do not divide them.
    expected = np.diff(np.ceil(edges)) / (record.n_draws + 1)
    places = edges / edges[-1]
    figure, axes = _panels(k, 2.0)
    tallest = 0.0
    for j, axis in enumerate(axes):
        counts = np.histogram(record.ranks[:, j], np.ceil(edges) - 0.5)[0]
        low, high = stats.binom.ppf([[0.025], [0.975]], m, expected)
        axis.stairs(high / m / expected, places, baseline=low / m / expected, fill=True, color=GREY, alpha=0.3)
        axis.stairs(counts / m / expected, places, color=_colour(record, j), linewidth=1.5)
        axis.axhline(1.0, color=GREY, linewidth=1)
        axis.set_title(_title(record, j), fontsize=8)
        axis.set_xlim(0, 1)
        axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        tallest = max(tallest, *(counts / m / expected), *(high / m / expected))
        _tidy(axis)
    axes[0].set_ylim(0, 1.05 * tallest)
    figure.supxlabel("rank of the truth / number of draws", fontsize=10)
    figure.supylabel("frequency / expected", fontsize=10)
    return figure


def rank_ecdf(record: SBC, *, confidence: float = 0.95) -> Figure:
    """Empirical distribution of the ranks less the uniform one, with the band that holds it all at once with that confidence."""
    require(record, "rank_ecdf", "SBC")
    figure, axes = _panels(record.ranks.shape[1], 2.0)
    for j, axis in enumerate(axes):
        _draw_ecdf(axis, record, {j: "-"}, confidence)
        axis.set_title(_title(record, j), fontsize=8)
    figure.supxlabel("rank of the truth / number of draws", fontsize=10)
    figure.supylabel("excess of lower ranks", fontsize=10)
    return figure


def coverage(*records: Coverage) -> Figure:
    """Coverage against credible level with pointwise 95 % intervals: below the diagonal overconfident, above it too wide."""
    if not records:
        raise TypeError("coverage draws one Coverage or several; got none.")
    for record in records:
        require(record, "coverage", "Coverage")
    figure = new_figure(4.6, 4.4)
    _draw_coverage(figure.subplots(), records)
    return figure


def class_scores(record: C2ST) -> Figure:
    """Held-out probabilities of the classifier for the rows of both samples: equal histograms mean that it cannot tell them apart."""
    require(record, "class_scores", "C2ST")
    figure = new_figure(5.2, 3.4)
    axis = figure.subplots()
    parts = {"first sample (reference)": record.scores[: record.n_x], "second sample": record.scores[record.n_x :]}
    for k, (label, scores) in enumerate(parts.items()):
        density, edges = np.histogram(scores, bins=40, range=(0, 1), density=True)
        axis.stairs(density, edges, fill=k == 0, alpha=0.35 if k == 0 else 1.0, color=COLOURS[k], linewidth=1.4, label=label)
    axis.axvline(0.5, color=GREY, linewidth=1)
    axis.set_xlabel("probability to belong to the second sample")
    axis.set_ylabel("density")
    axis.set_xlim(0, 1)
    axis.set_title(f"accuracy {record.accuracy:.3f} [{record.low:.3f}, {record.high:.3f}], p = {record.p_value:.2g}", fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    _tidy(axis)
    return figure


def null_distribution(record: MMD | LocalC2ST | Misspecification) -> Figure:
    """The statistic of a permutation or conformal test among its values under the null hypothesis."""
    require(record, "null_distribution", "MMD", "LocalC2ST", "Misspecification")
    figure = new_figure(5.0, 3.2)
    _draw_null(figure.subplots(), record)
    return figure


def local_preference(record: LocalC2ST, *, columns: tuple[int, int] = (0, 1)) -> Figure:
    """Posterior draws at x_o, coloured by where the classifier finds too much or too little of them.

    With one parameter the preference itself is the vertical axis.
    """
    require(record, "local_preference", "LocalC2ST")
    d = record.theta.shape[1]
    figure = new_figure(5.4, 4.2)
    axis = figure.subplots()
    limit = max(float(np.abs(record.preference).max()), 0.05)
    if d == 1:
        axis.scatter(record.theta[:, 0], record.preference, s=6, color=COLOURS[0])
        axis.axhline(0, color=GREY, linewidth=1)
        axis.set_ylabel("too many draws  <  0  <  too few")
        axis.set_ylim(-1.1 * limit, 1.1 * limit)
    else:
        i, j = columns
        points = axis.scatter(
            record.theta[:, i], record.theta[:, j], c=record.preference, s=8, cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolor="none"
        )
        figure.colorbar(points, ax=axis, label="too many draws  <  0  <  too few")
        axis.set_ylabel(record.names[j])
    axis.set_xlabel(record.names[columns[0]])
    axis.set_title(f"posterior draws at {record.where}, p = {record.p_value:.2g}", fontsize=10)
    _tidy(axis)
    return figure


def predictive(record: PosteriorPredictive) -> Figure:
    """The observed summaries among simulations from the posterior, each in units of its own spread there; the most unusual 30."""
    require(record, "predictive", "PosteriorPredictive")
    figure = new_figure(5.6, 1.2 + 0.3 * max(min(len(record.table), MOST_SUMMARIES), 3))
    _draw_predictive(figure.subplots(), record, MOST_SUMMARIES)
    return figure


def diagnosis(record: Diagnosis) -> Figure:
    """All checks of :func:`sbi_flows.diagnostics.diagnose` on one page."""
    require(record, "diagnosis", "Diagnosis")
    draw = [
        lambda axis: _draw_all_ranks(axis, record.sbc),
        lambda axis: _draw_coverage(axis, [r for r in (record.coverage, record.tarp) if r is not None]),
        lambda axis: _draw_null(axis, record.joint),
    ]
    if record.local is not None and record.misspecification is not None:
        local, unusual = record.local, record.misspecification
        draw += [lambda axis: _draw_null(axis, local), lambda axis: _draw_null(axis, unusual)]
    if record.predictive is not None:
        checked = record.predictive
        draw.append(lambda axis: _draw_predictive(axis, checked, 12))
    # The words take the cells that the panels leave, or else a row of their own as tall as they are.
    full, left = divmod(len(draw), _PAGE)
    heights = [_HEIGHT] * (full + (left > 0))
    words = _verdict(record, _LETTERS * (_PAGE - left))
    if left == 0:
        heights.append(0.3 + 0.17 * (words.count("\n") + 1))
    figure = new_figure(4.3 * _PAGE, sum(heights) + 0.5)
    grid = figure.add_gridspec(len(heights), _PAGE, height_ratios=heights)
    for k, panel in enumerate(draw):
        panel(figure.add_subplot(grid[divmod(k, _PAGE)]))
    axis = figure.add_subplot(grid[-1, left:])
    axis.set_axis_off()
    axis.text(0.0, 1.0, words, va="top", ha="left", fontsize=10, transform=axis.transAxes, parse_math=False).set_in_layout(False)
    figure.suptitle(f"{record.verdict}   (p = {record.p_value:.2g}, {len(record.sbc.ranks)} observations)", fontsize=12)
    return figure


def _draw_ecdf(axis: Axes, record: SBC, styles: Mapping[int, Any], confidence: float) -> None:
    """The curves of the columns that have a line style."""
    from sbi_flows.diagnostics.uniformity import thresholds, uniformity_band

    m, n_draws = len(record.ranks), record.n_draws
    probability, low, high = uniformity_band(m, n_draws, confidence)
    ends = np.concatenate([[0.0], probability, [1.0]])
    axis.fill_between(ends, _closed(low - probability), _closed(high - probability), color=GREY, alpha=0.3, linewidth=0)
    axis.axhline(0, color=GREY, linewidth=1)
    for j, style in styles.items():
        below = np.searchsorted(np.sort(record.ranks[:, j]), thresholds(n_draws)) / m
        axis.plot(ends, _closed(below - probability), color=_colour(record, j), linestyle=style, linewidth=1.5, label=record.names[j])
    axis.set_xlim(0, 1)
    _tidy(axis)


def _closed(difference: np.ndarray) -> np.ndarray:
    """With the zeros at both ends, where no distribution functions differ."""
    return np.concatenate([[0.0], difference, [0.0]])


def _draw_all_ranks(axis: Axes, record: SBC) -> None:
    """All quantities in one panel, each by name where they are few; else those that fail are named."""
    from matplotlib.lines import Line2D

    k = record.ranks.shape[1]
    few = k <= len(_STYLES)
    # The band of one curve among k, so that the whole panel leaves it 5 % of the time.
    _draw_ecdf(axis, record, {j: _STYLES[j] if few else "-" for j in range(k)}, 1 - 0.05 / k)
    axis.set_xlabel("rank of the truth / number of draws")
    axis.set_ylabel("excess of lower ranks")
    axis.set_title(f"ranks of {k} quantities, p = {record.p_value:.2g}" if k > 1 else f"ranks, p = {record.p_value:.2g}", fontsize=10)
    if few:
        axis.legend(frameon=False, fontsize=8, loc="best")
        return
    failed = [name for name, shape in zip(record.names, record.table["shape"], strict=True) if shape != "uniform"]
    handles = [Line2D([], [], color=COLOURS[0], label=f"{k - len(failed)} uniform")] if len(failed) < k else []
    if failed:
        label = ", ".join(failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
        handles.append(Line2D([], [], color=COLOURS[1], label=label))
    axis.legend(handles=handles, frameon=False, fontsize=8, loc="best")


def _draw_coverage(axis: Axes, records: Sequence[Coverage]) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for k, record in enumerate(records):
        axis.fill_between(record.levels, record.low, record.high, color=COLOURS[k], alpha=0.25, linewidth=0)
        axis.plot(record.levels, record.coverage, color=COLOURS[k], linewidth=1.5, label=f"{record.method}, p = {record.p_value:.2g}")
    axis.set_aspect("equal")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("share of the draws in a region")
    axis.set_ylabel("share of the truths in it")
    axis.set_title("coverage", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    _tidy(axis)


def _draw_null(axis: Axes, record: MMD | LocalC2ST | Misspecification) -> None:
    values, observed, label, title = _null_of(record)
    # An observation a million spreads away must not squeeze the histogram into one bar.
    # Nor may the longest hundredth of the null.
    ends = np.quantile(values, [0.0, 0.99])
    far = observed > ends[1] + 2 * (ends[1] - ends[0])
    shown = ends[1] if far else max(ends[1], observed)
    density, edges = np.histogram(values, bins=40, range=(ends[0], max(shown, ends[0] + 1e-12)), density=True)
    axis.stairs(density, edges, fill=True, color=GREY, alpha=0.4)
    colour = COLOURS[0] if record.reliability.ok else COLOURS[1]
    if far:
        # No line: it would stand at a value that was not observed.
        axis.annotate(
            f"observed {observed:.3g}", (1.0, 0.9), (-34, 0), xycoords="axes fraction", textcoords="offset points",
            ha="right", va="center", color=colour, fontsize=9, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.8},
        )
    else:
        axis.axvline(observed, color=colour, linewidth=1.8)
        right = observed > np.mean(edges[[0, -1]])
        axis.annotate(
            f"{observed:.3g}", (observed, 0.97), (-5 if right else 5, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right" if right else "left", va="top", color=colour, fontsize=9,
        )
    axis.set_xlabel(label)
    axis.set_yticks([])
    axis.set_title(f"{title}, p = {record.p_value:.2g}", fontsize=10)
    _tidy(axis)
    axis.spines["left"].set_visible(False)


def _null_of(record) -> tuple[np.ndarray, float, str, str]:
    """Null values, the observed one, the axis label and the title."""
    if hasattr(record, "calibration"):
        worst = int(np.argmin(record.p_values))
        return record.calibration, float(record.score[worst]), "distance / 99 % distance of simulations", "x_o among simulations"
    if hasattr(record, "mmd2"):
        return record.null, record.mmd2, "squared mean discrepancy", "two samples"
    label, title = f"classifier's preference at {record.where}", f"truth against draws at {record.where}"
    return np.sqrt(record.null), float(np.sqrt(record.statistic)), label, title


def _draw_predictive(axis: Axes, record: PosteriorPredictive, most: int) -> None:
    table = record.table.assign(column=np.arange(len(record.table)))
    dropped = max(len(table) - most, 0)
    table = table.sort_values("p_value").head(most).sort_values("column", ascending=False)
    spread = (0.25 * (table.high - table.low)).to_numpy()
    spread = np.where(spread > 0, spread, 1.0)
    y = np.arange(len(table))
    axis.barh(y, (table.high - table.low) / spread, left=(table.low - table["median"]) / spread, height=0.5, color=GREY, alpha=0.35)
    axis.scatter(np.zeros(len(y)), y, marker="|", s=60, color=GREY)
    place = ((table.observed - table["median"]) / spread).to_numpy()
    inside = np.abs(place) <= 6
    strange = (table.p_adjusted < 0.05).to_numpy()
    for flag, colour in ((False, COLOURS[0]), (True, COLOURS[1])):
        for within, marker in ((True, "o"), (False, None)):
            rows = (strange == flag) & (inside == within)
            for at, height in zip(place[rows], y[rows], strict=True):
                axis.scatter(np.clip(at, -6, 6), height, s=28, color=colour, marker=marker or (">" if at > 0 else "<"), zorder=3)
    axis.axvline(0, color=GREY, linewidth=0.6)
    axis.set_xlim(-6.5, 6.5)
    axis.set_ylim(-0.7, len(table) - 0.3)
    axis.set_yticks(y, list(table.index))
    axis.set_xlabel("observed - median, in standard deviations")
    more = f"\n{dropped} less unusual ones not shown" if dropped else ""
    axis.set_title(f"simulations from the posterior, p = {record.p_value:.2g}{more}", fontsize=10)
    _tidy(axis)


def _verdict(record: Diagnosis, letters: int) -> str:
    """Reasons and notes in lines of so many letters."""
    import textwrap

    lines = [*record.reliability.reasons, *(f"note: {note}" for note in record.reliability.notes)]
    lines.append(f"A check is not ok below p = {record.threshold:.2g}, its share of the false-alarm rate.")
    return "\n".join(textwrap.fill(line, letters) for line in lines)


def _panels(k: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(k, COLUMNS)
    rows = -(-k // columns)
    figure = new_figure(max(2.5 * columns, 4.0) + 0.4, height * rows + 0.6)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel())
    for axis in axes[k:]:
        axis.set_axis_off()
    return figure, axes[:k]


def _colour(record: SBC, j: int) -> str:
    return COLOURS[0] if record.table["shape"].iloc[j] == "uniform" else COLOURS[1]


def _title(record: SBC, j: int) -> str:
    row = record.table.iloc[j]
    return f"{record.names[j]}\n{row['shape']}, p = {row.p_holm:.2g}"


def _tidy(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
