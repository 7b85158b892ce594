"""Lattice field theory: U(1) gauge theory and phi^4 in two dimensions, and samplers of their fields with and without a flow."""

from sbi_flows.physics.lattice.action import Action, FieldTarget
from sbi_flows.physics.lattice.exact import exact_log_z, exact_plaquette, exact_susceptibility
from sbi_flows.physics.lattice.flow_action import FlowAction
from sbi_flows.physics.lattice.gauge_flow import gauge_flow, resized
from sbi_flows.physics.lattice.hmc import FieldHMC, FieldInfo, FieldState, leapfrog
from sbi_flows.physics.lattice.observables import Estimate, gamma_method, susceptibility
from sbi_flows.physics.lattice.phi4 import Phi4
from sbi_flows.physics.lattice.proposals import FlowProposal, InTurn, WindingProposal
from sbi_flows.physics.lattice.run import FieldChains, FieldKernel, run_fields
from sbi_flows.physics.lattice.training import Trivialised, trivialise
from sbi_flows.physics.lattice.u1 import U1, gauge_transform, instanton, plaquettes, topological_charge

__all__ = [
    "U1",
    "Action",
    "Estimate",
    "FieldChains",
    "FieldHMC",
    "FieldInfo",
    "FieldKernel",
    "FieldState",
    "FieldTarget",
    "FlowAction",
    "FlowProposal",
    "InTurn",
    "Phi4",
    "Trivialised",
    "WindingProposal",
    "exact_log_z",
    "exact_plaquette",
    "exact_susceptibility",
    "gamma_method",
    "gauge_flow",
    "gauge_transform",
    "instanton",
    "leapfrog",
    "plaquettes",
    "resized",
    "run_fields",
    "susceptibility",
    "topological_charge",
    "trivialise",
]
