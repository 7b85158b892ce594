"""Flows of alike particles in open space: :func:`particle_flow`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sbi_flows.bijections.continuous import Continuous
from sbi_flows.bijections.particles import ParticleNet
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import StandardNormal
from sbi_flows.flows.base import Flow


def particle_flow(
    particles: int,
    dimensions: int,
    *,
    radial: int = 32,
    products: int = 16,
    hidden: Sequence[int] = (128, 128),
    embedding: int = 64,
    coupling: str = "aligned",
    steps: int = 8,
    tolerance: float | None = 1e-3,
    generator: torch.Generator | None = None,
) -> Flow:
    """A continuous flow of alike particles whose density depends on neither their place, direction nor order.

    Its rows are mean-free coordinates (:func:`sbi_flows.bijections.mean_free.to_mean_free`), scaled by one number for all columns. Train
    it as any other continuous flow; ``log_prob`` is exact up to the integrator's error.

    Parameters
    ----------
    particles, dimensions : int
    radial, products, hidden, embedding
        See :class:`sbi_flows.bijections.particles.ParticleNet`.
    coupling : {"aligned", "independent"}
        Which noise flow matching pairs with which data: "aligned" turns and reorders each noise to be as near as can be to its data,
        which the density does not notice and which straightens the paths.
    steps, tolerance, generator
        As in :func:`sbi_flows.flows.cnf`.

    Examples
    --------
    >>> flow = particle_flow(4, 2)
    >>> flow.log_prob(flow.sample(5)).shape
    torch.Size([5])

    References
    ----------
    Klein, Kraemer & Noe 2023, "Equivariant flow matching", arXiv:2306.15030; Song et al. 2023, arXiv:2312.07168.
    """
    if coupling not in ("aligned", "independent"):
        raise ValueError(f"Expected coupling 'aligned' or 'independent'; got {coupling!r}.")
    net = ParticleNet(
        particles, dimensions, radial=radial, products=products, hidden=hidden, embedding=embedding, generator=generator
    )
    spec = {
        "architecture": "particle_flow",
        "particles": int(particles),
        "dimensions": int(dimensions),
        "radial": int(radial),
        "products": int(products),
        "hidden": [int(width) for width in hidden],
        "embedding": int(embedding),
        "coupling": coupling,
        "steps": int(steps),
        "tolerance": tolerance,
    }
    bijection = Continuous(net, steps=steps, tolerance=tolerance)
    return Flow(parse_support(None, net.features), bijection, StandardNormal(net.features), scaling="isotropic", spec=spec)
