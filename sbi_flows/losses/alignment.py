"""Noise turned and reordered towards its data: the coupling of flows that know neither direction nor order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sbi_flows.losses.couplings import Coupled, Coupling, Ends

_ROUNDS = 2  # of order, then direction; a third changes few pairs


def aligned(net: Any) -> Coupling:
    """The coupling that reorders and turns (or reflects) each noise towards the data it was drawn with.

    Parameters
    ----------
    net : ParticleNet
        Whose particles they are.

    References
    ----------
    Klein, Kraemer & Noe 2023, "Equivariant flow matching", arXiv:2306.15030; Kabsch 1976, Acta Cryst. A32, 922.
    """

    def couple(ends: Ends, generator: torch.Generator) -> Coupled:
        basis = net.basis.to(ends.noise)
        noise, data = (torch.einsum("nkd,ik->nid", rows.unflatten(1, (-1, net.dimensions)), basis) for rows in ends[:2])
        near = align(noise, data)
        return Coupled(torch.einsum("nid,ik->nkd", near, basis).flatten(1))

    return couple


def align(moving: Tensor, fixed: Tensor, rounds: int = _ROUNDS) -> Tensor:
    """``moving (n, particles, d)`` in the order, and turned to the direction, that bring it near ``fixed``, each with its centre at 0."""
    for _ in range(rounds):
        moving = rotated(reordered(moving, fixed), fixed)
    return moving


def reordered(moving: Tensor, fixed: Tensor) -> Tensor:
    """Particles of ``moving (n, particles, d)`` in the order of least squared distance to those of ``fixed``."""
    closeness = (fixed @ moving.mT).double().cpu().numpy()
    order = [linear_sum_assignment(one, maximize=True)[1] for one in closeness]
    index = torch.from_numpy(np.stack(order))
    return moving.gather(1, index.to(moving.device)[:, :, None].expand_as(moving))


def rotated(moving: Tensor, fixed: Tensor) -> Tensor:
    """``moving (n, particles, d)`` after the orthogonal map of least squared distance to ``fixed``, particle by particle."""
    u, _, v = torch.linalg.svd(moving.mT @ fixed, full_matrices=False)
    return moving @ (u @ v)
