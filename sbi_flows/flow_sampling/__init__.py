"""Markov chains helped by flows: ``FlowSampler``."""

from sbi_flows.flow_sampling.proposal import FlowProposal
from sbi_flows.flow_sampling.report import ModeMasses, SamplerReport
from sbi_flows.flow_sampling.sampler import FlowSampler

__all__ = ["FlowProposal", "FlowSampler", "ModeMasses", "SamplerReport"]
