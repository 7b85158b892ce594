"""Training losses: functions ``loss(flow, batch, generator)`` that return one number a row."""

from sbi_flows.losses.alpha_divergence import alpha_two
from sbi_flows.losses.atomic import atomic
from sbi_flows.losses.base import Batch, Loss
from sbi_flows.losses.censored import censored_nll
from sbi_flows.losses.couplings import COUPLINGS, Coupling
from sbi_flows.losses.forces import force_matching
from sbi_flows.losses.known_density import known_density, known_density_through_solver
from sbi_flows.losses.likelihood import nll, nll_through_solver
from sbi_flows.losses.manifolds import manifold_flow_matching
from sbi_flows.losses.matching import denoising_score_matching, flow_matching
from sbi_flows.losses.path_gradient import forward_kl, reverse_kl
from sbi_flows.losses.ratio import balanced, contrastive
from sbi_flows.losses.rigid import rigid_flow_matching

__all__ = [
    "COUPLINGS",
    "Batch",
    "Coupling",
    "Loss",
    "alpha_two",
    "atomic",
    "balanced",
    "censored_nll",
    "contrastive",
    "denoising_score_matching",
    "flow_matching",
    "force_matching",
    "forward_kl",
    "known_density",
    "known_density_through_solver",
    "manifold_flow_matching",
    "nll",
    "nll_through_solver",
    "reverse_kl",
    "rigid_flow_matching",
]
