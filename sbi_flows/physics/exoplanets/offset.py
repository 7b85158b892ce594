"""The radius told by how far the mean measured radius lies from the expected one: a number of order one, whatever the planet."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sbi_flows.distributions import BoxUniform, Distribution, MultivariateNormal, Product
from sbi_flows.physics.exoplanets.planets import Planets
from sbi_flows.physics.exoplanets.transit import JUPITER_RADIUS, NAMES, SUN_RADIUS, TransitModel, planet_prior

_NEWTON_STEPS = 30
_CLOSED = 1e-7  # errors of the mean, after which one more step leaves rounding alone


def offset_prior() -> Distribution:
    """The prior of what :meth:`RadiusOffset.rows` gives for simulated planets.

    The first column is then the noise of the mean over its error: standard normal and independent of the other parameters, exactly.
    """
    box = planet_prior()
    rest = BoxUniform(box.low[1:].tolist(), box.high[1:].tolist(), names=NAMES[1:])
    return Product([MultivariateNormal([0.0], [[1.0]], names=["offset"]), rest])


class RadiusOffset:
    """Between theta and the same with, in place of the radius, the offset of the mean measured from the mean expected area.

    A spectrum of 52 channels tells the radius at 10 bar, given all else, to a thousandth, which a density of the radius itself can hardly
    learn, and which goes along with the temperature and every gas. Offsets are in standard errors of the mean, weighted by the errors.

    Parameters
    ----------
    planets : Planets
        One for all rows of theta, or one a row.

    Examples
    --------
    >>> from sbi_flows.physics.exoplanets import simulate_planets
    >>> planets = simulate_planets(100, random_state=0)
    >>> offset = RadiusOffset(planets)
    >>> rows, _ = offset.rows(torch.from_numpy(planets.theta))
    >>> theta, inside = offset.theta(rows)
    >>> bool(inside.all()), float(abs(theta[:, 0] - torch.from_numpy(planets.theta[:, 0])).max()) < 1e-9
    (True, True)
    """

    def __init__(self, planets: Planets):
        unit = torch.from_numpy(SUN_RADIUS / JUPITER_RADIUS * planets.star_radius)[:, None].square()
        precision = (torch.from_numpy(planets.errors) * unit) ** -2
        self._weights = precision / precision.sum(1, keepdim=True)
        self._mean = (self._weights * torch.from_numpy(planets.depths) * unit).sum(1)
        self._error = precision.sum(1).rsqrt()
        self._log_gravity = torch.from_numpy(planets.log_gravity)
        self._model = TransitModel()

    def rows(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``theta (n, 7)`` to rows ``(n, 7)`` and ln abs(d offset / d radius) ``(n,)``; differentiable."""
        graph = theta.requires_grad
        with torch.enable_grad():
            radius = theta[:, :1] if graph else theta[:, :1].detach().requires_grad_()
            area = self._area(torch.cat([radius, theta[:, 1:]], dim=1))
            (slope,) = torch.autograd.grad(area.sum(), radius, create_graph=graph)
        offset = (self._mean - area) / self._error
        rows = torch.cat([offset[:, None], theta[:, 1:]], dim=1)
        return (rows if graph else rows.detach()), slope[:, 0].log() - self._error.log()

    def theta(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``(n, 7)`` to theta ``(n, 7)`` and whether the prior holds its radius ``(n,)``; one outside is put on an end.

        The expected area grows with the radius, so the root that Newton's method finds is the only one.
        """
        low, high = (float(end[0]) for end in (planet_prior().low, planet_prior().high))
        area = self._mean - rows[:, 0] * self._error
        with torch.no_grad():
            ends = [self._area(torch.cat([torch.full_like(rows[:, :1], end), rows[:, 1:]], dim=1)) for end in (low, high)]
        inside = (ends[0] < area) & (area < ends[1])
        theta = torch.cat([torch.where(area < ends[1], low, high)[:, None], rows[:, 1:]], dim=1)
        if bool(inside.any()):
            some = self if len(self._mean) == 1 else self._some(inside)
            # The area is all but quadratic in the radius.
            share = ((area - ends[0]) / (ends[1] - ends[0]))[inside]
            theta[inside, 0] = some._root(rows[inside], (low**2 + share * (high**2 - low**2)).sqrt(), low, high)
        return theta, inside

    def _root(self, rows: Tensor, radius: Tensor, low: float, high: float) -> Tensor:
        theta = torch.cat([radius[:, None], rows[:, 1:]], dim=1)
        for _ in range(_NEWTON_STEPS):
            found, log_slope = self.rows(theta)
            left = found[:, 0] - rows[:, 0]
            theta[:, 0] = (theta[:, 0] + left * torch.exp(-log_slope)).clamp(low, high)
            if bool((left.abs() < _CLOSED).all()):
                return theta[:, 0]
        raise RuntimeError(f"Expected a radius of every offset by Newton's method; one is left {float(left.abs().max()):.3g} errors away.")

    def _some(self, picked: Tensor) -> RadiusOffset:
        some = copy.copy(self)
        for name in ("_weights", "_mean", "_error", "_log_gravity"):
            setattr(some, name, getattr(self, name)[picked])
        return some

    def _area(self, theta: Tensor) -> Tensor:
        """Weighted mean of the squared radius, in Jupiter radii squared, ``(n,)``."""
        return (self._weights * self._model.radius(theta, self._log_gravity.expand(len(theta))).square()).sum(1)
