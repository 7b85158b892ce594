"""What samplers sample: unnormalised log-densities of whole batches, and the ways to make one from another."""

from sbi_flows.targets.adapters import from_bilby, from_cobaya, from_emcee
from sbi_flows.targets.angles import circular_columns, wrap_angles
from sbi_flows.targets.base import Target, as_target, from_log_prob, posterior
from sbi_flows.targets.evaluation import LogDensity
from sbi_flows.targets.gradient_check import check_gradient
from sbi_flows.targets.mapped import pulled_back, tempered, unconstrained
from sbi_flows.targets.numpy_functions import NumpyFunction, from_numpy
from sbi_flows.targets.unit_cube import UnitCubeTarget, cube_transform, from_dynesty

__all__ = [
    "LogDensity",
    "NumpyFunction",
    "Target",
    "UnitCubeTarget",
    "as_target",
    "check_gradient",
    "circular_columns",
    "cube_transform",
    "from_bilby",
    "from_cobaya",
    "from_dynesty",
    "from_emcee",
    "from_log_prob",
    "from_numpy",
    "posterior",
    "pulled_back",
    "tempered",
    "unconstrained",
    "wrap_angles",
]
