"""The scikit-learn face: densities fitted to rows, and densities of one thing given another."""

from sbi_flows.estimators.conditional import ConditionalFlow
from sbi_flows.estimators.density import FlowDensity
from sbi_flows.estimators.ensemble import FlowEnsemble
from sbi_flows.estimators.ratio import RatioClassifier

__all__ = ["ConditionalFlow", "FlowDensity", "FlowEnsemble", "RatioClassifier"]
