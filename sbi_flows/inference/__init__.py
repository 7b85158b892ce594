"""Simulation-based inference: a simulator and a prior in, posteriors out."""

from sbi_flows.inference.npe import NPE
from sbi_flows.inference.posterior import FlowPosterior, Posterior

__all__ = ["NPE", "FlowPosterior", "Posterior"]
