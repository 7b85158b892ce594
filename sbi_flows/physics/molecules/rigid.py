"""Rigid molecules: energies of positions and orientations, rows ``(x, y, z, qw, qx, qy, qz)`` a body with unit quaternions."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows._validation import positive
from sbi_flows.bijections.quaternions import to_matrix
from sbi_flows.physics.molecules.energy import Energy

_LOG_SPHERE = math.log(2 * math.pi**2)
# Vertices of a regular tetrahedron at distance one from its centre.
_VERTICES = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64) / math.sqrt(3)


class RigidBodies(Energy):
    """Bodies whose energy is one of their sites; densities are per volume and per area of the unit sphere of quaternions.

    Attributes
    ----------
    bodies : int
    sites : Tensor (sites, 3)
        Of one body, in its own frame.
    """

    bodies: int
    sites: Tensor

    @abstractmethod
    def energy_of_sites(self, sites: Tensor, centres: Tensor) -> Tensor:
        """``U / kT`` ``(n,)`` of ``sites (n, bodies, sites, 3)`` and ``centres (n, bodies, 3)``."""

    def energy(self, x):
        return self.energy_of_sites(self.sites_of(x), self.rows(x)[..., :3])

    def rows(self, x: Tensor) -> Tensor:
        """``(n, bodies, 7)``."""
        return x.unflatten(1, (self.bodies, 7))

    def sites_of(self, x: Tensor) -> Tensor:
        """Where the sites are, ``(n, bodies, sites, 3)``; quaternions of any length but zero count as rotations."""
        rows = self.rows(x)
        turn = to_matrix(rows[..., 3:].movedim(-1, 0))
        return rows[..., None, :3] + torch.einsum("ijnb,sj->nbsi", turn, self.sites.to(x))

    @property
    def degrees_of_freedom(self) -> int:
        """Six a body."""
        return 6 * self.bodies

    def start(self, n, generator):
        rows = randn((n, self.bodies, 7), generator, dtype=torch.float64)
        rows[..., 3:] /= rows[..., 3:].norm(dim=-1, keepdim=True)
        return rows.flatten(1)


class Tetrahedron(RigidBodies):
    """A rigid tetrahedral molecule in a trap, in a uniform field along z, and in a cubic one that prefers some of its orientations.

    ``U / kT = trap / 2 |x|^2 - field sum_i c_i z_i + cubic sum_i (x_i^4 + y_i^4 + z_i^4)`` over the sites, at distance ``size`` of the
    centre, with charges c.

    Parameters
    ----------
    trap, field, cubic, size : float
    charges : sequence of four float
        Of sum zero, so that the field turns the molecule and does not pull it.

    Attributes
    ----------
    log_z : float or None
        For ``cubic=0``, when position and orientation are independent: ``3/2 ln(2 pi / trap) + ln(2 pi^2 sinh(k) / k)`` with k the field
        times the dipole.

    Examples
    --------
    >>> round(Tetrahedron(cubic=0.0, field=0.0).log_z, 4)
    5.7394
    """

    bodies = 1
    features = 7
    name = "tetrahedron"

    def __init__(
        self,
        *,
        trap: float = 1.0,
        field: float = 1.5,
        cubic: float = 0.1,
        size: float = 1.0,
        charges: tuple[float, float, float, float] = (1.0, 0.5, -0.5, -1.0),
    ):
        positive("trap", trap)
        positive("cubic", cubic, zero=True)
        positive("size", size)
        if len(charges) != 4 or abs(sum(charges)) > 1e-9:
            raise ValueError(f"Expected four charges of sum zero; got {tuple(charges)}, of sum {sum(charges):.4g}.")
        self.trap, self.field, self.cubic, self.size = float(trap), float(field), float(cubic), float(size)
        self.sites, self.charges = size * _VERTICES, torch.tensor(charges, dtype=torch.float64)
        self.dipole = self.charges @ self.sites
        pull = abs(self.field) * float(self.dipole.norm())
        log_turn = math.log(math.sinh(pull) / pull) if pull > 1e-6 else 0.0
        self._pull = pull
        self.log_z = 1.5 * math.log(2 * math.pi / self.trap) + _LOG_SPHERE + log_turn if cubic == 0 else None

    def energy_of_sites(self, sites, centres):
        charge = self.charges.to(sites)
        trapped = 0.5 * self.trap * centres.square().sum((1, 2))
        return trapped - self.field * (sites[..., 2] @ charge).sum(1) + self.cubic * sites.pow(4).sum((1, 2, 3))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` exact draws, float64, by rejection from the trap and uniform orientations."""
        kept: list[Tensor] = []
        while sum(map(len, kept)) < n:
            x = self.start(max(4 * n, 1000), generator)
            x[:, :3] /= math.sqrt(self.trap)
            # What the trap leaves of the energy is never below minus field times dipole.
            excess = self(x) - 0.5 * self.trap * x[:, :3].square().sum(1) + self._pull
            kept.append(x[rand((len(x),), generator, dtype=torch.float64) < torch.exp(-excess)])
        return torch.cat(kept)[:n]


