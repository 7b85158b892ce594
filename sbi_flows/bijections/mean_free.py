"""Configurations without a place: an orthonormal basis of those whose centre is the origin."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_free_basis(particles: int) -> Tensor:
    """``(particles, particles - 1)`` float64 with orthonormal columns, each of which sums to zero (Helmert's contrasts).

    ``basis @ y`` of coordinates ``y (particles - 1, dimensions)`` has its centre at the origin, and lengths and volumes are kept: the
    density of ``y`` is the density on the subspace of mean-free configurations. Permutations and rotations of particles act on ``y`` by
    orthogonal matrices, so a standard normal ``y`` does not change under them.

    Examples
    --------
    >>> basis = mean_free_basis(3)
    >>> torch.allclose(basis.T @ basis, torch.eye(2, dtype=torch.float64)), bool(basis.sum(0).abs().max() < 1e-12)
    (True, True)
    """
    if particles < 2:
        raise ValueError(f"Expected at least two particles, as the place of one is all it has; got {particles}.")
    k = torch.arange(1, particles, dtype=torch.float64)
    rows = torch.arange(particles)[:, None]
    contrast = torch.where(rows < k, 1.0, torch.where(rows == k, -k, 0.0))
    return contrast * (k * (k + 1)).rsqrt()


def to_mean_free(x: Tensor, particles: int) -> Tensor:
    """``x (n, particles * d)`` to coordinates ``(n, (particles - 1) * d)`` of its mean-free part."""
    return torch.einsum("nid,ik->nkd", x.unflatten(1, (particles, -1)), mean_free_basis(particles).to(x)).flatten(1)


def from_mean_free(y: Tensor, particles: int) -> Tensor:
    """Coordinates ``y (n, (particles - 1) * d)`` to the mean-free configuration ``(n, particles * d)``."""
    return torch.einsum("nkd,ik->nid", y.unflatten(1, (particles - 1, -1)), mean_free_basis(particles).to(y)).flatten(1)
