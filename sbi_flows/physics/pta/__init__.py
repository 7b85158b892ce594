"""Pulsar timing arrays: which source explains the free spectrum of the gravitational-wave background?"""

from sbi_flows.physics.pta.embedded import (
    DEFAULT_BINS,
    embedded_degrees_of_freedom,
    embedded_free_spectrum,
    embedded_tables,
    pta_target,
)
from sbi_flows.physics.pta.free_spectrum import FreeSpectrum, FreeSpectrumLikelihood
from sbi_flows.physics.pta.models import DEFAULT_MODELS, MODELS, Model, Parameter, get_model
from sbi_flows.physics.pta.spectra import Background
from sbi_flows.physics.pta.tables import GridSpectrum, SpectrumTable
from sbi_flows.physics.pta.target import FreeSpectrumTarget
from sbi_flows.physics.pta.timing import TimingTarget, timing_likelihood
from sbi_flows.physics.pta.timing_arrays import PulsarArray, ng15_pulsars
from sbi_flows.physics.pta.timing_correlations import correlation_matrix
from sbi_flows.physics.pta.timing_feather import read_feathers
from sbi_flows.physics.pta.timing_synthetic import synthetic_pulsars

__all__ = [
    "DEFAULT_BINS",
    "DEFAULT_MODELS",
    "MODELS",
    "Background",
    "FreeSpectrum",
    "FreeSpectrumLikelihood",
    "FreeSpectrumTarget",
    "GridSpectrum",
    "Model",
    "Parameter",
    "PulsarArray",
    "SpectrumTable",
    "TimingTarget",
    "correlation_matrix",
    "embedded_degrees_of_freedom",
    "embedded_free_spectrum",
    "embedded_tables",
    "get_model",
    "ng15_pulsars",
    "pta_target",
    "read_feathers",
    "synthetic_pulsars",
    "timing_likelihood",
]