class Ice(RigidBodies):
    """A small periodic cell of rigid water with four sites: TIP4P's geometry and parameters, tied to the sites of cubic ice.

    Lennard-Jones between oxygens and Coulomb between charges of nearest images, both switched off smoothly between 0.9 and 1 times half of
    the shortest side, times 1 / kT: no Ewald sum, hence "like". ``pin / 2`` times the squared distance of each oxygen from its lattice site
    keeps the cell from drifting. Lengths are in Angstrom.

    Parameters
    ----------
    cells : int
        Cubic unit cells along each axis, of eight molecules; 1 is a toy whose cutoff is 3.2 Angstrom.
    temperature : float
        In Kelvin.
    pin : float
        In kT per square Angstrom.

    Attributes
    ----------
    side : float
    lattice : Tensor (molecules, 3)

    References
    ----------
    Jorgensen et al. 1983, J. Chem. Phys. 79, 926 (TIP4P); Koehler, Invernizzi, de Haan & Noe 2023, arXiv:2301.11355.
    """

    def __init__(self, cells: int = 1, *, temperature: float = 100.0, pin: float = 1.0):
        positive("cells", cells, integer=True)
        positive("temperature", temperature)
        positive("pin", pin)
        self.side, self.temperature, self.pin = _ICE_CELL * cells, float(temperature), float(pin)
        corner = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]], dtype=torch.float64)
        basis = torch.cat([corner, corner + 0.25])
        every = torch.cartesian_prod(*[torch.arange(float(cells), dtype=torch.float64)] * 3).reshape(-1, 1, 3)
        self.lattice = (_ICE_CELL * (every + basis)).reshape(-1, 3)
        self.bodies = len(self.lattice)
        self.features = 7 * self.bodies
        self.name = f"ice {self.bodies} at {temperature:g} K"
        half = math.radians(0.5 * _ANGLE)
        self.sites = torch.tensor(
            [
                [0.0, 0.0, 0.0],
                [_BOND * math.sin(half), 0.0, _BOND * math.cos(half)],
                [-_BOND * math.sin(half), 0.0, _BOND * math.cos(half)],
                [0.0, 0.0, _MIDDLE],
            ],
            dtype=torch.float64,
        )
        self._first, self._second = torch.triu_indices(self.bodies, self.bodies, 1)

    def energy_of_sites(self, sites, centres):
        home = (centres - self.lattice.to(sites)).square().sum((1, 2))
        between = centres[:, self._first] - centres[:, self._second]
        shift = -self.side * torch.round(between / self.side)
        distance = (between + shift).square().sum(-1).sqrt()
        reach = 0.5 * self.side
        gate = _switch((distance / reach - 0.9) / 0.1)
        near = (_SIGMA / distance).pow(6)
        vdw = 4 * _EPSILON * (near.square() - near)
        charge = torch.tensor([_CHARGE, _CHARGE, -2 * _CHARGE], dtype=sites.dtype)
        apart = (sites[:, self._first, 1:, None] + shift[:, :, None, None]) - sites[:, self._second, None, 1:]
        coulomb = _COULOMB * (charge[:, None] * charge / apart.square().sum(-1).sqrt()).sum((2, 3))
        return (gate * (vdw + coulomb)).sum(1) / (_BOLTZMANN * self.temperature) + 0.5 * self.pin * home

    def start(self, n, generator):
        """Oxygens near their lattice sites, orientations at random."""
        rows = self.rows(super().start(n, generator))
        rows[..., :3] = self.lattice + 0.05 * rows[..., :3]
        return rows.flatten(1)


_ICE_CELL = 6.358  # Angstrom, of cubic ice
_BOND, _ANGLE, _MIDDLE = 0.9572, 104.52, 0.15  # TIP4P: O-H, H-O-H in degrees, and how far the negative charge is from the oxygen
_SIGMA, _EPSILON, _CHARGE = 3.15365, 0.648520, 0.52  # Angstrom, kJ/mol, elementary charges
_COULOMB, _BOLTZMANN = 1389.35458, 0.00831446262  # kJ/mol Angstrom, kJ/mol/K


def _switch(t: Tensor) -> Tensor:
    """From one at t <= 0 to zero at t >= 1, twice continuously differentiable."""
    t = t.clamp(0.0, 1.0)
    return 1 - t**3 * (10 - 15 * t + 6 * t * t)
