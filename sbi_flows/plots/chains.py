"""Chains as they ran, and two runs laid over each other."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sbi_flows._validation import positive
from sbi_flows.diagnostics import ChainComparison
from sbi_flows.plots.canvas import COLOURS, GREY, new_figure
from sbi_flows.plots.records import require
from sbi_flows.results import Chains
from sbi_flows.samplers import convergence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 16
_BINS = 50
_MOST_POINTS = 2000  # of a trace: more than a figure has pixels


def traces(
    chains: Chains,
    names: Sequence[str] | None = None,
    *,
    most_chains: int = 64,
    most_parameters: int = 6,
    title: str | None = None,
) -> Figure:
    """Every chain's way through each parameter, and beside it the distribution that it drew; of many parameters, those that agree least.

    Where the chains, draws or parameters are more than can be shown, the figure says which are: chains are taken at equal distances in
    their order, and draws at equal distances along each.

    Parameters
    ----------
    chains : Chains
        As :func:`sbi_flows.run_chains` returns them, or ``FlowSampler.chains_``.
    names : sequence of str, optional
        The parameters to show; by default those of the largest R-hat.
    most_chains, most_parameters : int
        At most so many are drawn.
    title : str, optional
        The verdict by default.

    Raises
    ------
    TypeError
        For anything but `Chains`.
    ValueError
        For names that the chains do not have.

    Examples
    --------
    >>> figure = traces(Chains(np.random.default_rng(0).normal(size=(4, 200, 2)), ("mass", "spin")))
    """
    if not isinstance(chains, Chains):
        hint = "of an array (chain, draw, d) make Chains(samples, names)"
        raise TypeError(f"traces draws Chains; got {type(chains).__name__}: {hint}.")
    positive("most_chains", most_chains, integer=True)
    positive("most_parameters", most_parameters, integer=True)
    n_chains, n_draws, d = chains.samples.shape
    chosen = _chosen(chains, names, most_parameters)
    who = np.unique(np.linspace(0, n_chains - 1, min(n_chains, most_chains)).astype(int))
    every = -(-n_draws // _MOST_POINTS)
    when = np.arange(0, n_draws, every)
    figure = new_figure(9.0, 1.5 * len(chosen) + 0.9)
    axes = figure.subplots(len(chosen), 2, squeeze=False, sharey="row", sharex="col", width_ratios=(5, 1))
    for (axis, beside), j in zip(axes, chosen, strict=True):
        _trace(axis, beside, chains.samples[who][..., j], when)
        axis.set_ylabel(chains.names[j])
    axes[-1, 0].set_xlabel("draw" if every == 1 else f"draw (one in {every} is shown)")
    shown = f"all {n_chains} chains" if len(who) == n_chains else f"{len(who)} of {n_chains} chains shown"
    if len(chosen) < d:
        shown += f", {len(chosen)} of {d} parameters" + (", those of the largest R-hat" if names is None else "")
    verdict = "" if chains.reliability is None else "reliable: " if chains.reliability.ok else "NOT RELIABLE: "
    figure.suptitle(f"{verdict}{shown}" if title is None else f"{title} ({shown})", x=0.01, ha="left", fontsize=11)
    return figure


def _chosen(chains: Chains, names: Sequence[str] | None, most: int) -> list[int]:
    """Columns to draw, in their order."""
    if names is not None:
        unknown = [name for name in names if name not in chains.names]
        if unknown:
            raise ValueError(f"Expected names among {', '.join(chains.names)}; got {', '.join(unknown)}.")
        return [chains.names.index(name) for name in names][:most]
    if chains.features <= most:
        return list(range(chains.features))
    rhat = convergence(chains.samples, chains.names).rhat
    return sorted(np.argsort(-np.nan_to_num(rhat, nan=np.inf), kind="stable")[:most].tolist())


def _trace(axis: Axes, beside: Axes, draws: np.ndarray, when: np.ndarray) -> None:
    """``draws (chain, draw)`` of one parameter."""
    edges = np.histogram_bin_edges(draws, bins=40)
    alpha = float(np.clip(6 / len(draws), 0.15, 0.8))
    for k, chain in enumerate(draws):
        colour = COLOURS[k % len(COLOURS)]
        axis.plot(when, chain[when], linewidth=0.6, alpha=alpha, color=colour)
        beside.stairs(np.histogram(chain, edges)[0], edges, orientation="horizontal", linewidth=0.6, alpha=alpha, color=colour)
    axis.margins(x=0.01)
    for each in (axis, beside):
        each.spines[["top", "right"]].set_visible(False)
    beside.set_xticks([])
    beside.spines["bottom"].set_visible(False)


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
    words = f"H = {row.hellinger:.3f}, floor {row.hellinger_floor:.3f}\nmean {row.mean_shift:+.1f} s.e., sd {row.sd_shift:+.1f} s.e."
    axis.set_title(words, fontsize=8, loc="left")
