"""Clusters: particles in open space, bound to each other by pair potentials; DW4, LJ13 and LJ55."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows._validation import choose, positive
from sbi_flows.physics.molecules.energy import Energy

# How often a pair's energy is counted, by the name of the convention.
PAIRS = {"once": 1.0, "twice": 2.0}


class Cluster(Energy):
    """Alike particles with a pair potential, in the field of a spring to their common centre; without place, direction or order.

    Its density is one of configurations of zero mean: ``degrees_of_freedom`` is ``(particles - 1) * dimensions``.

    Parameters
    ----------
    particles, dimensions : int
    pairs : {"once", "twice"}
        Whether ``sum over i < j`` or over all ordered pairs. Both are found in the literature under the same name.
    trap : float
        Of ``trap / 2 sum_i |x_i - mean|^2``; 0 for none.
    """

    particles: tuple[int, int]
    symmetries = ("translations", "rotations", "reflections", "permutations")

    def __init__(self, particles: int, dimensions: int, *, pairs: str, trap: float):
        positive("particles", particles, integer=True)
        positive("dimensions", dimensions, integer=True)
        positive("trap", trap, zero=True)
        choose("pairs", pairs, list(PAIRS))
        self.particles, self.pairs, self.trap = (int(particles), int(dimensions)), pairs, float(trap)
        self.features = particles * dimensions
        self._first, self._second = torch.triu_indices(particles, particles, 1)

    @abstractmethod
    def pair(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """Energy of a pair at squared distance ``square``, counted once, and its derivative with respect to ``square``."""

    def energy(self, x):
        return self._parts(x)[0]

    def energy_and_force(self, x):
        energy, gradient = self._parts(x.detach())
        return energy, -gradient

    def virial(self, x: Tensor) -> Tensor:
        """``x . dU/dx / kT``, ``(n,)``: its mean over the density is ``degrees_of_freedom``."""
        return -(x * self.energy_and_force(x)[1]).sum(1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Coordinates lead and the batch is last: then every operation runs along contiguous memory.
        place = x.T.unflatten(0, self.particles)
        centred = place - place.mean(0)
        apart = place[self._first] - place[self._second]
        count = PAIRS[self.pairs]
        energy, slope = self.pair(apart.square().sum(1))
        on_pairs = (2 * count * slope)[:, None] * apart
        gradient = self.trap * centred
        gradient = gradient.index_add(0, self._first, on_pairs).index_add(0, self._second, -on_pairs)
        total = count * energy.sum(0) + 0.5 * self.trap * centred.square().sum((0, 1))
        return total, gradient.flatten(0, 1).T


class LennardJones(Cluster):
    """``eps (r^-12 - 2 r^-6)`` a pair, in units of kT and of the distance of its minimum, and ``trap / 2 sum |x - mean|^2``.

    Parameters
    ----------
    particles : int
    dimensions : int
    pairs : {"twice", "once"}
        "twice" counts every pair as (i, j) and as (j, i), so a bond has depth ``2 eps``: the convention of the benchmark of the
        equivariant-flow literature and of its published samples and effective sample sizes. "once" is the textbook sum over i < j.
    eps, trap : float

    Examples
    --------
    >>> energy = LennardJones(2, pairs="once", trap=0.0)
    >>> energy(torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]))
    tensor([-1.])

    References
    ----------
    Koehler, Klein & Noe 2020, "Equivariant flows: exact likelihood generative learning for symmetric densities", arXiv:2006.02425.
    """

    def __init__(self, particles: int = 13, dimensions: int = 3, *, pairs: str = "twice", eps: float = 1.0, trap: float = 1.0):
        super().__init__(particles, dimensions, pairs=pairs, trap=trap)
        positive("eps", eps)
        self.eps = float(eps)
        self.name = f"LJ{particles} (pairs {pairs})"

    def pair(self, square):
        inverse = square.reciprocal()
        sixth = inverse * inverse * inverse
        return self.eps * (sixth - 2) * sixth, 6 * self.eps * (sixth - sixth * sixth) * inverse

    def start(self, n, generator):
        """Close packing at distance 1, the sites nearest to the origin, jittered by a fiftieth."""
        count, dimensions = self.particles
        reach = torch.arange(-6.0, 7.0, dtype=torch.float64)
        grid = torch.cartesian_prod(*[reach] * dimensions).reshape(-1, dimensions)
        # Integer points of even sum are face-centred cubic in three dimensions, and close enough to packed in others.
        sites = grid[grid.sum(1) % 2 == 0] / 2**0.5
        nearest = sites[sites.square().sum(1).argsort(stable=True)[:count]]
        return nearest.flatten() + 0.02 * randn((n, self.features), generator, dtype=torch.float64)


class DoubleWellParticles(Cluster):
    """``quartic (r - centre)^4 + quadratic (r - centre)^2`` a pair, counted once; four particles in the plane are DW4.

    Parameters
    ----------
    particles, dimensions : int
    quartic, quadratic, centre : float
        ``quadratic < 0`` gives a pair two distances, ``centre +- sqrt(-quadratic / (2 quartic))``.

    Examples
    --------
    >>> DoubleWellParticles(2, 1)(torch.tensor([[0.0, 4.0]]))
    tensor([0.])

    References
    ----------
    Koehler, Klein & Noe 2020, arXiv:2006.02425 (the parameters a = 0, b = -4, c = 0.9, tau = 1).
    """

    def __init__(
        self, particles: int = 4, dimensions: int = 2, *, quartic: float = 0.9, quadratic: float = -4.0, centre: float = 4.0
    ):
        super().__init__(particles, dimensions, pairs="once", trap=0.0)
        positive("quartic", quartic)
        self.quartic, self.quadratic, self.centre = float(quartic), float(quadratic), float(centre)
        self.name = f"DW{particles}"

    def pair(self, square):
        # The derivative of the root at zero is infinite; the smallest normal number keeps 0 * inf out of gradients.
        distance = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
        off = distance - self.centre
        slope = (4 * self.quartic * off.square() + 2 * self.quadratic) * off / (2 * distance)
        return (self.quartic * off.square() + self.quadratic) * off.square(), slope

    def start(self, n, generator):
        return 2 * randn((n, self.features), generator, dtype=torch.float64)


def dw4() -> DoubleWellParticles:
    """Four particles in the plane with double-well pairs."""
    return DoubleWellParticles()


def lj13(pairs: str = "twice") -> LennardJones:
    """Thirteen Lennard-Jones particles; see :class:`LennardJones` for the two conventions."""
    return LennardJones(13, pairs=pairs)


def lj55(pairs: str = "twice") -> LennardJones:
    """Fifty-five Lennard-Jones particles; see :class:`LennardJones` for the two conventions."""
    return LennardJones(55, pairs=pairs)
