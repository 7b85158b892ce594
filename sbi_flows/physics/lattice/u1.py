"""Two-dimensional U(1) gauge theory with the Wilson action, on a periodic square lattice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows._validation import positive
from sbi_flows.bijections.spline import wrap
from sbi_flows.physics.lattice.action import Action

LEAST_SIZE = 2


class U1(Action):
    """``S = -beta sum_x cos P(x)`` over the plaquettes ``P`` of ``size x size`` sites.

    A field holds the links' angles ``theta_mu(x)``, shape ``(2, size, size)``: direction, then the two coordinates.

    Parameters
    ----------
    size : int
        Sites along each axis.
    beta : float
        Inverse coupling, not negative.

    Examples
    --------
    >>> theory = U1(8, beta=2.0)
    >>> theory.action(theory.cold_start(1))
    tensor([-128.], dtype=torch.float64)

    References
    ----------
    Wilson 1974, "Confinement of quarks", Phys. Rev. D 10, 2445; Kanwar et al. 2020, "Equivariant flow-based sampling for lattice gauge
    theory", arXiv:2003.06413 (this theory as a test of samplers).
    """

    circular = True

    def __init__(self, size: int, beta: float):
        check_size(size)
        self.size, self.beta = size, float(positive("beta", beta, zero=True))
        self.shape = (2, size, size)

    @property
    def volume(self) -> int:
        """Number of plaquettes."""
        return self.size**2

    def action(self, field):
        self.check(field)
        return -self.beta * plaquettes(field).cos().sum((1, 2))

    def force(self, field):
        self.check(field)
        sine = -self.beta * plaquettes(field).sin()
        # Each link lies on two plaquettes, with opposite orientation.
        return torch.stack([sine - sine.roll(1, 2), sine.roll(1, 1) - sine], dim=1)

    def observables(self, field):
        angles = plaquettes(field)
        return {"plaquette": angles.cos().mean((1, 2)), "charge": charge_of(angles)}

    def __repr__(self) -> str:
        return f"U1(size={self.size}, beta={self.beta:g})"


def plaquettes(links: Tensor) -> Tensor:
    """Angles ``P(x) = theta_0(x) + theta_1(x+0) - theta_0(x+1) - theta_1(x)``, not wrapped: ``(n, 2, L, L)`` to ``(n, L, L)``."""
    first, second = links.unbind(1)
    return first + second.roll(-1, 1) - first.roll(-1, 2) - second


def charge_of(angles: Tensor) -> Tensor:
    """Topological charge ``(1 / 2 pi) sum wrap(P)`` of plaquettes ``(n, L, L)``, rounded to the integer that it is: ``(n,)``."""
    return (wrap(angles).sum((1, 2)) / (2 * math.pi)).round()


def topological_charge(links: Tensor) -> Tensor:
    """The integer topological charge ``(n,)`` of links ``(n, 2, L, L)``.

    Examples
    --------
    >>> topological_charge(instanton(8, 3.0)[None])
    tensor([3.], dtype=torch.float64)
    """
    return charge_of(plaquettes(links))


def gauge_transform(links: Tensor, gauge: Tensor) -> Tensor:
    """``theta_mu(x) + alpha(x) - alpha(x + mu)`` for angles ``alpha (n, L, L)``; no observable changes."""
    return links + gauge[:, None] - torch.stack([gauge.roll(-1, 1), gauge.roll(-1, 2)], dim=1)


def instanton(size: int, charge: float = 1.0) -> Tensor:
    """Links ``(2, size, size)`` whose plaquettes all are ``2 pi charge / size^2`` (modulo 2 pi): the smoothest field of that charge."""
    check_size(size)
    sites = torch.arange(size, dtype=torch.float64)
    links = torch.zeros(2, size, size, dtype=torch.float64)
    links[1] = 2 * math.pi * charge * sites[:, None] / size**2
    # At the seam the slope above jumps back; these links make up for it.
    links[0, -1] = -2 * math.pi * charge * sites / size
    return links


def check_size(size: int) -> None:
    """``ValueError`` unless ``size`` is a whole number of sites that makes a lattice."""
    positive("size", size, integer=True)
    if size < LEAST_SIZE:
        raise ValueError(f"Expected a lattice of at least {LEAST_SIZE} sites along each axis; got size={size}.")
