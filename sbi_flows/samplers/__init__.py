"""Markov chains of many rows at once: kernels, and ``run_chains`` that runs them."""

from sbi_flows.samplers.convergence import Convergence, convergence
from sbi_flows.samplers.diffusion import DiffusionSampler, diffusion_sampler
from sbi_flows.samplers.dynesty_runner import run_dynesty
from sbi_flows.samplers.emcee_move import FlowMove
from sbi_flows.samplers.emcee_runner import run_emcee
from sbi_flows.samplers.gradients import GradientState
from sbi_flows.samplers.hmc import HMC
from sbi_flows.samplers.independent import IndependentMetropolis, IndependentState
from sbi_flows.samplers.kernel import Info, Kernel, as_kernel, metropolis
from sbi_flows.samplers.mala import MALA
from sbi_flows.samplers.mixed import Mixed, MixedState
from sbi_flows.samplers.nuts import NUTS
from sbi_flows.samplers.parallel_tempering import parallel_tempering
from sbi_flows.samplers.path_proposal import PathProposal
from sbi_flows.samplers.path_sampler import PathSampler
from sbi_flows.samplers.random_walk import RandomWalk, RandomWalkState
from sbi_flows.samplers.run import judge, run_chains
from sbi_flows.samplers.smc import smc
from sbi_flows.samplers.stochastic_flow import StochasticFlow, stochastic_flow
from sbi_flows.samplers.stretch import Stretch, StretchState
from sbi_flows.samplers.tempering import anneal

__all__ = [
    "HMC",
    "MALA",
    "NUTS",
    "Convergence",
    "DiffusionSampler",
    "FlowMove",
    "GradientState",
    "IndependentMetropolis",
    "IndependentState",
    "Info",
    "Kernel",
    "Mixed",
    "MixedState",
    "PathProposal",
    "PathSampler",
    "RandomWalk",
    "RandomWalkState",
    "StochasticFlow",
    "Stretch",
    "StretchState",
    "anneal",
    "as_kernel",
    "convergence",
    "diffusion_sampler",
    "judge",
    "metropolis",
    "parallel_tempering",
    "run_chains",
    "run_dynesty",
    "run_emcee",
    "smc",
    "stochastic_flow",
]
