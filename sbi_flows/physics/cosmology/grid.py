"""Evidences by quadrature: exact, for up to four parameters, because H0 r_d is integrated in closed form but for a smooth factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import positive
from sbi_flows.physics.cosmology.distances import SPEED_OF_LIGHT
from sbi_flows.physics.cosmology.target import BAOTarget

_HERMITE = 12
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
        Difference from the grid of three quarters as many panels.
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

    Given the other parameters every distance is proportional to ``t = c / (H0 r_d)``, so ln L is a parabola in t; what is left of the
    integral over H0 r_d is a smooth function under a Gaussian, which Gauss-Hermite quadrature gives to rounding as long as the ends of
    the prior are many standard deviations away.

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
    log_z, moments = _integrate(target, panels)
    coarse, _ = _integrate(target, [max(1, 3 * count // 4) for count in panels])
    mean = moments[0]
    return GridEvidence(log_z, abs(log_z - coarse), mean, np.sqrt(moments[1] - mean**2), int(np.prod([_PANEL * count for count in panels])))


def _integrate(target: BAOTarget, panels: Sequence[int]) -> tuple[float, np.ndarray]:
    """ln Z, and posterior means of the parameters and of their squares, ``(2, d)``."""
    low, high = target.prior.low.tolist(), target.prior.high.tolist()
    free = [j for j in range(target.features) if j != 1]
    axes = [_composite(low[j], high[j], count) for j, count in zip(free, panels, strict=True)]
    points = torch.cartesian_prod(*(nodes for nodes, _ in axes)).reshape(-1, len(free))
    weights = torch.cartesian_prod(*(weights for _, weights in axes)).reshape(-1, len(free)).prod(1)
    logs, firsts, seconds = zip(*(_along_h0_rd(target, part, low[1], high[1]) for part in points.split(_ROWS)), strict=True)
    log_mass = torch.cat(logs) + weights.log()
    log_z = torch.logsumexp(log_mass, 0)
    share = (log_mass - log_z).exp()
    columns = [points[:, 0], torch.cat(firsts), *points.unbind(1)[1:]]
    squares = [points[:, 0].square(), torch.cat(seconds), *(column.square() for column in points.unbind(1)[1:])]
    moments = torch.stack([torch.stack([share @ column for column in kind]) for kind in (columns, squares)])
    volume = float(torch.log(target.prior.high - target.prior.low).sum())
    return float(log_z) + target.log_norm - volume, moments.numpy()


def _along_h0_rd(target: BAOTarget, rows: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """ln of the integral of exp(-chi2 / 2) over H0 r_d, and its mean and mean square there, each ``(n,)``, for the other parameters."""
    theta = torch.cat([rows[:, :1], torch.ones_like(rows[:, :1]), rows[:, 1:]], 1)
    omega_m, _, w0, wa = target.model.physical(theta)
    s, d = target.whitened(target.shape(omega_m, w0, wa)), target.whitened_data
    curvature = s.square().sum(1)
    peak = s @ d / curvature
    residual = (d - peak[:, None] * s).square().sum(1)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(_HERMITE))
    t = peak[:, None] + nodes / curvature.sqrt()[:, None]
    h = SPEED_OF_LIGHT / t
    # dH = c / t^2 dt; outside of the prior there is nothing.
    mass = torch.where((h >= low) & (h <= high), weights * SPEED_OF_LIGHT / t.square(), 0.0)
    total = mass.sum(1)
    safe = total.clamp_min(torch.finfo(total.dtype).tiny)
    log = -0.5 * residual - 0.5 * curvature.log() + total.log()
    return log, (mass * h).sum(1) / safe, (mass * h.square()).sum(1) / safe


def _composite(low: float, high: float, panels: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre panels of equal width."""
    x, w = np.polynomial.legendre.leggauss(_PANEL)
    half = 0.5 * (high - low) / panels
    middle = low + half * (2 * np.arange(panels) + 1)
    return torch.from_numpy((middle[:, None] + half * x).ravel()), torch.from_numpy(np.tile(half * w, panels))
