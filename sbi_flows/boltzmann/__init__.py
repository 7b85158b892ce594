"""Boltzmann sampling: an energy in; weighted configurations and free energies out."""

from sbi_flows.boltzmann.free_energy import FreeEnergy
from sbi_flows.boltzmann.generator import BoltzmannGenerator
from sbi_flows.boltzmann.target import BoltzmannTarget

__all__ = ["BoltzmannGenerator", "BoltzmannTarget", "FreeEnergy"]
