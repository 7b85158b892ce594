"""Posteriors whose evidence is known, with draws that are exact or come from long, well-mixed chains.

``PROBLEMS`` lists them all. Every `Problem` is vectorised float64 numpy; a repetition is ``problem.sample(problem.n_draws, rng)``
with its own generator, so repetitions are independent of each other. `shifted`, `widened` and `without_a_mode` spoil draws in the
three ways an evidence estimator ought to notice.

The two classic data sets (Pima Indians, Radiata pine) are read from ``$SBI_FLOWS_DATA/bayes_examples`` on first use; they are
not part of the repository.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.special import betaln, gammaln, i0e, log_ndtr, logsumexp

from sbi_flows.distributions import BoxUniform, MultivariateNormal

Array = np.ndarray
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Problem:
    """A posterior with a known evidence.

    Attributes
    ----------
    name : str
    features : int
        Number of parameters, d.
    log_z : float
        Exact ln Z.
    log_posterior : callable
        ``(n, d)`` float64 to ``(n,)``: ln L + ln prior; -inf outside the support.
    sample : callable
        ``sample(n, rng)`` gives exact independent draws ``(n, d)``, or stationary chains ``(chain, draw, d)`` of n draws in all.
    support : list
        One entry a column, in the package's grammar.
    prior : object or None
        The prior with ``sample``, ``log_prob`` and ``support``, where the problem has a proper one that can be drawn from.
    n_draws : int
        Draws a repetition of the benchmark uses.
    modes : ndarray (m, d) or None
        Places of the modes that each hold at least a tenth of the mass, for a posterior with several.
    """

    name: str
    features: int
    log_z: float
    log_posterior: Callable[[Array], Array]
    sample: Callable[[int, np.random.Generator], Array]
    support: list
    prior: object | None = None
    n_draws: int = 10_000
    modes: Array | None = None


# --- Gaussians and their relatives --------------------------------------------------------------------------------------------


def gaussian(d: int) -> Problem:
    """Unnormalised Gaussian with a random mean and a random covariance of condition number 100."""
    rng = np.random.default_rng(d)
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    factor = rotation * np.geomspace(0.3, 3.0, d) if d > 1 else np.array([[0.7]])
    mean = 3 * rng.standard_normal(d)
    inverse = np.linalg.inv(factor)
    log_z = 0.5 * d * LOG_2PI + np.linalg.slogdet(factor)[1]
    return Problem(
        name=f"gaussian-{d}",
        features=d,
        log_z=float(log_z),
        log_posterior=lambda x: -0.5 * np.sum(((x - mean) @ inverse.T) ** 2, axis=1),
        sample=lambda n, rng: mean + rng.standard_normal((n, d)) @ factor.T,
        support=["real"] * d,
    )


def normal_gamma(prior_strength: float = 1e-2) -> Problem:
    """Mean and precision of 100 normal data under their conjugate prior.

    mu given lam ~ N(0, 1/(tau0 lam)) with tau0 the ``prior_strength``, and lam ~ Gamma(1e-3, rate 1e-3).
    """
    y = np.random.default_rng(0).standard_normal(100)
    n, tau_0, a_0, b_0 = len(y), prior_strength, 1e-3, 1e-3
    tau_n, a_n = tau_0 + n, a_0 + n / 2
    b_n = b_0 + 0.5 * np.sum((y - y.mean()) ** 2) + 0.5 * tau_0 * n * y.mean() ** 2 / tau_n
    mean = n * y.mean() / tau_n
    log_z = (
        gammaln(a_n) - gammaln(a_0) + a_0 * np.log(b_0) - a_n * np.log(b_n) + 0.5 * np.log(tau_0 / tau_n) - 0.5 * n * LOG_2PI
    )

    def log_posterior(x):
        mu, lam = x[:, 0], np.where(x[:, 1] > 0, x[:, 1], np.nan)
        squares = np.sum((y - y.mean()) ** 2) + n * (y.mean() - mu) ** 2
        log_likelihood = 0.5 * n * (np.log(lam) - LOG_2PI) - 0.5 * lam * squares
        log_prior_mu = 0.5 * (np.log(tau_0 * lam) - LOG_2PI - tau_0 * lam * mu**2)
        log_prior_lam = a_0 * np.log(b_0) - gammaln(a_0) + (a_0 - 1) * np.log(lam) - b_0 * lam
        return _minus_inf_outside(log_likelihood + log_prior_mu + log_prior_lam)

    def sample(size, rng):
        lam = rng.gamma(a_n, 1 / b_n, size)
        return np.column_stack([mean + rng.standard_normal(size) / np.sqrt(tau_n * lam), lam])

    return Problem("normal-gamma", 2, float(log_z), log_posterior, sample, ["real", (0.0, np.inf)])


def funnel(d: int = 10) -> Problem:
    """Neal's funnel, normalised: x0 ~ N(0, 9), the others ~ N(0, e^x0)."""

    def log_posterior(x):
        neck, rest = x[:, 0], x[:, 1:]
        log_neck = -0.5 * (neck / 3) ** 2 - np.log(3) - 0.5 * LOG_2PI
        return log_neck - 0.5 * np.sum(rest**2, axis=1) * np.exp(-neck) - 0.5 * (d - 1) * (neck + LOG_2PI)

    def sample(n, rng):
        neck = 3 * rng.standard_normal((n, 1))
        return np.hstack([neck, np.exp(neck / 2) * rng.standard_normal((n, d - 1))])

    return Problem(f"funnel-{d}", d, 0.0, log_posterior, sample, ["real"] * d)


