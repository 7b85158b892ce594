"""Evidence from samples, and comparison of models."""

from sbi_flows.model_evidence.compare import average_models, compare_models
from sbi_flows.model_evidence.estimate import evidence
from sbi_flows.model_evidence.nested import BIRTH, N_LIVE, live_points, log_weights
from sbi_flows.model_evidence.savage_dickey import savage_dickey

__all__ = ["BIRTH", "N_LIVE", "average_models", "compare_models", "evidence", "live_points", "log_weights", "savage_dickey"]
