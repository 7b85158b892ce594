"""What x should be mapped by before its density given theta is learned: the likelihood of the linear Gaussian model a flow starts from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbi_flows.bijections.regression import ridge
from sbi_flows.bijections.support import parse_support
from sbi_flows.bijections.unconstrain import Unconstrain
from sbi_flows.flows.counts import LOGARITHM, SQUARE_ROOT
from sbi_flows.inference.cells import cell

# A map must make x this many nats a row more probable, or the column is left as it is.
WORTH = 0.05


def choose_support(column: np.ndarray, given: np.ndarray):
    """The support entry under which a column is most probable given theta: the line, a half-line, or the line with heavy tails.

    The marginal of x is no guide: where simulations of the whole prior and of a small part of it are pooled, it is a narrow peak on a
    wide plateau, however plain the noise.

    Parameters
    ----------
    column : ndarray (n,)
    given : ndarray (n, c)
        Conditions of each row.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> theta = np.concatenate([rng.uniform(-1, 1, 300), rng.uniform(0.1, 0.2, 300)])
    >>> choose_support(theta + 0.01 * rng.normal(size=600), theta[:, None])
    'real'
    >>> choose_support(theta + 0.01 * rng.standard_cauchy(600), theta[:, None])
    'heavy'
    """
    entries = ["real", "heavy", *([(0.0, np.inf)] if column.min() > 0 else [(-np.inf, 0.0)] if column.max() < 0 else [])]
    return entries[_best([_mapped(column, entry) for entry in entries], given)]


def straight(x: np.ndarray, given: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Which of the columns ``asked (c,)`` of ``x (n, c)`` are most probable on the line as they are, ``(c,)`` bool; NaN is left out."""
    found = np.zeros(x.shape[1], dtype=bool)
    for j in np.flatnonzero(asked):
        there = ~np.isnan(x[:, j])
        found[j] = choose_support(x[there, j], given[there]) == "real"
    return found


def choose_scale(counts: np.ndarray, given: np.ndarray) -> str:
    """The scale of :class:`Cells` on which counts ``(n,)`` are most probable given theta ``(n, c)``, each at the middle of its cell."""
    scales = [SQUARE_ROOT, LOGARITHM]
    return scales[_best([_middles(counts, scale) for scale in scales], given)]


def _best(candidates: list[tuple[Tensor, Tensor]], given: np.ndarray) -> int:
    """The number of the mapped column with the largest score, the first of them if no other is better by ``WORTH``."""
    context = torch.from_numpy(given).double()
    scores = np.array([held_out_likelihood(z, context) + float(log_det.mean()) for z, log_det in candidates])
    scores = np.nan_to_num(scores, nan=-np.inf, posinf=-np.inf)
    scores[0] += WORTH
    return int(scores.argmax())


def _mapped(column: np.ndarray, entry) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(column).double()[:, None]
    unconstrain = Unconstrain(parse_support(entry, 1))
    unconstrain.fit(x)
    z, log_det = unconstrain.forward_and_log_det(x)
    return z[:, 0], log_det


def _middles(counts: np.ndarray, scale: str) -> tuple[Tensor, Tensor]:
    low, width, _ = cell(torch.from_numpy(counts).double(), scale)
    return low + width / 2, width.log()


def held_out_likelihood(z: Tensor, context: Tensor) -> float:
    """Mean log-likelihood of ``z (n,)`` under ridge regression on ``context (n, c)`` , normal residuals; each half judged by the other."""
    fold = torch.arange(len(z)) % 2 == 0
    total = 0.0
    for own, other in ((fold, ~fold), (~fold, fold)):
        centre, spread = context[own].mean(0), context[own].std(0)
        standard = (context - centre) / torch.where(spread > 0, spread, 1.0)
        residual = z - standard @ ridge(z[own, None], standard[own])[0]
        mean, deviation = residual[own].mean(), residual[own].std()
        total += float((-0.5 * ((residual[other] - mean) / deviation).square() - deviation.log()).sum())
    return total / len(z)
