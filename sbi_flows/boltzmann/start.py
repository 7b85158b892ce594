"""Where to begin without data: minima found from starts at all scales, and the spread of hot chains around them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows.distributions import Columns, Distribution, MultivariateNormal, Torus
from sbi_flows.samplers import HMC
from sbi_flows.targets import Target, circular_columns, tempered

SCALES = (0.1, 1.0, 10.0, 100.0)  # standard deviations of the starts of the descents
STARTS = 64  # of each
DESCENT_STEPS = 300
HOT = 10.0  # temperature of the chains that say how wide a start is wide enough
HOT_STEPS = 60
WIDER = 1.2  # times the spread of those chains


def broad_starts(target: Target, generator: torch.Generator, n: int = STARTS) -> Tensor:
    """Configurations at the bottom of wells ``(m, d)``, as ``n`` descents from normals of every scale find them; angles start anywhere.

    Raises
    ------
    ValueError
        If no descent ends at a finite energy.
    """
    circular = circular_columns(target)
    x = torch.cat([scale * randn((n, target.features), generator, dtype=torch.float64) for scale in SCALES])
    angles = math.pi * (2 * rand(x.shape, generator, dtype=torch.float64) - 1)
    x = descended(target, torch.where(circular, angles, x))
    value = target.log_prob(x)
    good = torch.isfinite(value)
    if not bool(good.any()):
        raise ValueError(
            f"Expected a finite energy somewhere; it is NaN or infinite at all of {len(x)} points, which start from normals of standard "
            f"deviations {', '.join(map(str, SCALES))}. Pass start=, configurations without overlaps."
        )
    return x[good]


def descended(target: Target, x: Tensor, n_steps: int = DESCENT_STEPS) -> Tensor:
    """Rows moved downhill by inertial relaxation, each with a step of its own; rows that climb go back and slow down.

    References
    ----------
    Bitzek, Koskinen, Gaehler, Moseler & Gumbsch 2006, "Structural relaxation made simple", Phys. Rev. Lett. 97, 170201.
    """
    value, gradient = target.log_prob_and_grad(x)
    velocity = torch.zeros_like(x)
    # The first step moves a row by a tenth of its size, whatever the force: overlaps push with 1e10.
    size = x.square().mean(-1, keepdim=True).sqrt().clamp(min=0.1)
    step = 0.1 * size / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    for _ in range(n_steps):
        velocity = torch.where(velocity.mul(gradient).sum(-1, keepdim=True) < 0, 0.0, 0.9 * velocity) + gradient * step
        longest = velocity.norm(dim=-1, keepdim=True)
        moved = x + velocity * (size / longest.clamp(min=1e-300)).clamp(max=1.0)
        new_value, new_gradient = target.log_prob_and_grad(moved)
        better = ((new_value >= value) | ~torch.isfinite(value)) & torch.isfinite(new_gradient).all(-1) & torch.isfinite(new_value)
        keep = better[:, None]
        x, gradient = torch.where(keep, moved, x), torch.where(keep, new_gradient, gradient)
        value, velocity = torch.where(better, new_value, value), torch.where(keep, velocity, 0.0)
        step = torch.where(keep, 1.1 * step, 0.3 * step)
    return x


def start_distribution(target: Target, rows: Tensor, generator: torch.Generator) -> Distribution:
    """A normal, uniform in the angles, wider than the target: that of hot chains from ``rows (n, d)``.

    Raises
    ------
    ValueError
        If the chains run away: the energy does not confine every coordinate.
    """
    hot, kernel = tempered(target, 1 / HOT), HMC(n_steps=5, check=False)
    # Minima have no width of their own: the curvature there says how far chains will go.
    shaken = rows + _local_widths(target, rows) * randn(rows.shape, generator, dtype=rows.dtype)
    rows = torch.where(torch.isfinite(hot.log_prob(shaken))[:, None], shaken, rows)
    state, seen = kernel.init(rows, hot), []
    for i in range(HOT_STEPS):
        state, info = kernel.step(state, hot, generator)
        state = kernel.adapt(state, info, hot, (i + 1) / HOT_STEPS)
        seen.append(state.position)
    x = torch.cat([rows, *seen[HOT_STEPS // 2 :]])
    circular = circular_columns(target)
    real, angles = [torch.nonzero(c)[:, 0].tolist() for c in (~circular, circular)]
    scatter = torch.cov(x[:, real].T).reshape(len(real), len(real))
    if not bool(torch.isfinite(scatter).all()) or float(scatter.diagonal().max()) > (1e4 * max(SCALES)) ** 2:
        raise ValueError(
            "Expected an energy that confines every coordinate: chains at ten times the temperature ran away. Add a trap, give support= "
            "with ends, or take out coordinates that the energy does not depend on, such as the centre of mass."
        )
    scatter = WIDER**2 * (0.9 * scatter + 0.1 * torch.diag(scatter.diagonal())) + 1e-12 * torch.eye(len(real), dtype=x.dtype)
    if not real:
        return Torus(len(angles)).double()
    normal = MultivariateNormal(x[:, real].mean(0), 0.5 * (scatter + scatter.T))
    return normal if not angles else Columns([normal, Torus(len(angles)).double()], [real, angles])


def _local_widths(target: Target, rows: Tensor) -> Tensor:
    """Standard deviation of each column ``(d,)`` that the curvature of the energy gives at some of the rows, the median."""
    some = rows[:: max(1, len(rows) // _CURVATURES)]
    n, d = some.shape
    size = some.square().mean().sqrt().clamp(min=1e-3)
    step = 1e-4 * size * torch.eye(d, dtype=rows.dtype)
    points = torch.cat([(some[:, None] + sign * step).reshape(-1, d) for sign in (1, -1)])
    forward, backward = target.log_prob_and_grad(points)[1].reshape(2, n, d, d)
    curvature = (backward - forward).diagonal(dim1=1, dim2=2) / (2e-4 * size)
    widths = curvature.clamp(min=1e-300).rsqrt().nanmedian(0).values
    # A flat direction has no width; the chains will find one.
    return widths.nan_to_num(float(size)).clamp(max=float(size) + 1.0)


_CURVATURES = 16  # rows at which they are taken
