"""How a fit went, and what a set of weights rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sbi_flows.plots.canvas import COLOURS, GREY, new_figure
from sbi_flows.results import FitHistory, WeightedSamples
from sbi_flows.weights import largest_pareto_k, pareto_tail

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def losses(history: FitHistory) -> Figure:
    """Training and validation loss by epoch, a pair of lines a member; the dot is the epoch whose weights were kept.

    Parameters
    ----------
    history : FitHistory
        ``history_`` of a fitted estimator.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> from sbi_flows import FlowDensity
    >>> density = FlowDensity(max_epochs=3, random_state=0).fit(np.random.default_rng(0).normal(size=(200, 2)))
    >>> losses(density.history_).axes[0].get_ylabel()
    'loss (nll, nats)'
    """
    if not isinstance(history, FitHistory):
        raise TypeError(f"losses draws a FitHistory, as history_ of a fitted estimator; got {type(history).__name__}.")
    figure = new_figure(7.0, 3.2)
    axis = figure.subplots()
    epochs = np.arange(len(history.train_loss))
    for m in range(history.train_loss.shape[1]):
        label = ("training", "held out") if m == 0 else (None, None)
        axis.plot(epochs, history.train_loss[:, m], color=GREY, linewidth=1, label=label[0])
        axis.plot(epochs, history.validation_loss[:, m], color=COLOURS[0], linewidth=1.4, label=label[1])
        best = int(history.best_epoch[m])
        if 0 <= best < len(epochs):
            axis.plot(best, history.validation_loss[best, m], "o", color=COLOURS[1], markersize=5)
    axis.set_xlabel("epoch")
    axis.set_ylabel(f"loss ({history.loss}, nats)" if history.loss == "nll" else f"loss ({history.loss})")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def weights(draws: WeightedSamples) -> Figure:
    """What share of the draws has a weight above each size: a few draws that carry everything are seen at the lower right.

    The dashed line is the generalised Pareto distribution fitted to the largest weights; the steeper it falls, the better. The weights of
    nested sampling's points have none.

    Parameters
    ----------
    draws : WeightedSamples
        With at least one draw of positive weight.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        Where no draw has weight.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(5000, 1))
    >>> figure = weights(WeightedSamples(x, 0.5 * x[:, 0] - 0.125, ("a",)))
    """
    if not isinstance(draws, WeightedSamples):
        hint = "of other weights make WeightedSamples(samples, log_weights, names)"
        raise TypeError(f"weights draws WeightedSamples; got {type(draws).__name__}: {hint}.")
    n = len(draws.log_weights)
    largest = np.sort(draws.weights)[::-1] * n
    largest = largest[largest > 0]
    share = np.arange(1, len(largest) + 1) / n
    tail = pareto_tail(draws.log_weights) if draws.evidence is None else None
    figure = new_figure(5.2, 3.6)
    axis = figure.subplots()
    axis.loglog(largest, share, color=COLOURS[0], linewidth=1.6, label="draws")
    if tail is not None and tail.n:
        falling = share[: tail.n]
        fitted = largest[0] * tail.quantiles(1 - falling / falling[-1])
        axis.loglog(fitted, falling, "--", color=COLOURS[1], linewidth=1.4, label=f"Pareto tail, k = {tail.k:.2f}")
    axis.axvline(1.0, color=GREY, linewidth=0.8)
    axis.set_xlabel("weight, in units of the mean weight")
    axis.set_ylabel("share of draws with at least this weight")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower left")
    if tail is None:
        said = ""
    else:
        said = "; no tail" if tail.k == -np.inf else f"; Pareto k {tail.k:.2f} (believed up to {largest_pareto_k(n):.2f})"
    axis.set_title(f"effective draws {draws.ess:.0f} of {n}{said}", loc="left", fontsize=10)
    return figure
