"""Energies of molecules, clusters, liquids and crystals, in units of kT, and what is known exactly of them."""

from sbi_flows.physics.molecules.chain import ButaneLike
from sbi_flows.physics.molecules.checks import check_force, check_symmetries
from sbi_flows.physics.molecules.clusters import Cluster, DoubleWellParticles, LennardJones, dw4, lj13, lj55
from sbi_flows.physics.molecules.crystal import HarmonicCrystal
from sbi_flows.physics.molecules.energy import SYMMETRIES, Energy
from sbi_flows.physics.molecules.liquid import KobAndersen
from sbi_flows.physics.molecules.mean_free import MeanFreeEnergy
from sbi_flows.physics.molecules.mixtures import GaussianMixture, gmm9, gmm40
from sbi_flows.physics.molecules.openmm_energy import AlanineDipeptide, OpenMMEnergy
from sbi_flows.physics.molecules.reference import Reference, load_reference, reference_samples, save_reference
from sbi_flows.physics.molecules.rigid import Ice, RigidBodies, Tetrahedron
from sbi_flows.physics.molecules.wells import ManyWell, double_well

__all__ = [
    "SYMMETRIES",
    "AlanineDipeptide",
    "ButaneLike",
    "Cluster",
    "DoubleWellParticles",
    "Energy",
    "GaussianMixture",
    "HarmonicCrystal",
    "Ice",
    "KobAndersen",
    "LennardJones",
    "ManyWell",
    "MeanFreeEnergy",
    "OpenMMEnergy",
    "Reference",
    "RigidBodies",
    "Tetrahedron",
    "check_force",
    "check_symmetries",
    "double_well",
    "dw4",
    "gmm9",
    "gmm40",
    "lj13",
    "lj55",
    "load_reference",
    "reference_samples",
    "save_reference",
]
