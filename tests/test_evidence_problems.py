"""The benchmark's problems are what they claim: evidences by quadrature or closed form, draws by their moments and cells."""

import numpy as np
import pytest
import torch
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2, kstest, multivariate_t, norm

from benchmarks.evidence_problem import LOG_2PI
from benchmarks.evidence_problems import HARMONIC_PROBLEMS, PROBLEMS, banana, problem_named
from benchmarks.evidence_regressions import data_folder, laplace, read_table
from benchmarks.spoiled_draws import shifted, to_free, widened, without_a_mode

NAMES = sorted({p.name for p in [*PROBLEMS, *HARMONIC_PROBLEMS]})


def has_data():
    try:
        data_folder()
    except FileNotFoundError:
        return False
    return True


def needs_data(name):
    if name.startswith(("pima", "radiata")) and not has_data():
        pytest.skip("the public data files are not on this machine")


def midpoint_log_z(log_posterior, ranges, cells):
    """Midpoint rule in two dimensions; returns ln Z and the log mass of each slice of the first column."""
    axes = [low + (np.arange(cells) + 0.5) * (high - low) / cells for low, high in ranges]
    log_cell = sum(np.log((high - low) / cells) for low, high in ranges)
    slices = [logsumexp(log_posterior(np.column_stack([np.full(cells, a), axes[1]]))) for a in axes[0]]
    return logsumexp(slices) + log_cell, np.array(slices) + log_cell


# A midpoint rule on a smooth density that vanishes, or repeats, at the walls converges faster than any power of the step.
@pytest.mark.parametrize(
    ("name", "ranges", "cells", "tolerance"),
    [
        ("rosenbrock-2", [(-5, 5), (-5, 5)], 2000, 1e-6),
        ("rastrigin-2", [(-6, 6), (-6, 6)], 1000, 1e-6),
        ("gmm-9", [(-8, 8), (-8, 8)], 800, 1e-9),
        ("von-mises-pair", [(-np.pi, np.pi), (-np.pi, np.pi)], 200, 1e-12),
        ("normal-gamma", [(-1, 1), (0, 4)], 600, 1e-9),
    ],
)
def test_log_z_by_quadrature(name, ranges, cells, tolerance):
    log_z, _ = midpoint_log_z(problem_named(name).log_posterior, ranges, cells)
    assert log_z == pytest.approx(problem_named(name).log_z, abs=tolerance)


def test_log_z_of_the_beta_pair_by_quadrature():
    # In t = x^0.7 the singular factor is flat: x^(-0.3) dx = dt / 0.7.
    t = (np.arange(20_000) + 0.5) / 20_000
    first = np.mean((1 - t ** (1 / 0.7)) ** 2) / 0.7
    second = np.mean(t * (1 - t) ** 4)
    assert problem_named("beta-pair").log_z == pytest.approx(np.log(first * second), abs=1e-7)


def test_log_z_of_rosenbrock_4_by_transfer_matrix():
    x = np.linspace(-5, 5, 4001)
    step = x[1] - x[0]
    link = -100 * (x - x[:, None] ** 2) ** 2 - (1 - x[:, None]) ** 2 + np.log(step)
    message = np.zeros(len(x))        # ln integral over everything further down the chain
    for _ in range(3):
        message = logsumexp(link + message, axis=1)
    log_z = logsumexp(message) + np.log(step) - 4 * np.log(10)
    assert problem_named("rosenbrock-4").log_z == pytest.approx(log_z, abs=2e-4)        # the wall costs O(step) of a thin tail


def test_log_z_of_the_banana_by_quadrature():
    log_z, _ = midpoint_log_z(banana(2).log_posterior, [(-30, 30), (-30, 30)], 1200)
    assert log_z == pytest.approx(0, abs=1e-9)


def test_log_z_of_radiata_is_the_conjugate_formula():
    needs_data("radiata")
    table = read_table("radiata_pine.dat")
    for model, column in (("m1", 2), ("m2", 3)):
        y, x = table[:, 1], table[:, column] - table[:, column].mean()
        design = np.column_stack([np.ones(len(y)), x])
        precision, mean = np.diag([0.06, 6.0]), np.array([3000.0, 185.0])
        posterior_precision = design.T @ design + precision
        posterior_mean = np.linalg.solve(posterior_precision, design.T @ y + precision @ mean)
        rate = 180_000 + 0.5 * (y @ y + mean @ precision @ mean - posterior_mean @ posterior_precision @ posterior_mean)
        shape = 3 + len(y) / 2
        log_z = (
            0.5 * (np.linalg.slogdet(precision)[1] - np.linalg.slogdet(posterior_precision)[1])
            + 3 * np.log(180_000)
            - shape * np.log(rate)
            + gammaln(shape)
            - gammaln(3)
            - 0.5 * len(y) * LOG_2PI
        )
        assert problem_named(f"radiata-{model}").log_z == pytest.approx(log_z, abs=1e-6)


@pytest.mark.parametrize("model", ["m1", "m2"])
def test_log_z_of_pima_by_importance_sampling(model):
    needs_data("pima")
    problem = problem_named(f"pima-{model}")
    mode, factor = laplace(model)
    proposal = multivariate_t(mode, factor @ factor.T, df=10, seed=1)
    x = proposal.rvs(20_000)
    log_weights = problem.log_posterior(x) - proposal.logpdf(x)
    log_z = logsumexp(log_weights) - np.log(len(x))
    error = np.std(np.exp(log_weights - log_z)) / np.sqrt(len(x))
    assert abs(log_z - problem.log_z) < 4 * error        # one false alarm in 16 000; the truth's own error is far smaller


