"""From the plain data of a spec back to the flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sbi_flows.flows.continuous import cnf
from sbi_flows.flows.counts import counted
from sbi_flows.flows.discrete import maf, nsf, realnvp
from sbi_flows.flows.hierarchical import hierarchical
from sbi_flows.flows.manifold import manifold_flow
from sbi_flows.flows.mean import mean_flow
from sbi_flows.flows.mixed import mixed
from sbi_flows.flows.particles import pair_flow, particle_flow
from sbi_flows.flows.rigid import free_rigid_flow, rigid_flow

ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "realnvp": realnvp,
    "maf": maf,
    "nsf": nsf,
    "cnf": cnf,
    "mixed": mixed,
    "counted": counted,
    "hierarchical": hierarchical,
    "mean_flow": mean_flow,
    "pair_flow": pair_flow,
    "particle_flow": particle_flow,
    "rigid_flow": rigid_flow,
    "free_rigid_flow": free_rigid_flow,
    "manifold_flow": manifold_flow,
}


def build(spec: Mapping[str, Any], generator: torch.Generator | None = None) -> Any:
    """The architecture of ``flow.spec`` again, with fresh weights.

    Examples
    --------
    >>> build(nsf(2, layers=1).spec).features
    2
    """
    arguments = dict(spec)
    name = arguments.pop("architecture", None)
    if name not in ARCHITECTURES:
        raise ValueError(f"Expected an architecture among {', '.join(ARCHITECTURES)}; got {name!r}.")
    return ARCHITECTURES[name](**arguments, generator=generator)
