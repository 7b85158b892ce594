"""Simulation-based inference: a simulator and a prior in, posteriors out."""

from sbi_flows.inference.flow_posterior import FlowPosterior
from sbi_flows.inference.model_calibration import Calibration
from sbi_flows.inference.model_probability import ModelClassifier, ModelProbabilities
from sbi_flows.inference.nle import NLE
from sbi_flows.inference.npe import NPE
from sbi_flows.inference.nre import NRE
from sbi_flows.inference.posterior import Posterior
from sbi_flows.inference.sequential import draw_truncated, sequential
from sbi_flows.inference.simulate import simulate
from sbi_flows.inference.target_posterior import TargetPosterior
from sbi_flows.inference.variational import VariationalPosterior, variational

__all__ = [
    "NLE",
    "NPE",
    "NRE",
    "Calibration",
    "FlowPosterior",
    "ModelClassifier",
    "ModelProbabilities",
    "Posterior",
    "TargetPosterior",
    "VariationalPosterior",
    "draw_truncated",
    "sequential",
    "simulate",
    "variational",
]
