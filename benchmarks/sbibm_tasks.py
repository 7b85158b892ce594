"""The ten tasks of the simulation-based inference benchmark, batched in torch, and the published observations and posteriors.

Written from their definitions (Lueckmann, Boelts, Greenberg, Goncalves & Macke 2021, arXiv:2101.04653); nothing is imported from
``sbibm``, whose dependencies no longer install. Observations and reference posteriors are read straight from its wheel::

    pip download --no-deps sbibm==1.1.0
"""

from __future__ import annotations

import bz2
import io
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_flows.distributions import BoxUniform, Distribution, MultivariateNormal, from_torch

WHEEL = "sbibm-1.1.0-py2.py3-none-any.whl"
OBSERVATIONS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Task:
    """A prior and a simulator.

    Attributes
    ----------
    name : str
    prior : Distribution
    simulate : callable
        ``simulate(theta (n, d), generator) -> (n, c)``, float64.
    folder, observation_file : str
        Where the wheel keeps the observations.
    """

    name: str
    prior: Distribution
    simulate: Callable[[Tensor, torch.Generator], Tensor]
    folder: str
    observation_file: str = "observation.csv"

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """``theta (n, d)`` from the prior and ``x (n, c)``."""
        generator = torch.Generator().manual_seed(seed)
        theta = self.prior.sample(n, generator)
        return theta.numpy(), self.simulate(theta, generator).numpy()


# --- Gaussian tasks ---------------------------------------------------------------------------------------------------------


def _gaussian(theta, generator):
    return theta + math.sqrt(0.1) * _randn(theta.shape, generator)


def _gaussian_mixture(theta, generator):
    """A broad and a narrow component about theta, equally likely."""
    narrow = torch.rand(len(theta), 1, generator=generator, dtype=torch.float64) < 0.5
    return theta + torch.where(narrow, 0.1, 1.0) * _randn(theta.shape, generator)


# --- Two moons and SLCP -----------------------------------------------------------------------------------------------------


