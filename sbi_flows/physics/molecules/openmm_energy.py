"""Molecules by OpenMM: the energies and forces of its engine as differentiable functions of batches; alanine dipeptide."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, numpy_generator, randn
from sbi_flows._validation import choose, positive
from sbi_flows.bijections.internal import InternalCoordinates, dihedral_of
from sbi_flows.bijections.z_matrix import z_matrix
from sbi_flows.physics.molecules.energy import Energy
from sbi_flows.physics.molecules.reference import Reference, judged

GAS_CONSTANT = 0.00831446261815324  # kJ / mol / K
_SOLVENTS = {"vacuum": ("amber99sb.xml",), "obc": ("amber99sb.xml", "amber99_obc.xml")}
# Atoms and bonds of the residues, as the force field names them.
_RESIDUES = (
    ("ACE", "HH31 CH3 HH32 HH33 C O", ((0, 1), (1, 2), (1, 3), (1, 4), (4, 5))),
    (
        *("ALA", "N H CA HA CB HB1 HB2 HB3 C O"),
        ((0, 1), (0, 2), (2, 3), (2, 4), (2, 8), (4, 5), (4, 6), (4, 7), (8, 9)),
    ),
    ("NME", "N H CH3 HH31 HH32 HH33", ((0, 1), (0, 2), (2, 3), (2, 4), (2, 5))),
)
_PEPTIDE_BONDS = ((4, 6), (14, 16))
_PHI, _PSI = (4, 6, 8, 14), (6, 8, 14, 16)
_ALPHA = 8
_BOND, _ORDINARY, _STRAIGHT = 0.13, math.radians(115), 0.5 * math.pi  # a start to be relaxed
# Picoseconds, and per picosecond.
_STEP, _FRICTION = 0.001, 1.0


class OpenMMEnergy(Energy):
    """``U / kT`` of an OpenMM system, in nanometres, with the engine's own forces as gradient.

    Configurations are evaluated one after another by one context; forces are computed together with energies, and kept for the gradient.
    A second derivative is not to be had.

    Parameters
    ----------
    system : openmm.System
        Without constraints: rigid bonds have no density in Cartesian coordinates.
    temperature : float
        In Kelvin; of the kT in which energies are given.
    bonds : sequence of (int, int), optional
        For :func:`sbi_flows.boltzmann.z_matrix`.
    minimum : array-like (3 atoms,), optional
        A configuration of low energy, where chains start.
    platform : str
        "Reference" is the fastest for few atoms.
    name : str

    Raises
    ------
    ImportError
        Without OpenMM: ``pip install "sbi_flows[molecules]"``.
    ValueError
        If the system has constraints or virtual sites.

    References
    ----------
    Eastman et al. 2017, "OpenMM 7", PLOS Comput. Biol. 13, e1005659.
    """

    symmetries = ("translations", "rotations")

    def __init__(
        self,
        system: Any,
        *,
        temperature: float = 300.0,
        bonds: Sequence[tuple[int, int]] | None = None,
        minimum: Any = None,
        platform: str = "Reference",
        name: str = "OpenMM system",
    ):
        openmm = _openmm()
        positive("temperature", temperature)
        atoms = system.getNumParticles()
        if system.getNumConstraints() or any(system.isVirtualSite(i) for i in range(atoms)):
            raise ValueError("Expected a system without constraints and virtual sites, which have no density: pass constraints=None.")
        self.features, self.particles, self.name = 3 * atoms, (atoms, 3), name
        self.temperature, self.kt = float(temperature), GAS_CONSTANT * float(temperature)
        self.bonds = None if bonds is None else tuple((int(a), int(b)) for a, b in bonds)
        self._openmm_system = system
        integrator = openmm.LangevinMiddleIntegrator(self.temperature, _FRICTION, _STEP)
        self.context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
        self.minimum = None if minimum is None else torch.as_tensor(np.asarray(minimum), dtype=torch.float64).flatten()

    def energy(self, x):
        return _Evaluated.apply(x, self)

    def energy_and_force(self, x):
        value, force = self._evaluated(x.detach())
        return value, force

    def _evaluated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``U / kT`` ``(n,)`` and forces over kT ``(n, features)``, float64; NaN where coordinates are not finite."""
        rows = x.double().reshape(len(x), -1, 3).cpu().numpy()
        values, forces = np.full(len(rows), np.nan), np.full(rows.shape, np.nan)
        for i in np.flatnonzero(np.isfinite(rows).all((1, 2))):
            self.context.setPositions(rows[i])
            state = self.context.getState(getEnergy=True, getForces=True)
            values[i] = state.getPotentialEnergy()._value
            forces[i] = state.getForces(asNumpy=True)._value
        return torch.from_numpy(values / self.kt), torch.from_numpy(forces / self.kt).flatten(1)

    def start(self, n, generator):
        if self.minimum is None:
            return super().start(n, generator)
        return self.minimum + 0.002 * randn((n, self.features), generator, dtype=torch.float64)

    def dynamics(
        self,
        n: int,
        *,
        chains: int = 4,
        start: Tensor | None = None,
        n_steps: int = 200,
        n_warmup: int = 5000,
        random_state: RandomState = None,
    ) -> Reference:
        """``n`` configurations by Langevin dynamics in the engine, one chain after another.

        Steps are of one femtosecond, which leaves an error of the mean energy of about a thousandth.

        Parameters
        ----------
        n : int
            Rounded up to whole draws of all chains.
        chains : int
        start : Tensor (chains, features), optional
            Of each chain; near ``minimum`` by default.
        n_steps, n_warmup : int
            Steps between draws, and before the first.
        random_state : int, generator or None

        References
        ----------
        Zhang, Liu, Yan, Tuckerman & Liu 2019, "Unified efficient thermostat scheme", J. Phys. Chem. A 123, 6056.
        """
        for key, value in (("n", n), ("chains", chains), ("n_steps", n_steps)):
            positive(key, value, integer=True)
        began, rng = time.perf_counter(), numpy_generator(random_state)
        if start is None:
            start = self.start(chains, torch.Generator().manual_seed(int(rng.integers(2**31))))
        length, integrator = math.ceil(n / chains), self.context.getIntegrator()
        draws = np.empty((length, chains, self.features // 3, 3))
        for j, row in enumerate(start):
            integrator.setRandomNumberSeed(int(rng.integers(1, 2**31)))
            self.context.reinitialize()
            self.context.setPositions(row.reshape(-1, 3).numpy())
            self.context.setVelocitiesToTemperature(self.temperature, int(rng.integers(1, 2**31)))
            integrator.step(int(n_warmup))
            for i in range(length):
                integrator.step(int(n_steps))
                draws[i, j] = self.context.getState(getPositions=True).getPositions(asNumpy=True)._value
        x = torch.from_numpy(draws - draws.mean(2, keepdims=True)).flatten(2)
        parts = [self.energy_and_force(rows) for rows in x]
        virials = [-(rows * force).sum(1) for rows, (_, force) in zip(x, parts, strict=True)]
        steps = chains * (n_warmup + length * n_steps)
        return judged(
            self, list(x), [value for value, _ in parts], virials,
            acceptance=1.0, step_size=_STEP, n_gradients=steps, seconds=time.perf_counter() - began,
        )  # fmt: skip


class _Evaluated(torch.autograd.Function):
    """The engine as a node of the graph."""

    @staticmethod
    def forward(ctx, x, energy):
        value, force = energy._evaluated(x)
        ctx.save_for_backward(force.to(x))
        return value.to(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (force,) = ctx.saved_tensors
        # A row that has no energy has no force either, and no share in the gradient.
        return torch.where(gradient[:, None] == 0, 0.0, -gradient[:, None] * force), None


class AlanineDipeptide(OpenMMEnergy):
    """Alanine dipeptide (22 atoms, ACE-ALA-NME) with the amber99sb force field, all bonds flexible.

    Parameters
    ----------
    solvent : {"obc", "vacuum"}
        Implicit water (Onufriev, Bashford & Case), or none.
    temperature : float
        In Kelvin.

    Examples
    --------
    >>> AlanineDipeptide().features  # doctest: +SKIP
    66

    References
    ----------
    Hornak et al. 2006, Proteins 65, 712 (amber99sb); Onufriev, Bashford & Case 2004, Proteins 55, 383.
    """

    def __init__(self, solvent: str = "obc", *, temperature: float = 300.0):
        choose("solvent", solvent, list(_SOLVENTS))
        openmm, (topology, bonds) = _openmm(), _dipeptide()
        field = openmm.app.ForceField(*_SOLVENTS[solvent])
        system = field.createSystem(topology, nonbondedMethod=openmm.app.NoCutoff, constraints=None, removeCMMotion=False)
        super().__init__(system, temperature=temperature, bonds=bonds, name=f"alanine dipeptide in {solvent}")
        self.minimum = _relaxed(self, openmm, bonds)

    def torsions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """phi and psi ``(n,)``, in [-pi, pi), of configurations ``x (n, 66)``."""
        place = torch.as_tensor(x).unflatten(1, (22, 3))
        phi, psi = (dihedral_of(*(place[:, atom] for atom in atoms)) for atoms in (_PHI, _PSI))
        return phi, psi


def _relaxed(energy: OpenMMEnergy, openmm: Any, bonds: tuple[tuple[int, int], ...]) -> Tensor:
    """L-alanine at a minimum, from a stretched chain of ordinary bonds and angles."""
    z = z_matrix(bonds)
    angles = [_STRAIGHT, *[_ORDINARY] * (len(z.atoms) - 2)]
    turns, seen = [0.0, 0.0], dict.fromkeys(z.atoms, 0)
    for (centre, _, _), improper, handed in zip(z.references, z.improper, z.handed, strict=True):
        # Neighbours of one atom: on both sides at tetrahedral centres, opposite at flat ones. Torsions: trans.
        turns.append((-1) ** seen[centre] * 2 * math.pi / 3 if handed else math.pi)
        seen[centre] += improper
    q = torch.tensor([[0.0, 0.0, 0.0, angles[0], *turns[:2], *[_BOND] * (len(z.atoms) - 1), *angles[1:], *turns[2:]]], dtype=torch.float64)
    energy.context.setPositions(InternalCoordinates(z).inverse_and_log_det(q)[0].reshape(-1, 3).numpy())
    openmm.LocalEnergyMinimizer.minimize(energy.context, 0.1, 5000)
    x = energy.context.getState(getPositions=True).getPositions(asNumpy=True)._value
    # L: seen from the hydrogen of the alpha carbon, C, CB and N go clockwise. The energy of the mirror image is the same.
    nitrogen, beta, carbonyl = (x[i] - x[_ALPHA] for i in (6, 10, 14))
    hand = 1.0 if np.dot(np.cross(nitrogen, carbonyl), beta) > 0 else -1.0
    return torch.from_numpy(hand * (x - x.mean(0))).flatten()


def _dipeptide() -> tuple[Any, tuple[tuple[int, int], ...]]:
    """OpenMM's topology and the bonds."""
    app = _openmm().app
    topology = app.Topology()
    chain = topology.addChain()
    atoms: list[Any] = []
    bonds = list(_PEPTIDE_BONDS)
    for name, members, own in _RESIDUES:
        residue, first = topology.addResidue(name, chain), len(atoms)
        atoms += [topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue) for atom in members.split()]
        bonds += [(first + a, first + b) for a, b in own]
    for a, b in bonds:
        topology.addBond(atoms[a], atoms[b])
    return topology, tuple(bonds)


def _openmm() -> Any:
    try:
        import openmm
        import openmm.app
    except ImportError as error:
        raise ImportError(
            "Molecules with a force field need OpenMM, which is not installed: pip install 'sbi_flows[molecules]'."
        ) from error
    return openmm