@pytest.mark.parametrize(
    ("name", "ranges", "cells"),
    [
        ("rosenbrock-2", [(-5, 5), (-5, 5)], 2000),
        ("rastrigin-2", [(-6, 6), (-6, 6)], 1000),
        ("gmm-9", [(-8, 8), (-8, 8)], 800),
        ("von-mises-pair", [(-np.pi, np.pi), (-np.pi, np.pi)], 800),
    ],
)
@pytest.mark.parametrize("column", [0, 1])
def test_draws_fall_where_the_density_says(name, ranges, cells, column):
    """Chi-squared of a marginal in about 20 cells; false alarms 1 in 10^4 a case."""
    problem = problem_named(name)
    draws = problem.sample(50_000, np.random.default_rng(0))
    flipped = [1, 0] if column else [0, 1]        # the slices are of the column that comes first
    log_z, slices = midpoint_log_z(lambda x: problem.log_posterior(x[:, flipped]), [ranges[i] for i in flipped], cells)
    cumulative = np.cumsum(np.exp(slices - log_z))
    ends = np.unique(np.searchsorted(cumulative, np.arange(1, 20) / 20))
    expected = len(draws) * np.diff(np.concatenate([[0], cumulative[ends], [1]]))
    low, high = ranges[column]
    edges = low + (ends + 1) * (high - low) / cells
    counts = np.bincount(np.searchsorted(edges, draws[:, column]), minlength=len(expected))
    assert np.sum((counts - expected) ** 2 / expected) < chi2(len(expected) - 1).isf(1e-4)


def test_draws_of_rosenbrock_4_follow_the_chain():
    x = problem_named("rosenbrock-4").sample(50_000, np.random.default_rng(0))
    # Given its predecessor the last coordinate is N(x_3^2, 1/200) but for the wall at 5.
    inner = np.abs(x[:, 2]) < 2
    assert kstest((x[inner, 3] - x[inner, 2] ** 2) * np.sqrt(200), norm.cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_draws_stay_inside_and_repeat_with_their_seed(name):
    needs_data(name)
    problem = problem_named(name)
    first, again, other = (problem.sample(800, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert first.shape[-1] == problem.features == len(problem.support)
    assert first.size == 800 * problem.features
    assert np.isfinite(problem.log_posterior(first.reshape(-1, problem.features))).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("gaussian", "banana", "normal-gamma", "radiata", "pima"))])
def test_the_score_has_zero_mean_over_the_draws(name):
    """The gradient of ln p averages to zero under p; within 5 standard errors of it a column (false alarms below 1e-6 each)."""
    needs_data(name)
    problem = problem_named(name)
    draws = problem.sample(8000, np.random.default_rng(3)).reshape(-1, problem.features)
    correlation = 8 if name.startswith("pima") else 2        # upper bounds of the chains' autocorrelation times
    for i in range(problem.features):
        step = np.zeros(problem.features)
        step[i] = 1e-4 * draws[:, i].std()
        score = (problem.log_posterior(draws + step) - problem.log_posterior(draws - step)) / 2e-4
        assert abs(score.mean()) < 5 * score.std() * np.sqrt(correlation / len(score))


@pytest.mark.parametrize("name", NAMES)
def test_spoiled_draws_are_spoiled_inside_the_support(name):
    needs_data(name)
    problem = problem_named(name)
    rng = np.random.default_rng(0)
    draws = problem.sample(4000, rng)
    moved, wide = shifted(problem, draws, rng), widened(problem, draws, 1.5)
    for spoiled in (moved, wide):
        assert spoiled.shape == draws.shape
        assert np.isfinite(problem.log_posterior(spoiled.reshape(-1, problem.features))).all()
    largest_move = np.abs(moved - draws).reshape(-1, problem.features).max(axis=0)
    assert (largest_move > 0.1 * draws.reshape(-1, problem.features).std(axis=0)).sum() == 1
    free, stretched = to_free(problem, draws), to_free(problem, wide)
    for i, support in enumerate(problem.support):
        if support != "circular":        # an angle stretched past the seam comes back on the other side
            assert stretched[..., i].std() == pytest.approx(1.5 * free[..., i].std(), rel=1e-6)


@pytest.mark.parametrize("name", ["gmm-9", "rastrigin-2"])
def test_without_a_mode_loses_one_whole_mode(name):
    problem = problem_named(name)
    rng = np.random.default_rng(0)
    draws = problem.sample(20_000, rng)
    kept = without_a_mode(problem, draws, rng)
    assert 0.09 < 1 - len(kept) / len(draws) < 0.35
    occupied = [np.any(np.abs(kept - mode).max(axis=1) < 0.4) for mode in problem.modes]
    assert sum(occupied) == len(problem.modes) - 1


def test_messages():
    with pytest.raises(ValueError, match="Unknown problem 'gausian-5'; expected one of gaussian-1"):
        problem_named("gausian-5")
    with pytest.raises(ValueError, match="funnel-10 has none listed"):
        without_a_mode(problem_named("funnel-10"), np.zeros((4, 10)), np.random.default_rng(0))


def test_a_missing_data_folder_is_explained(monkeypatch, tmp_path):
    monkeypatch.setenv("SBI_FLOWS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Set SBI_FLOWS_DATA"):
        data_folder()


@pytest.mark.parametrize("name", [p.name for p in PROBLEMS if p.prior is not None])
def test_priors_cover_the_draws(name):
    needs_data(name)
    problem = problem_named(name)
    draws = problem.sample(80, np.random.default_rng(0)).reshape(-1, problem.features)
    assert torch.isfinite(problem.prior.log_prob(torch.as_tensor(draws))).all()
    assert len(problem.prior.support) == problem.features
