"""Two classic comparisons of regressions, with posteriors sampled by long chains of Markov kernels that suit them.

Their data, Pima Indians and Radiata pine, are read from ``$SBI_FLOWS_DATA/bayes_examples`` on first use; they are not part of the
repository.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.special import gammaln

from benchmarks.evidence_problem import LOG_2PI, Array, Problem, minus_inf_outside
from sbi_flows.distributions import MultivariateNormal


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
def read_table(name: str) -> Array:
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
        mode, factor = laplace(model)
        return _random_walk(log_posterior, mode, factor, n, rng)

    prior = MultivariateNormal(np.zeros(d), np.eye(d))
    return Problem(f"pima-{model}", d, PIMA_LOG_Z[model], log_posterior, sample, ["real"] * d, prior)


@lru_cache
def _pima_design(model: str) -> tuple[Array, Array]:
    table = read_table("pima_indian.dat")
    return np.column_stack([np.ones(len(table)), table[:, PIMA_COLUMNS[model]]]), table[:, 0]


@lru_cache
def laplace(model: str) -> tuple[Array, Array]:
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
        table = read_table("radiata_pine.dat")
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
        return minus_inf_outside(log_likelihood + log_prior_a + log_prior_b + log_prior_tau)

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