def _two_moons(theta, generator):
    """A half circle of radius 0.1 +- 0.01, shifted by |theta_1 + theta_2| and by theta_2 - theta_1."""
    angle = math.pi * (torch.rand(len(theta), generator=generator, dtype=torch.float64) - 0.5)
    radius = 0.1 + 0.01 * _randn((len(theta),), generator)
    across, along = theta.sum(1).abs() / math.sqrt(2), (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    return torch.stack([radius * angle.cos() + 0.25 - across, radius * angle.sin() + along], dim=1)


def _slcp(theta, generator):
    """Four draws of a bivariate normal: means theta_1, theta_2, deviations theta_3^2, theta_4^2, correlation tanh theta_5."""
    first, second = _randn((2, len(theta), 4), generator)
    s1, s2, rho = theta[:, 2:3].square(), theta[:, 3:4].square(), theta[:, 4:5].tanh()
    x = theta[:, 0:1] + s1 * first
    y = theta[:, 1:2] + s2 * (rho * first + (1 - rho.square()).sqrt() * second)
    return torch.stack([x, y], dim=2).reshape(len(theta), 8)


_NOISE, _COMPONENTS = 92, 20


@cache
def distractors() -> tuple[Tensor, Tensor, Tensor]:
    """Of the mixture of 20 Student t densities: locations (20, 92), scale factors (20, 92, 92); and the order of the 100 columns.

    The benchmark draws them once from numpy's legacy stream of seed 42.
    """
    stream = np.random.RandomState(42)
    location = np.stack([15 * stream.normal(size=_NOISE) for _ in range(_COMPONENTS)])
    factors = []
    for _ in range(_COMPONENTS):
        lower = np.tril(stream.normal(size=(_NOISE, _NOISE)))
        factors.append(3 * (lower + np.diag(np.exp(stream.normal(size=_NOISE)))))
    order = stream.permutation(_NOISE + 8)
    return torch.from_numpy(location), torch.from_numpy(np.stack(factors)), torch.from_numpy(order)


def _slcp_distractors(theta, generator):
    n = len(theta)
    location, factor, order = distractors()
    normal = _randn((n, _NOISE), generator)
    # A t of two degrees: the variance of a normal divided by half a chi-square of two, which is exponential.
    rate = -torch.log(1 - torch.rand(n, 1, generator=generator, dtype=torch.float64))
    which = torch.randint(_COMPONENTS, (n,), generator=generator)
    noise = torch.empty_like(normal)
    for component in range(_COMPONENTS):
        rows = which == component
        noise[rows] = location[component] + (normal[rows] @ factor[component].T) / rate[rows].sqrt()
    return torch.cat([_slcp(theta, generator), noise], dim=1)[:, order]


# --- Bernoulli GLM ----------------------------------------------------------------------------------------------------------

_BINS, _LAGS = 100, 9


@cache
def design_matrix() -> Tensor:
    """(100, 10): ones, then the white-noise stimulus delayed by 0 to 8 bins (float32 values, as published)."""
    stimulus = torch.from_numpy(np.random.RandomState(42).randn(_BINS).astype(np.float32)).double()
    delayed = [torch.cat([torch.zeros(lag, dtype=torch.float64), stimulus[: _BINS - lag]]) for lag in range(_LAGS)]
    return torch.stack([torch.ones(_BINS, dtype=torch.float64), *delayed], dim=1)


def _glm_prior() -> MultivariateNormal:
    """Second differences of the filter are penalised, later lags more."""
    difference = np.eye(_LAGS) - np.diag(np.ones(_LAGS - 1), -1)
    rough = difference @ difference + np.diag(np.sqrt(np.arange(_LAGS) / _LAGS))
    precision = np.zeros((_LAGS + 1, _LAGS + 1))
    precision[0, 0] = 0.5
    precision[1:, 1:] = rough.T @ rough
    covariance = np.linalg.inv(precision)
    return MultivariateNormal(np.zeros(_LAGS + 1), (covariance + covariance.T) / 2)


def _spikes(theta, generator):
    rate = torch.sigmoid(theta @ design_matrix().T)
    return (torch.rand(rate.shape, generator=generator, dtype=torch.float64) < rate).double()


def _glm(theta, generator):
    """The sufficient statistics: spike count and spike-triggered sums of the stimulus."""
    return _spikes(theta, generator) @ design_matrix()


# --- Differential equations -------------------------------------------------------------------------------------------------


def solve(rhs: Callable[[Tensor], Tensor], start: Tensor, times: int, interval: float, steps: int) -> Tensor:
    """Classical Runge-Kutta of fourth order: the state at 0, interval, 2 interval, ...; ``(times, *start.shape)``."""
    h, y, out = interval / steps, start, [start]
    for _ in range(times - 1):
        for _ in range(steps):
            k1 = rhs(y)
            k2 = rhs(y + 0.5 * h * k1)
            k3 = rhs(y + 0.5 * h * k2)
            k4 = rhs(y + h * k3)
            y = y + (h / 6) * (k1 + 2 * (k2 + k3) + k4)
        out.append(y)
    return torch.stack(out)


def infected(theta: Tensor, steps: int = 136) -> Tensor:
    """SIR: the infected share of 1e6 people at days 0, 17, ..., 153, ``(n, 10)``, from one infected.

    In logarithms both equations are linear where the epidemic starts and ends, so a fixed step is accurate.
    """
    beta, gamma = theta.T

    def rhs(y):
        susceptible, ill = y.exp()
        return torch.stack([-beta * ill, beta * susceptible - gamma])

    start = torch.tensor([math.log(1 - 1e-6), math.log(1e-6)], dtype=torch.float64)[:, None].expand(2, len(theta))
    return solve(rhs, start, 10, 17.0, steps)[:, 1].exp().T


def _sir(theta, generator):
    return torch.binomial(torch.full((len(theta), 10), 1000.0, dtype=torch.float64), infected(theta).clamp(0, 1), generator=generator)


def populations(theta: Tensor, steps: int = 300) -> Tensor:
    """Lotka-Volterra: log prey and log predators at t = 0, 2.1, ..., 18.9, ``(n, 20)``, from 30 and 1."""
    alpha, beta, gamma, delta = theta.T

    def rhs(y):
        prey, predators = y.exp()
        return torch.stack([alpha - beta * predators, delta * prey - gamma])

    start = torch.tensor([math.log(30.0), 0.0], dtype=torch.float64)[:, None].expand(2, len(theta))
    return solve(rhs, start, 10, 2.1, steps).permute(2, 1, 0).reshape(len(theta), 20)


def _lotka_volterra(theta, generator):
    log_size = populations(theta).clamp(math.log(1e-10), math.log(1e4))
    return torch.exp(log_size + 0.1 * _randn(log_size.shape, generator))


def _log_normal(location, scale):
    location, scale = (torch.tensor(v, dtype=torch.float64) for v in (location, scale))
    return from_torch(torch.distributions.LogNormal(location, scale))


# --- The list ---------------------------------------------------------------------------------------------------------------


def _box(d: int, end: float) -> BoxUniform:
    return BoxUniform([-end] * d, [end] * d)


@cache
def tasks() -> dict[str, Task]:
    """All ten, by name."""
    rates = _log_normal([-0.125, -3.0, -0.125, -3.0], [0.5] * 4)
    contact = _log_normal([math.log(0.4), math.log(0.125)], [0.5, 0.2])
    every = [
        Task("bernoulli_glm", _glm_prior(), _glm, "bernoulli_glm"),
        Task("bernoulli_glm_raw", _glm_prior(), _spikes, "bernoulli_glm", "observation_raw.csv"),
        Task("gaussian_linear", MultivariateNormal(np.zeros(10), 0.1 * np.eye(10)), _gaussian, "gaussian_linear"),
        Task("gaussian_linear_uniform", _box(10, 1.0), _gaussian, "gaussian_linear_uniform"),
        Task("gaussian_mixture", _box(2, 10.0), _gaussian_mixture, "gaussian_mixture"),
        Task("lotka_volterra", rates, _lotka_volterra, "lotka_volterra"),
        Task("sir", contact, _sir, "sir"),
        Task("slcp", _box(5, 3.0), _slcp, "slcp"),
        Task("slcp_distractors", _box(5, 3.0), _slcp_distractors, "slcp", "observation_distractors.csv"),
        Task("two_moons", _box(2, 1.0), _two_moons, "two_moons"),
    ]
    return {task.name: task for task in every}


# --- Published observations and posteriors ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """One observation: ``x (c,)``, the parameters it was made from ``(d,)``, and 10 000 draws of its posterior."""

    x: np.ndarray
    theta_true: np.ndarray
    posterior: np.ndarray


def find_wheel() -> Path:
    """The wheel: the path in ``SBIBM_WHEEL``, or its own name in the working directory; ``FileNotFoundError`` otherwise."""
    path = Path(os.environ.get("SBIBM_WHEEL", WHEEL))
    if not path.is_file():
        raise FileNotFoundError(f"Expected {WHEEL} at {path.resolve()}: `pip download --no-deps sbibm==1.1.0`, or set SBIBM_WHEEL to it.")
    return path


def published(task: Task, observation: int, wheel: Path | None = None) -> Published:
    """Observation 1 to 10 of a task, from the wheel."""
    folder = f"sbibm/tasks/{task.folder}/files/num_observation_{observation}"
    with zipfile.ZipFile(wheel or find_wheel()) as archive:

        def table(name):
            content = archive.read(f"{folder}/{name}")
            content = bz2.decompress(content) if name.endswith(".bz2") else content
            return np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1, ndmin=2)

        return Published(table(task.observation_file)[0], table("true_parameters.csv")[0], table("reference_posterior_samples.csv.bz2"))


def _randn(shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)
