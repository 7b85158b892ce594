"""Flows on spheres, tori, rotations and boxes: :func:`manifold_flow`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sbi_flows.bijections.linear import Whiten
from sbi_flows.bijections.manifold_flow import ManifoldContinuous
from sbi_flows.bijections.manifolds import factor
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions.manifolds import ManifoldBase
from sbi_flows.flows.base import Flow


def manifold_flow(
    support: Sequence[Any],
    *,
    hidden: Sequence[int] = (128, 128),
    steps: int = 8,
    tolerance: float | None = 1e-3,
    generator: torch.Generator | None = None,
) -> Flow:
    """A continuous flow on a product of manifolds, whose draws never leave it and whose density is one on it.

    Train it by :func:`sbi_flows.losses.manifold_flow_matching`, or by likelihood.

    Parameters
    ----------
    support : sequence
        One entry a factor, in the order of the columns: "real" and "circular" ([-pi, pi)) take one column each, ("sphere", m) takes m, a
        unit vector; "rotation" four, a unit quaternion (w, x, y, z), where q and -q are one rotation and have one density; (low, high) one,
        with walls at both ends, where the density need not vanish.
    hidden : (int, int)
        Widths of the two hidden layers.
    steps, tolerance, generator
        As in :func:`sbi_flows.flows.cnf`.

    Returns
    -------
    Flow
        Its ``log_prob`` is with respect to length, to area on spheres, and to the area of the sphere of unit quaternions (``2 pi^2``).

    Raises
    ------
    ValueError
        If an entry is none of these.

    Examples
    --------
    >>> flow = manifold_flow([("sphere", 3), "circular", (0, 1)])
    >>> flow.log_prob(flow.sample(5)).shape
    torch.Size([5])

    References
    ----------
    Chen & Lipman 2024, "Flow matching on general geometries", arXiv:2302.03660; Xie et al. 2024, "Reflected flow matching",
    arXiv:2405.16577 (walls).
    """
    if isinstance(support, str) or not len(support):
        raise ValueError(f"Expected a list with one entry a factor, such as [('sphere', 3), 'circular']; got {support!r}.")
    factors = [factor(entry) for entry in support]
    bijection = ManifoldContinuous(factors, hidden=hidden, steps=steps, tolerance=tolerance, generator=generator)
    spec = {
        "architecture": "manifold_flow",
        "support": [part.entry for part in factors],
        "hidden": [int(width) for width in hidden],
        "steps": int(steps),
        "tolerance": tolerance,
    }
    flow = Flow(parse_support(None, bijection.features), bijection, ManifoldBase(factors), scaling="none", spec=spec)
    kinds = [part.entry for part in factors for _ in range(part.columns)]
    # Lines alone have a scale; points of the others are where they are.
    flow.scaling = Whiten(bijection.features, [i for i, kind in enumerate(kinds) if kind == "real"], "standard", 0)
    return flow
