"""Figures of the pulsar-timing comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sbi_flows.physics.pta.free_spectrum import FreeSpectrum
from sbi_flows.physics.pta.models import MODELS
from sbi_flows.plots import COLOURS, GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAND_QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)
_VIOLIN_ALPHA = 0.55


def spectrum_figure(data: FreeSpectrum, bands: Mapping[str, np.ndarray]) -> Figure:
    """Posterior bands of log10 rho, one panel a model, over the violins of the data.

    Parameters
    ----------
    data : FreeSpectrum
        The bins that entered.
    bands : mapping of str to ndarray (5, n_bins)
        Quantiles :data:`BAND_QUANTILES` of log10 rho [s] by model.
    """
    columns = min(5, len(bands)) or 1
    rows = -(-len(bands) // columns) or 1
    figure = new_figure(2.7 * columns + 0.7, 2.5 * rows + 0.5)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    x = np.log10(data.frequencies)
    low, high = _window(data, bands)
    for axis, name in zip(axes.flat, bands, strict=False):
        _violins(axis, data, x)
        band = np.asarray(bands[name])
        axis.fill_between(x, band[0], band[4], color=COLOURS[0], alpha=0.25, linewidth=0, label="95 %")
        axis.fill_between(x, band[1], band[3], color=COLOURS[0], alpha=0.45, linewidth=0, label="68 %")
        axis.plot(x, band[2], color=COLOURS[1], linewidth=1.3, label="median")
        axis.set_title(MODELS[name].title, fontsize=9)
        axis.set_ylim(low, high)
    for axis in list(axes.flat)[len(bands) :]:
        axis.set_axis_off()
    if len(bands):
        axes.flat[0].legend(handles=_legend(axes.flat[0]), fontsize=7, frameon=False, loc="lower left")
    figure.supxlabel(r"$\log_{10} f$ / Hz", fontsize=11)
    figure.supylabel(r"$\log_{10} \rho$ / s", fontsize=11)
    return figure


def _legend(axis) -> list:
    """What the panel's labels say, after the data's violins, of which there are many and one entry."""
    from matplotlib.patches import Patch

    return [Patch(color=GREY, alpha=_VIOLIN_ALPHA, linewidth=0, label="data"), *axis.get_legend_handles_labels()[0]]


def _violins(axis, data: FreeSpectrum, x: np.ndarray) -> None:
    """The density of each bin as a violin; those of neighbouring bins may not touch."""
    room = np.minimum(np.diff(x, prepend=2 * x[0] - x[1] if len(x) > 1 else x[0] - 0.3), np.diff(x, append=np.inf))
    for centre, width, log_density in zip(x, room, data.log_density, strict=True):
        density = np.exp(log_density)
        half = 0.45 * width * density / density.max()
        axis.fill_betweenx(data.grid, centre - half, centre + half, color=GREY, alpha=_VIOLIN_ALPHA, linewidth=0)


def _window(data: FreeSpectrum, bands: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Limits of log10 rho that show where the data speak and where the models go, without the violins' endless lower tails."""
    density = np.exp(data.log_density)
    cumulative = np.cumsum(density, axis=1) / density.sum(axis=1, keepdims=True)
    upper = data.grid[np.argmax(cumulative > 0.999, axis=1)].max()
    medians = [np.asarray(band)[2].min() for band in bands.values()]
    lower = min(medians, default=upper - 3)
    return max(lower - 0.8, data.grid[0], upper - 5), upper + 0.2