def banana(d: int) -> Problem:
    """A normalised Gaussian bent in its first pair of columns and then turned: curved in every plane, ln Z = 0 at any d."""
    rng = np.random.default_rng(100 + d)
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))

    def bend(z, sign):
        z = z.copy()
        z[:, 1] += sign * 0.5 * (z[:, 0] ** 2 - 1)        # unit Jacobian
        return z

    return Problem(
        name=f"banana-{d}",
        features=d,
        log_z=0.0,
        log_posterior=lambda x: -0.5 * np.sum(bend(x @ rotation, -1) ** 2, axis=1) - 0.5 * d * LOG_2PI,
        sample=lambda n, rng: bend(rng.standard_normal((n, d)), 1) @ rotation.T,
        support=["real"] * d,
    )


# --- Curved and many-moded likelihoods under a box prior ----------------------------------------------------------------------

ROSENBROCK_LOG_Z = {2: -5.804132, 4: -15.101691}


def rosenbrock(d: int) -> Problem:
    """ln L = -sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 under U[-5, 5]^d.

    The chain x_1 -> x_2 -> ... of Gaussians N(x_i^2, 1/200), killed with probability 1 - exp(-(1 - x_i)^2) at each inner link and
    at the walls, has this posterior as the law of its survivors, so the draws are exact (28 % survive at d = 4).
    """

    def log_posterior(x):
        log_likelihood = -np.sum(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2, axis=1)
        return np.where((np.abs(x) <= 5).all(axis=1), log_likelihood - d * np.log(10), -np.inf)

    def propose(n, rng):
        x = np.empty((n, d))
        x[:, 0] = 1 + rng.standard_normal(n) / np.sqrt(2)
        for i in range(1, d):
            x[:, i] = x[:, i - 1] ** 2 + rng.standard_normal(n) / np.sqrt(200)
        survival = np.exp(-np.sum((1 - x[:, 1:-1]) ** 2, axis=1))
        return x[(np.abs(x) <= 5).all(axis=1) & (rng.random(n) < survival)]

    return Problem(
        name=f"rosenbrock-{d}",
        features=d,
        log_z=ROSENBROCK_LOG_Z[d],
        log_posterior=log_posterior,
        sample=lambda n, rng: _until(n, propose, rng),
        support=[(-5.0, 5.0)] * d,
        prior=BoxUniform([-5.0] * d, [5.0] * d),
    )


