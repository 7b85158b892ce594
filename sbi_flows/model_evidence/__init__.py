"""Evidence from samples, and comparison of models."""

from sbi_flows.model_evidence.compare import average_models, compare_models
from sbi_flows.model_evidence.estimate import evidence
from sbi_flows.model_evidence.savage_dickey import savage_dickey

__all__ = ["average_models", "compare_models", "evidence", "savage_dickey"]
