"""Flows: a bijection and a base density. Functions build them; :func:`build` rebuilds one from its spec."""

from sbi_flows.flows.base import Flow
from sbi_flows.flows.continuous import cnf
from sbi_flows.flows.counts import CountColumn, CountDensity, CountFlow, counted
from sbi_flows.flows.discrete import maf, nsf, realnvp
from sbi_flows.flows.hierarchical import hierarchical
from sbi_flows.flows.manifold import manifold_flow
from sbi_flows.flows.mean import MeanFlow, mean_flow
from sbi_flows.flows.mixed import MixedDensity, MixedFlow, mixed
from sbi_flows.flows.particles import pair_flow, particle_flow
from sbi_flows.flows.partly_discrete import PartlyDiscrete
from sbi_flows.flows.registry import ARCHITECTURES, build
from sbi_flows.flows.rigid import free_rigid_flow, rigid_flow
from sbi_flows.flows.together import Together, can_go_together

__all__ = [
    "ARCHITECTURES",
    "CountColumn",
    "CountDensity",
    "CountFlow",
    "Flow",
    "MeanFlow",
    "MixedDensity",
    "MixedFlow",
    "PartlyDiscrete",
    "Together",
    "build",
    "can_go_together",
    "cnf",
    "counted",
    "free_rigid_flow",
    "hierarchical",
    "maf",
    "manifold_flow",
    "mean_flow",
    "mixed",
    "nsf",
    "pair_flow",
    "particle_flow",
    "realnvp",
    "rigid_flow",
]
