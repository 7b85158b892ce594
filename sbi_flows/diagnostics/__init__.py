"""How far apart two sets of draws are, and whether chains and posteriors can be believed."""

from sbi_flows.diagnostics.chains import ChainComparison, compare_chains
from sbi_flows.diagnostics.classifiers import C2ST, c2st
from sbi_flows.diagnostics.coverage import Coverage, expected_coverage
from sbi_flows.diagnostics.distances import hellinger, hellinger_floor, hellinger_joint, wasserstein, wasserstein2
from sbi_flows.diagnostics.draws import PosteriorDraws, PosteriorEstimator, posterior_draws
from sbi_flows.diagnostics.kernel import MMD, mmd
from sbi_flows.diagnostics.local import LocalC2ST, joint_c2st, local_c2st
from sbi_flows.diagnostics.outliers import Misspecification, misspecification
from sbi_flows.diagnostics.predictive import PosteriorPredictive, posterior_predictive
from sbi_flows.diagnostics.random_points import tarp
from sbi_flows.diagnostics.ranks import SBC, sbc
from sbi_flows.diagnostics.report import Diagnosis, diagnose

__all__ = [
    "C2ST",
    "MMD",
    "SBC",
    "ChainComparison",
    "Coverage",
    "Diagnosis",
    "LocalC2ST",
    "Misspecification",
    "PosteriorDraws",
    "PosteriorEstimator",
    "PosteriorPredictive",
    "c2st",
    "compare_chains",
    "diagnose",
    "expected_coverage",
    "hellinger",
    "hellinger_floor",
    "hellinger_joint",
    "joint_c2st",
    "local_c2st",
    "misspecification",
    "mmd",
    "posterior_draws",
    "posterior_predictive",
    "sbc",
    "tarp",
    "wasserstein",
    "wasserstein2",
]
