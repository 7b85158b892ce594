"""A problem with known answers: theta ~ N(0, I), x = theta + N(0, I / 4), any number of trials."""

import numpy as np
import torch

from sbi_flows.distributions import MultivariateNormal


def simulations(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prior = MultivariateNormal([0.0, 0.0], np.eye(2))
    theta = prior.sample(n, generator)
    return prior, theta.numpy(), (theta + 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)).numpy()


def exact_posterior(trials):
    """Mean ``(2,)`` and variance of each parameter given ``(t, 2)``."""
    precision = 1 + 4 * len(trials)
    return 4 * np.sum(trials, axis=0) / precision, 1 / precision


def observed_trials(t, seed=3):
    return np.array([0.7, -0.4]) + 0.5 * np.random.default_rng(seed).normal(size=(t, 2))
