"""Evidence from samples, and comparison of models."""

from sbi_flows.model_evidence.estimate import evidence

__all__ = ["evidence"]
