"""What samplers sample: unnormalised log-densities of whole batches, and the ways to make one from another."""

from sbi_flows.targets.base import (
    Target,
    circular_columns,
    from_log_prob,
    posterior,
    pulled_back,
    tempered,
    unconstrained,
    wrap_angles,
)
from sbi_flows.targets.evaluation import LogDensity, from_numpy

__all__ = [
    "LogDensity",
    "Target",
    "circular_columns",
    "from_log_prob",
    "from_numpy",
    "posterior",
    "pulled_back",
    "tempered",
    "unconstrained",
    "wrap_angles",
]
