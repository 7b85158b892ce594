"""Bayes factors of several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sbi_flows.inference import ModelProbabilities
from sbi_flows.plots.canvas import COLOURS, GREY, new_figure

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def evidence_bars(
    table: pandas.DataFrame | ModelProbabilities, *, reference: str | None = None, titles: Mapping[str, str] | None = None
) -> Figure:
    """ln Bayes factors with their errors, best at the top.

    Parameters
    ----------
    table : DataFrame or ModelProbabilities
        What :func:`sbi_flows.compare_models` or ``ModelClassifier.compare`` returns (the latter knows no errors), or any table with
        columns ``log_bf, log_bf_err, reliable`` and the models as a column ``model`` or as the index. Rows without a Bayes factor are
        left out.
    reference : str, optional
        The model against which they are taken, as the axis should name it; by default the one whose factor and error are both zero.
    titles : mapping of str to str, optional
        What to call each model.

    Raises
    ------
    ValueError
        When columns are missing.
    TypeError
        When it is no table.

    Examples
    --------
    >>> from sbi_flows.plots import evidence_bars, save_figure
    >>> save_figure(evidence_bars(compare_models({"flat": z_flat, "tilted": z_tilted})), "evidence.pdf")  # doctest: +SKIP
    """
    if isinstance(table, ModelProbabilities):
        reference = table.best if reference is None else reference
        reference = (titles or {}).get(reference, reference)
        table = _table_of(table)
    if not hasattr(table, "columns"):
        raise TypeError(f"Expected what compare_models or ModelClassifier.compare returns; got {type(table).__name__}.")
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


def _table_of(record: ModelProbabilities) -> pandas.DataFrame:
    """Log Bayes factors without errors."""
    import pandas as pd

    factors = pd.Series(record.log_bayes_factors, name="log_bf").rename_axis("model")
    return factors.reset_index().assign(log_bf_err=np.nan, reliable=record.reliability.ok)
