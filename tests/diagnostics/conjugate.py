"""A conjugate Gaussian problem with an exact posterior, and four ways to break it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

D = 2
# Unlike spreads and a mixing of the parameters in x, so that swapped columns and ignored data are errors one can see.
PRIOR_STD = np.array([1.0, 2.0])
MIXING = np.array([[1.0, 0.4], [0.0, 1.0], [0.5, -0.5]])
NOISE_STD = 0.7


def simulate(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    theta = PRIOR_STD * rng.normal(size=(n, D))
    return theta, theta @ MIXING.T + NOISE_STD * rng.normal(size=(n, len(MIXING)))


@dataclass
class Gaussian:
    """The exact posterior N(mean(x), covariance), unless told to shift, stretch, swap or ignore."""

    shift: float = 0.0
    stretch: float = 1.0
    swap: bool = False
    ignore_x: bool = False

    def _moments(self, x):
        if self.ignore_x:
            return np.zeros((len(x), D)), np.diag(PRIOR_STD)
        precision = np.diag(PRIOR_STD**-2.0) + MIXING.T @ MIXING / NOISE_STD**2
        covariance = np.linalg.inv(precision)
        mean = x @ MIXING / NOISE_STD**2 @ covariance
        return mean + self.shift * np.sqrt(np.diag(covariance)), self.stretch * np.linalg.cholesky(covariance)

    def sample(self, x, n_samples, random_state=None):
        mean, root = self._moments(x)
        noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, D))
        draws = mean[:, None] + noise @ root.T
        return draws[..., ::-1] if self.swap else draws

    def log_prob(self, theta, x):
        theta = theta[:, ::-1] if self.swap else theta
        mean, root = self._moments(x)
        return stats.multivariate_normal(np.zeros(D), root @ root.T).logpdf(theta - mean).reshape(len(theta))


EXACT = Gaussian()
BROKEN = {
    "too narrow": Gaussian(stretch=0.7),
    "too wide": Gaussian(stretch=1.5),
    "shifted": Gaussian(shift=0.4),
    "swapped": Gaussian(swap=True),
    "prior returned": Gaussian(ignore_x=True),
}