def rastrigin() -> Problem:
    """ln L = -sum(x^2 - 10 cos 2 pi x + 10) under U[-6, 6]^2: a product of two one-dimensional combs."""

    def log_comb(x):
        return -(x**2) + 10 * np.cos(2 * np.pi * x) - 10

    def log_posterior(x):
        return np.where((np.abs(x) <= 6).all(axis=1), log_comb(x).sum(axis=1) - 2 * np.log(12), -np.inf)

    comb = _GridSampler(log_comb, -6.0, 6.0, cells=12_000, margin=0.04)        # slope at most 75, half a cell 5e-4
    neighbours = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=float)
    return Problem(
        name="rastrigin-2",
        features=2,
        log_z=-7.938943,
        log_posterior=log_posterior,
        sample=lambda n, rng: comb.sample(2 * n, rng).reshape(n, 2),
        support=[(-6.0, 6.0)] * 2,
        prior=BoxUniform([-6.0] * 2, [6.0] * 2),
        modes=neighbours,
    )


def gaussian_grid() -> Problem:
    """Nine equal Gaussians of variance 0.3 at {-5, 0, 5}^2, normalised, cut by the prior U[-8, 8]^2 (ln Z is -3e-8, not 0)."""
    scale = np.sqrt(0.3)
    means = np.array([[a, b] for a in (-5.0, 0.0, 5.0) for b in (-5.0, 0.0, 5.0)])
    inside = np.log1p(-np.exp(log_ndtr((-8 - means) / scale)) - np.exp(log_ndtr((means - 8) / scale))).sum(axis=1)

    def log_posterior(x):
        squares = ((x[:, None, :] - means) ** 2).sum(axis=2) / 0.3
        log_density = logsumexp(-0.5 * squares, axis=1) - np.log(9) - LOG_2PI - np.log(0.3)
        return np.where((np.abs(x) <= 8).all(axis=1), log_density, -np.inf)

    def propose(n, rng):
        x = means[rng.integers(9, size=n)] + scale * rng.standard_normal((n, 2))
        return x[(np.abs(x) <= 8).all(axis=1)]

    return Problem(
        name="gmm-9",
        features=2,
        log_z=float(logsumexp(inside) - np.log(9)),
        log_posterior=log_posterior,
        sample=lambda n, rng: _until(n, propose, rng),
        support=[(-8.0, 8.0)] * 2,
        prior=BoxUniform([-8.0] * 2, [8.0] * 2),
        modes=means,
    )


# --- Circles and edges --------------------------------------------------------------------------------------------------------


def von_mises_pair() -> Problem:
    """Two correlated angles, ln p = 3 cos u + 2 cos v + 1.5 cos(u - v), u and v measured from means close to the seam at +-pi."""
    means, k_u, k_v, k_uv = np.array([2.9, -2.5]), 3.0, 2.0, 1.5

    def log_posterior(x):
        u, v = (x - means).T
        log_density = k_u * np.cos(u) + k_v * np.cos(v) + k_uv * np.cos(u - v)
        return np.where(((x >= -np.pi) & (x <= np.pi)).all(axis=1), log_density, -np.inf)

    def given_u(u):
        resultant = k_v + k_uv * np.exp(1j * u)        # k_v cos v + k_uv cos(u - v) = |resultant| cos(v - its angle)
        return np.abs(resultant), np.angle(resultant)

    def log_marginal(u):
        length, _ = given_u(u)
        return k_u * np.cos(u) + np.log(i0e(length)) + length + LOG_2PI

    first = _GridSampler(log_marginal, -np.pi, np.pi, cells=4000, margin=0.01)        # slope at most 5, half a cell 8e-4
    # The integrand is periodic, so the trapezium rule is exact to rounding.
    grid = np.linspace(-np.pi, np.pi, 4000, endpoint=False)

    def sample(n, rng):
        u = first.sample(n, rng)
        length, angle = given_u(u)
        v = rng.vonmises(angle, length)
        return _wrap(np.column_stack([u, v]) + means)

    log_z = float(logsumexp(log_marginal(grid)) + np.log(2 * np.pi / len(grid)))
    return Problem("von-mises-pair", 2, log_z, log_posterior, sample, ["circular"] * 2)


def beta_pair() -> Problem:
    """x^(a-1) (1-x)^(b-1) for (a, b) = (0.7, 3) and (2, 5) under U[0, 1]^2: one density piles up against its edge."""
    a, b = np.array([0.7, 2.0]), np.array([3.0, 5.0])

    def log_posterior(x):
        inside = ((x > 0) & (x < 1)).all(axis=1)
        safe = np.where(inside[:, None], x, 0.5)
        return np.where(inside, ((a - 1) * np.log(safe) + (b - 1) * np.log1p(-safe)).sum(axis=1), -np.inf)

    return Problem(
        name="beta-pair",
        features=2,
        log_z=float(betaln(a, b).sum()),
        log_posterior=log_posterior,
        sample=lambda n, rng: rng.beta(a, b, (n, 2)),
        support=[(0.0, 1.0)] * 2,
        prior=BoxUniform([0.0] * 2, [1.0] * 2),
    )


