"""Flows of alike particles in open space: :func:`pair_flow` for few, :func:`particle_flow` for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sbi_flows._validation import choose
from sbi_flows.bijections.continuous import Continuous
from sbi_flows.bijections.pairs import PairNet
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
    it as any other continuous flow; ``log_prob`` is exact up to the integrator's error. The cost of a density grows with the number of
    pairs; :func:`pair_flow` fits better, at a cost that grows faster.

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
    return _flow(net, spec, coupling, steps, tolerance)


def pair_flow(
    particles: int,
    dimensions: int,
    *,
    radial: int = 32,
    width: int = 64,
    layers: int = 3,
    triangles: int = 32,
    embedding: int = 64,
    coupling: str = "aligned",
    steps: int = 4,
    tolerance: float | None = 1e-3,
    generator: torch.Generator | None = None,
) -> Flow:
    """A flow as :func:`particle_flow` for few particles: networks of their pairs and triangles see the whole configuration.

    A density costs as many tangents as there are columns, each of work in proportion to the pairs and triangles.

    Parameters
    ----------
    particles, dimensions : int
    radial, width, layers, triangles, embedding
        See :class:`sbi_flows.bijections.pairs.PairNet`.
    coupling, steps, tolerance, generator
        As in :func:`particle_flow`.

    Examples
    --------
    >>> flow = pair_flow(4, 2, width=16, layers=1)
    >>> flow.log_prob(flow.sample(5)).shape
    torch.Size([5])

    References
    ----------
    Klein, Kraemer & Noe 2023, arXiv:2306.15030; Maron, Ben-Hamu, Serviansky & Lipman 2019, arXiv:1905.11136.
    """
    net = PairNet(
        particles, dimensions, radial=radial, width=width, layers=layers, triangles=triangles, embedding=embedding, generator=generator
    )
    spec = {
        "architecture": "pair_flow",
        "particles": int(particles),
        "dimensions": int(dimensions),
        "radial": int(radial),
        "width": int(width),
        "layers": int(layers),
        "triangles": int(triangles),
        "embedding": int(embedding),
        "coupling": coupling,
        "steps": int(steps),
        "tolerance": tolerance,
    }
    return _flow(net, spec, coupling, steps, tolerance)


def _flow(net: ParticleNet | PairNet, spec: dict[str, Any], coupling: str, steps: int, tolerance: float | None) -> Flow:
    choose("coupling", coupling, ("aligned", "independent"))
    bijection = Continuous(net, steps=steps, tolerance=tolerance)
    return Flow(parse_support(None, net.features), bijection, StandardNormal(net.features), scaling="isotropic", spec=spec)
