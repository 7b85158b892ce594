"""Atmospheres of transiting planets: synthetic spectra, exact likelihoods, amortised retrieval, and the score of the data challenge."""

from sbi_flows.physics.exoplanets.opacities import GASES, cross_sections
from sbi_flows.physics.exoplanets.planets import Planets, simulate_planets
from sbi_flows.physics.exoplanets.retrieval import AtmosphereNPE, planet_target
from sbi_flows.physics.exoplanets.score import ChallengeScore, challenge_score
from sbi_flows.physics.exoplanets.transit import NAMES, WAVELENGTHS, planet_prior, transit_radius

__all__ = [
    "GASES",
    "NAMES",
    "WAVELENGTHS",
    "AtmosphereNPE",
    "ChallengeScore",
    "Planets",
    "challenge_score",
    "cross_sections",
    "planet_prior",
    "planet_target",
    "simulate_planets",
    "transit_radius",
]
