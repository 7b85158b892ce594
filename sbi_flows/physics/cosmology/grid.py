"""Evidences by quadrature: exact, for up to four parameters, because ln L is a parabola along 1 / (H0 r_d)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import positive
from sbi_flows.physics.cosmology.distances import SPEED_OF_LIGHT
from sbi_flows.physics.cosmology.target import BAOTarget

_ALONG = (48, 36)  # Gauss-Legendre nodes along H0 r_d, and those of the coarser grid
_FALL = 40.0  # nats below the highest point, at which the integral along H0 r_d ends
_ROWS = 20_000  # of the grid at once
_PANEL = 8  # nodes of one panel
_PANELS = {1: (120,), 2: (60, 24), 3: (16, 8, 8)}  # Omega_m first, whose posterior is the narrowest


@dataclass(frozen=True)
class GridEvidence:
    """What a grid gives.

    Attributes
    ----------
    log_z : float
    error : float
        Difference from the grid of three quarters as many panels, and of nodes along H0 r_d.
    mean, std : ndarray (d,)
        Of the posterior, in the order of the target's names.
    n_points : int
        Of the grid.
    """

    log_z: float
    error: float
    mean: np.ndarray
    std: np.ndarray
    n_points: int


def grid_evidence(target: BAOTarget, panels: Sequence[int] | None = None) -> GridEvidence:
    """ln Z, posterior means and standard deviations by Gauss-Legendre panels over the prior's box.

    Given the other parameters every distance is proportional to ``t = c / (H0 r_d)``, so ln L is a parabola in t. The integral over H0 r_d
    is one over t, by Gauss-Legendre nodes where the prior is and ln L within 40 of its highest value there: whether the prior's ends are
    many standard deviations away, cut the Gaussian or leave a piece of its tail, the integrand is smooth between its limits.

    Parameters
    ----------
    target : BAOTarget
    panels : sequence of int, optional
        Of eight nodes each, for each parameter but H0 r_d. Those by default leave an error below 1e-3 with DESI's second release.

    Raises
    ------
    ValueError
        If there is not one number of panels for each parameter but H0 r_d.

    Examples
    --------
    >>> from sbi_flows.physics.cosmology import bao_target
    >>> grid_evidence(bao_target("lcdm")).log_z                                                            # doctest: +SKIP
    -7.347...
    """
    free = target.features - 1
    panels = _PANELS[free] if panels is None else tuple(panels)
    if len(panels) != free:
        raise ValueError(f"Expected {free} numbers of panels, one a parameter besides H0_rd; got {len(panels)}.")
    for count in panels:
        positive("panels", count, integer=True)
    log_z, moments = _integrate(target, panels, _ALONG[0])
    coarse, _ = _integrate(target, [max(1, 3 * count // 4) for count in panels], _ALONG[1])
    mean = moments[0]
    return GridEvidence(log_z, abs(log_z - coarse), mean, np.sqrt(moments[1] - mean**2), int(np.prod([_PANEL * count for count in panels])))


def _integrate(target: BAOTarget, panels: Sequence[int], along: int) -> tuple[float, np.ndarray]:
    """ln Z, and posterior means of the parameters and of their squares, ``(2, d)``."""
    low, high = target.prior.low.tolist(), target.prior.high.tolist()
    free = [j for j in range(target.features) if j != 1]
    axes = [_composite(low[j], high[j], count) for j, count in zip(free, panels, strict=True)]
    points = torch.cartesian_prod(*(nodes for nodes, _ in axes)).reshape(-1, len(free))
    weights = torch.cartesian_prod(*(weights for _, weights in axes)).reshape(-1, len(free)).prod(1)
    logs, firsts, seconds = zip(*(_along_h0_rd(target, part, (low[1], high[1]), along) for part in points.split(_ROWS)), strict=True)
    log_mass = torch.cat(logs) + weights.log()
    log_z = torch.logsumexp(log_mass, 0)
    share = (log_mass - log_z).exp()
    columns = [points[:, 0], torch.cat(firsts), *points.unbind(1)[1:]]
    squares = [points[:, 0].square(), torch.cat(seconds), *(column.square() for column in points.unbind(1)[1:])]
    moments = torch.stack([torch.stack([share @ column for column in kind]) for kind in (columns, squares)])
    volume = float(torch.log(target.prior.high - target.prior.low).sum())
    return float(log_z) + target.log_norm - volume, moments.numpy()


def _along_h0_rd(target: BAOTarget, rows: Tensor, ends: tuple[float, float], n_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """ln of the integral of exp(-chi2 / 2) over H0 r_d, and its mean and mean square there, each ``(n,)``, for the other parameters."""
    theta = torch.cat([rows[:, :1], torch.ones_like(rows[:, :1]), rows[:, 1:]], 1)
    omega_m, _, w0, wa = target.model.physical(theta)
    s, d = target.whitened(target.shape(omega_m, w0, wa)), target.whitened_data
    curvature = s.square().sum(1)
    peak = s @ d / curvature
    residual = (d - peak[:, None] * s).square().sum(1)
    # In standard deviations of t about the peak of ln L.
    first, last = ((SPEED_OF_LIGHT / end - peak) * curvature.sqrt() for end in reversed(ends))
    top = torch.clamp(torch.zeros_like(peak), first, last)
    reach = torch.sqrt(top.square() + 2 * _FALL) - top.abs()
    first, last = torch.maximum(first, top - reach), torch.minimum(last, top + reach)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(n_nodes))
    half = 0.5 * (last - first)[:, None]
    z = 0.5 * (first + last)[:, None] + half * nodes
    t = peak[:, None] + z / curvature.sqrt()[:, None]
    h = SPEED_OF_LIGHT / t
    # dH = c / t^2 dt.
    mass = half * weights * torch.exp(0.5 * (top.square()[:, None] - z.square())) * SPEED_OF_LIGHT / t.square()
    total = mass.sum(1)
    log = -0.5 * (residual + top.square() + curvature.log()) + total.log()
    return log, (mass * h).sum(1) / total, (mass * h.square()).sum(1) / total


def _composite(low: float, high: float, panels: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre panels of equal width."""
    x, w = np.polynomial.legendre.leggauss(_PANEL)
    half = 0.5 * (high - low) / panels
    middle = low + half * (2 * np.arange(panels) + 1)
    return torch.from_numpy((middle[:, None] + half * x).ravel()), torch.from_numpy(np.tile(half * w, panels))
