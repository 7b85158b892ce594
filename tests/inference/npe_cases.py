"""Problems for NPE, one of them with a known posterior, and settings that fit them in a moment."""

import numpy as np
import torch

from sbi_flows import NPE, ConditionalFlow
from sbi_flows.distributions import BoxUniform, MultivariateNormal


def conjugate(n, seed=0):
    """theta ~ N(0, I), x = theta + N(0, I / 4): the posterior is N(0.8 x, 0.2 I)."""
    generator = torch.Generator().manual_seed(seed)
    prior = MultivariateNormal([0.0, 0.0], np.eye(2))
    theta = prior.sample(n, generator)
    return prior, theta.numpy(), (theta + 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)).numpy()


QUICK = {"flow": "maf", "layers": 1, "hidden": (8,), "max_epochs": 2}


def quick(prior, **settings):
    return NPE(prior, ConditionalFlow(**{**QUICK, **settings}), random_state=0)


def uniform_problem(n=400, columns=2):
    prior = BoxUniform([0.0] * columns, [1.0] * columns)
    theta = prior.sample(n, torch.Generator().manual_seed(0)).numpy()
    return prior, theta, theta + 0.1 * np.random.default_rng(0).normal(size=theta.shape)


def curved(n):
    """A problem that the linear start of a fit does not solve: polar coordinates seen as Cartesian ones."""
    prior = BoxUniform([0.5, 0.0], [1.0, 5.0])
    theta = prior.sample(n, torch.Generator().manual_seed(0)).numpy()
    x = theta[:, :1] * np.stack([np.cos(theta[:, 1]), np.sin(theta[:, 1])], axis=1)
    return prior, theta, x + 0.05 * np.random.default_rng(0).normal(size=x.shape)
