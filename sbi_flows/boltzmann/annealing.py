"""Draws without data: particles annealed from a broad start, moved by Hamiltonian trajectories."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.boltzmann.start import broad_starts, start_distribution
from sbi_flows.distributions import Distribution
from sbi_flows.samplers import HMC, smc
from sbi_flows.samplers.tempered_path import systematic
from sbi_flows.targets import Target, posterior, unconstrained

LEAPFROGS = 8
_ROWS = 1000


class Annealed(NamedTuple):
    """What annealing found.

    Attributes
    ----------
    x : Tensor (n, d)
        In the user's coordinates.
    log_z, log_z_err : float
    bottoms : Tensor (m, d)
        Configurations that do not come from the particles: bottoms of wells, or what the user gave to start from.
    notes : tuple of str
    """

    x: Tensor
    log_z: float
    log_z_err: float
    bottoms: Tensor
    notes: tuple[str, ...]


def anneal_from_above(target: Target, n_particles: int, start: Tensor | Distribution | None, generator: torch.Generator) -> Annealed:
    """Particles from a start wider than the target down to it.

    Parameters
    ----------
    target : Target
    n_particles : int
        Chains at each temperature; about five times as many rows come back.
    start : Tensor (m, d), Distribution or None
        Configurations that tell where to begin, or a density; None looks for the bottoms of wells.
    generator : torch.Generator

    Raises
    ------
    ValueError
        If no configuration of finite energy is found, or the energy does not confine.
    """
    if isinstance(start, Distribution):
        start = start.sample(_ROWS, generator).double()
    space = unconstrained(target, start)
    found = broad_starts(space, generator) if start is None else space.from_user(start)
    begin = start_distribution(space, found, generator)
    path = posterior(lambda x: space.log_prob(x) - begin.log_prob(x), begin)
    result = smc(path, n_particles=n_particles, flow=None, kernel=HMC(n_steps=LEAPFROGS, check=False), random_state=generator)
    rows = systematic(torch.from_numpy(result.samples.weights), len(result.samples.samples) // 2, generator)
    x = space.to_user(torch.as_tensor(result.samples.samples)[rows])[0]
    notes = tuple(f"annealing: {text}" for text in (*result.reliability.reasons, *result.reliability.notes))
    return Annealed(x, result.evidence.log_z, result.evidence.log_z_err, space.to_user(found)[0], notes)