# --- Two classic regressions, by long chains ----------------------------------------------------------------------------------


def data_folder() -> Path:
    """The folder of public data: ``SBI_FLOWS_DATA``, or ``shared/data`` beside the checkout."""
    beside = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    named = os.environ.get("SBI_FLOWS_DATA")
    for folder in [Path(named)] if named else beside:
        if (folder / "bayes_examples").is_dir():
            return folder
    raise FileNotFoundError(
        "Expected a folder bayes_examples/ with pima_indian.dat and radiata_pine.dat; found none. "
        "Set SBI_FLOWS_DATA to the folder that holds it (the files are distributed with github astro-informatics/harmonic)."
    )


@lru_cache
def _table(name: str) -> Array:
    return np.loadtxt(data_folder() / "bayes_examples" / name)


# By importance sampling, 3.2e6 draws of a Student t of 15 degrees of freedom about the mode; errors 1.3e-4 and 1.7e-4.
PIMA_LOG_Z = {"m1": -247.30366, "m2": -247.56284}
PIMA_COLUMNS = {"m1": [1, 2, 5, 6], "m2": [1, 2, 5, 6, 7]}
CHAINS = 8


def pima(model: str) -> Problem:
    """Logistic regression of diabetes on four (M1) or five (M2) covariates and an intercept, coefficients ~ N(0, 1)."""
    d = len(PIMA_COLUMNS[model]) + 1

    def log_likelihood(x):
        design, outcome = _pima_design(model)
        logits = x @ design.T
        # ln(1 + e^logit) written out, because logaddexp is several times slower.
        softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
        return logits @ outcome - softplus.sum(axis=1)

    def log_posterior(x):
        blocks = [x[i : i + 1000] for i in range(0, max(len(x), 1), 1000)]        # 532 logits a row: blocks stay in the cache
        return np.concatenate([log_likelihood(b) for b in blocks]) - 0.5 * np.sum(x**2, axis=1) - 0.5 * d * LOG_2PI

    def sample(n, rng):
        mode, factor = _laplace(model)
        return _random_walk(log_posterior, mode, factor, n, rng)

    prior = MultivariateNormal(np.zeros(d), np.eye(d))
    return Problem(f"pima-{model}", d, PIMA_LOG_Z[model], log_posterior, sample, ["real"] * d, prior)


@lru_cache
def _pima_design(model: str) -> tuple[Array, Array]:
    table = _table("pima_indian.dat")
    return np.column_stack([np.ones(len(table)), table[:, PIMA_COLUMNS[model]]]), table[:, 0]


@lru_cache
def _laplace(model: str) -> tuple[Array, Array]:
    """Posterior mode by Newton's method and the Cholesky factor of the inverse Hessian there."""
    design, outcome = _pima_design(model)
    beta = np.zeros(design.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-design @ beta))
        hessian = (design.T * (p * (1 - p))) @ design + np.eye(len(beta))
        beta = beta + np.linalg.solve(hessian, design.T @ (outcome - p) - beta)
    return beta, np.linalg.cholesky(np.linalg.inv(hessian))


