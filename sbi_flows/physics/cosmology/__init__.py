"""Distances from baryon acoustic oscillations: is dark energy a constant?"""

from sbi_flows.physics.cosmology.compare import BAOComparison, compare_bao
from sbi_flows.physics.cosmology.data import BAOData, desi_dr2_bao
from sbi_flows.physics.cosmology.distances import ComovingIntegral, expansion_rate
from sbi_flows.physics.cosmology.grid import GridEvidence, grid_evidence
from sbi_flows.physics.cosmology.models import MODELS, CosmologyModel, get_cosmology
from sbi_flows.physics.cosmology.parameters import BestFit, Moments
from sbi_flows.physics.cosmology.target import BAOTarget, bao_target

__all__ = [
    "MODELS",
    "BAOComparison",
    "BAOData",
    "BAOTarget",
    "BestFit",
    "ComovingIntegral",
    "CosmologyModel",
    "GridEvidence",
    "Moments",
    "bao_target",
    "compare_bao",
    "desi_dr2_bao",
    "expansion_rate",
    "get_cosmology",
    "grid_evidence",
]
