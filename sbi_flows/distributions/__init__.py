"""Base densities of flows, and priors: each a module with ``sample`` and ``log_prob``."""

from sbi_flows.distributions.adapters import as_prior, from_pair, from_scipy, from_torch
from sbi_flows.distributions.base import Distribution
from sbi_flows.distributions.bases import Columns, NormalMixture, StandardNormal, StudentT, Torus
from sbi_flows.distributions.priors import BoxUniform, Choice, MultivariateNormal, Product

__all__ = [
    "BoxUniform",
    "Choice",
    "Columns",
    "Distribution",
    "MultivariateNormal",
    "NormalMixture",
    "Product",
    "StandardNormal",
    "StudentT",
    "Torus",
    "as_prior",
    "from_pair",
    "from_scipy",
    "from_torch",
]
