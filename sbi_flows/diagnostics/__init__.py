"""How far apart two sets of draws are, and whether chains and posteriors can be believed."""

from sbi_flows.diagnostics.coverage import Coverage, expected_coverage
from sbi_flows.diagnostics.distances import hellinger, hellinger_floor
from sbi_flows.diagnostics.draws import PosteriorDraws, PosteriorEstimator, posterior_draws
from sbi_flows.diagnostics.random_points import tarp
from sbi_flows.diagnostics.ranks import SBC, sbc

__all__ = [
    "SBC",
    "Coverage",
    "PosteriorDraws",
    "PosteriorEstimator",
    "expected_coverage",
    "hellinger",
    "hellinger_floor",
    "posterior_draws",
    "sbc",
    "tarp",
]