def _random_walk(log_posterior, mode: Array, factor: Array, n: int, rng, *, burn: int = 400, thin: int = 4) -> Array:
    """Random-walk Metropolis chains ``(CHAINS, n / CHAINS, d)`` at the usual optimal scale, every ``thin``-th state kept."""
    d, draws = len(mode), n // CHAINS
    state = mode + rng.standard_normal((CHAINS, d)) @ factor.T
    log_p = log_posterior(state)
    kept = np.empty((CHAINS, draws, d))
    for step in range(burn + draws * thin):
        proposal = state + (2.38 / np.sqrt(d)) * rng.standard_normal((CHAINS, d)) @ factor.T
        log_q = log_posterior(proposal)
        accept = np.log(rng.random(CHAINS)) < log_q - log_p
        state, log_p = np.where(accept[:, None], proposal, state), np.where(accept, log_q, log_p)
        if step >= burn and (step - burn) % thin == 0:
            kept[:, (step - burn) // thin] = state
    return kept


RADIATA_LOG_Z = {"m1": -310.128286, "m2": -301.704602}
RADIATA_COLUMN = {"m1": 2, "m2": 3}


def radiata(model: str) -> Problem:
    """Strength of Radiata pine against density (M1) or resin-adjusted density (M2): intercept, slope, precision, by Gibbs."""
    a_0, b_0, r_0, s_0, shape, rate = 3000.0, 185.0, 0.06, 6.0, 3.0, 180_000.0

    def regression():
        table = _table("radiata_pine.dat")
        x = table[:, RADIATA_COLUMN[model]]
        return table[:, 1], x - x.mean()

    def log_posterior(theta):
        y, x = regression()
        a, b, tau = theta[:, 0], theta[:, 1], np.where(theta[:, 2] > 0, theta[:, 2], np.nan)
        squares = ((y - a[:, None] - b[:, None] * x) ** 2).sum(axis=1)
        log_likelihood = 0.5 * len(y) * (np.log(tau) - LOG_2PI) - 0.5 * tau * squares
        log_prior_a = 0.5 * (np.log(r_0 * tau) - LOG_2PI - r_0 * tau * (a - a_0) ** 2)
        log_prior_b = 0.5 * (np.log(s_0 * tau) - LOG_2PI - s_0 * tau * (b - b_0) ** 2)
        log_prior_tau = shape * np.log(rate) - gammaln(shape) + (shape - 1) * np.log(tau) - rate * tau
        return _minus_inf_outside(log_likelihood + log_prior_a + log_prior_b + log_prior_tau)

    def sample(n, rng):
        y, x = regression()
        rows, draws = len(y), n // CHAINS
        mean_a = (y.sum() + r_0 * a_0) / (rows + r_0)
        mean_b = (x @ y + s_0 * b_0) / (x @ x + s_0)
        kept = np.empty((CHAINS, draws, 3))
        a, b = np.full(CHAINS, mean_a), np.full(CHAINS, mean_b)
        for step in range(-20, draws):        # a Gibbs chain on this model forgets its start in two or three steps
            residual = ((y - a[:, None] - b[:, None] * x) ** 2).sum(axis=1)
            tau_rate = rate + 0.5 * (residual + r_0 * (a - a_0) ** 2 + s_0 * (b - b_0) ** 2)
            tau = rng.gamma(shape + (rows + 2) / 2, 1 / tau_rate)
            a = mean_a + rng.standard_normal(CHAINS) / np.sqrt(tau * (rows + r_0))
            b = mean_b + rng.standard_normal(CHAINS) / np.sqrt(tau * (x @ x + s_0))
            if step >= 0:
                kept[:, step] = np.column_stack([a, b, tau])
        return kept

    return Problem(f"radiata-{model}", 3, RADIATA_LOG_Z[model], log_posterior, sample, ["real", "real", (0.0, np.inf)])


# --- Draws spoiled in the ways an estimator should notice ---------------------------------------------------------------------


def shifted(problem: Problem, draws: Array, rng: np.random.Generator) -> Array:
    """The draws moved by one posterior standard deviation along one axis taken at random, inside the support.

    Bounded columns are moved on the logit scale, half-lines on the log scale, angles around the circle.
    """
    column = int(rng.integers(problem.features))
    free = _to_free(problem, draws)
    free[..., column] += rng.choice([-1.0, 1.0]) * _deviation(problem, free, column).std()
    return _from_free(problem, free)


def widened(problem: Problem, draws: Array, factor: float = 1.5) -> Array:
    """Every coordinate's distance from its mean stretched by ``factor``, inside the support (on the scales of `shifted`)."""
    free = _to_free(problem, draws)
    for column in range(problem.features):
        free[..., column] += (factor - 1) * _deviation(problem, free, column)
    return _from_free(problem, free)


def without_a_mode(problem: Problem, draws: Array, rng: np.random.Generator) -> Array:
    """The draws whose nearest listed mode is not one taken at random; needs a problem with ``modes``."""
    if problem.modes is None:
        raise ValueError(f"Expected a problem with several modes; {problem.name} has none listed. Use gmm-9 or rastrigin-2.")
    lost = problem.modes[rng.integers(len(problem.modes))]
    reach = 0.5 * min(np.linalg.norm(problem.modes - m, axis=1)[np.any(problem.modes != m, axis=1)].min() for m in problem.modes)
    return draws[np.abs(draws - lost).max(axis=1) > reach]


def _to_free(problem: Problem, draws: Array) -> Array:
    columns = [_free(draws[..., i], support) for i, support in enumerate(problem.support)]
    return np.stack(columns, axis=-1)


def _from_free(problem: Problem, free: Array) -> Array:
    columns = [_bound(free[..., i], support) for i, support in enumerate(problem.support)]
    return np.stack(columns, axis=-1)


def _free(x: Array, support) -> Array:
    if isinstance(support, str):
        return x.copy()
    low, high = support
    return np.log(x - low) if np.isinf(high) else np.log(x - low) - np.log(high - x)


def _bound(z: Array, support) -> Array:
    if isinstance(support, str):
        return _wrap(z) if support == "circular" else z
    low, high = support
    return low + np.exp(z) if np.isinf(high) else low + (high - low) / (1 + np.exp(-z))


def _deviation(problem: Problem, free: Array, column: int) -> Array:
    """Distance from the mean, the short way round for an angle."""
    z = free[..., column]
    if problem.support[column] == "circular":
        return _wrap(z - np.angle(np.exp(1j * z).mean()))
    return z - z.mean()


# --- Helpers ------------------------------------------------------------------------------------------------------------------


class _GridSampler:
    """Exact draws from a one-dimensional density by rejection from its histogram on a fine grid.

    ``margin`` bounds how far the log density moves within half a cell, so the histogram times ``exp(margin)`` is an envelope.
    """

    def __init__(self, log_density: Callable[[Array], Array], low: float, high: float, *, cells: int, margin: float):
        self.log_density, self.low, self.width, self.margin = log_density, low, (high - low) / cells, margin
        self.log_height = log_density(low + (np.arange(cells) + 0.5) * self.width)
        self.cumulative = np.cumsum(np.exp(self.log_height - logsumexp(self.log_height)))

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        return _until(n, self._propose, rng)

    def _propose(self, n, rng):
        cell = np.searchsorted(self.cumulative, self.cumulative[-1] * rng.random(n), side="right")
        x = self.low + (cell + rng.random(n)) * self.width
        return x[np.log(rng.random(n)) < self.log_density(x) - self.log_height[cell] - self.margin]


def _until(n: int, propose: Callable, rng: np.random.Generator) -> Array:
    """The first ``n`` survivors of a rejection sampler ``propose(m, rng)``; a fixed batch size keeps them unbiased."""
    batches, found = [], 0
    while found < n:
        batches.append(propose(n, rng))
        found += len(batches[-1])
    return np.concatenate(batches)[:n]


def _wrap(angle: Array) -> Array:
    """The same angle on [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _minus_inf_outside(log_posterior: Array) -> Array:
    """Rows marked NaN lie outside the support."""
    return np.where(np.isnan(log_posterior), -np.inf, log_posterior)


PROBLEMS: list[Problem] = [
    *(gaussian(d) for d in (1, 5, 21, 50)),
    normal_gamma(),
    rosenbrock(2),
    rosenbrock(4),
    rastrigin(),
    funnel(10),
    gaussian_grid(),
    von_mises_pair(),
    beta_pair(),
    pima("m1"),
    pima("m2"),
    radiata("m1"),
    radiata("m2"),
]

# The `harmonic` package works on unbounded parameters, so it is compared on these.
HARMONIC_PROBLEMS: list[Problem] = [gaussian(5), gaussian(21), banana(5), banana(21)]
_BY_NAME = {problem.name: problem for problem in [*PROBLEMS, *HARMONIC_PROBLEMS]}


def problem_named(name: str) -> Problem:
    """The problem of that name; an unknown one is answered with the list."""
    if name not in _BY_NAME:
        raise ValueError(f"Unknown problem {name!r}; expected one of {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]
