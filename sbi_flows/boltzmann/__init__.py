"""Boltzmann sampling: an energy in; weighted configurations and free energies out."""

from sbi_flows.bijections.z_matrix import ZMatrix, z_matrix
from sbi_flows.boltzmann.checks import FitReport
from sbi_flows.boltzmann.coordinates import Coordinates, MeanFreeCoordinates, MoleculeCoordinates, RigidCoordinates
from sbi_flows.boltzmann.difference import free_energy_difference
from sbi_flows.boltzmann.free_energy import FreeEnergy
from sbi_flows.boltzmann.generator import BoltzmannGenerator
from sbi_flows.boltzmann.target import BoltzmannTarget

__all__ = [
    "BoltzmannGenerator",
    "BoltzmannTarget",
    "Coordinates",
    "FitReport",
    "FreeEnergy",
    "MeanFreeCoordinates",
    "MoleculeCoordinates",
    "RigidCoordinates",
    "ZMatrix",
    "free_energy_difference",
    "z_matrix",
]
