"""Gaussian mixtures as energies: normalised, so ln Z is zero, and every mode is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows._validation import positive
from sbi_flows.physics.molecules.energy import Energy


class GaussianMixture(Energy):
    """``-ln`` of a mixture of equal spherical Gaussians with equal weights.

    Parameters
    ----------
    means : array (k, features)
    variance : float
        Of each coordinate.
    name : str

    Examples
    --------
    >>> energy = GaussianMixture([[0.0]], variance=1.0, name="normal")
    >>> energy(torch.zeros(1, 1))
    tensor([0.9189])
    """

    log_z = 0.0

    def __init__(self, means, variance: float, name: str = "Gaussian mixture"):
        positive("variance", variance)
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ValueError(f"Expected means of shape (k, d); got {tuple(self.means.shape)}.")
        self.variance, self.name = float(variance), name
        self.features = self.means.shape[1]

    def energy(self, x):
        distance = (x[:, None] - self.means.to(x)).square().sum(-1)
        log_norm = 0.5 * self.features * math.log(2 * math.pi * self.variance) + math.log(len(self.means))
        return log_norm - torch.logsumexp(-0.5 / self.variance * distance, 1)

    @property
    def modes(self) -> Tensor:
        return self.means

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` exact draws, float64."""
        which = torch.randint(len(self.means), (n,), generator=generator)
        return self.means[which] + math.sqrt(self.variance) * randn((n, self.features), generator, dtype=torch.float64)

    def start(self, n, generator):
        spread = self.means.std(0, correction=0) + math.sqrt(self.variance)
        return self.means.mean(0) + spread * randn((n, self.features), generator, dtype=torch.float64)


def gmm9() -> GaussianMixture:
    """Nine Gaussians of variance 0.3 on the grid {-5, 0, 5}^2."""
    return GaussianMixture(list(itertools.product((-5.0, 0.0, 5.0), repeat=2)), 0.3, "GMM-9")


def gmm40(seed: int = 0) -> GaussianMixture:
    """Forty Gaussians of unit variance, means uniform in [-40, 40]^2 drawn by numpy's ``default_rng(seed)``.

    References
    ----------
    Midgley et al. 2023, "Flow annealed importance sampling bootstrap", arXiv:2208.01893 (with other means and variance 1.72).
    """
    return GaussianMixture(np.random.default_rng(seed).uniform(-40, 40, (40, 2)), 1.0, "GMM-40")
