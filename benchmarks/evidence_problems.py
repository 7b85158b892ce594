"""Posteriors whose evidence is known, with draws that are exact or come from long, well-mixed chains.

``PROBLEMS`` lists them all. Every `Problem` is vectorised float64 numpy; a repetition is ``problem.sample(problem.n_draws, rng)``
with its own generator, so repetitions are independent of each other.
"""

import numpy as np
from scipy.special import betaln, gammaln, i0e, log_ndtr, logsumexp

from benchmarks.evidence_problem import LOG_2PI, GridSampler, Problem, minus_inf_outside, until, wrap
from benchmarks.evidence_regressions import pima, radiata
from sbi_flows.distributions import BoxUniform

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
        return minus_inf_outside(log_likelihood + log_prior_mu + log_prior_lam)

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
        sample=lambda n, rng: until(n, propose, rng),
        support=[(-5.0, 5.0)] * d,
        prior=BoxUniform([-5.0] * d, [5.0] * d),
    )


def rastrigin() -> Problem:
    """ln L = -sum(x^2 - 10 cos 2 pi x + 10) under U[-6, 6]^2: a product of two one-dimensional combs."""

    def log_comb(x):
        return -(x**2) + 10 * np.cos(2 * np.pi * x) - 10

    def log_posterior(x):
        return np.where((np.abs(x) <= 6).all(axis=1), log_comb(x).sum(axis=1) - 2 * np.log(12), -np.inf)

    comb = GridSampler(log_comb, -6.0, 6.0, cells=12_000, margin=0.04)        # slope at most 75, half a cell 5e-4
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
        sample=lambda n, rng: until(n, propose, rng),
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

    first = GridSampler(log_marginal, -np.pi, np.pi, cells=4000, margin=0.01)        # slope at most 5, half a cell 8e-4
    # The integrand is periodic, so the trapezium rule is exact to rounding.
    grid = np.linspace(-np.pi, np.pi, 4000, endpoint=False)

    def sample(n, rng):
        u = first.sample(n, rng)
        length, angle = given_u(u)
        v = rng.vonmises(angle, length)
        return wrap(np.column_stack([u, v]) + means)

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


# --- The lists ---------------------------------------------------------------------------------------------------------------

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
