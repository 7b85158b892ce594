"""``evidence`` end to end, flows and all, on posteriors whose evidence is known."""

import emcee
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import i0e

from sbi_flows import evidence
from sbi_flows.distributions import BoxUniform
from sbi_flows.model_evidence.density import fold_of
from sbi_flows.model_evidence.inputs import read_draws
from sbi_flows.results import Chains

# Five errors: a false alarm of 6e-7 a comparison, were the errors exactly normal.
SIGMAS = 5


def gaussian(d, seed=0, scale=1.0, offset=0.0):
    """Log-posterior, ln Z and a sampler of a correlated Gaussian of the given scale and offset."""
    rng = np.random.default_rng(seed)
    factor = scale * (np.eye(d) + 0.5 * np.tril(rng.normal(size=(d, d)), -1))
    inverse = np.linalg.inv(factor)

    def log_posterior(x):
        return -0.5 * (((x - offset) @ inverse.T) ** 2).sum(axis=1) + 7.0

    log_z = 7.0 + 0.5 * d * np.log(2 * np.pi) + np.linalg.slogdet(factor)[1]
    return log_posterior, log_z, lambda n, rng: offset + rng.normal(size=(n, d)) @ factor.T


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-8, 0.0), (1e6, 0.0), (1e-3, 1e6)])
def test_scale_and_offset_do_not_matter(scale, offset):
    log_posterior, log_z, sample = gaussian(3, scale=scale, offset=offset)
    result = evidence(sample(4000, np.random.default_rng(1)), log_posterior, random_state=0)
    assert result.reliability.ok and abs(result.log_z - log_z) < SIGMAS * result.log_z_err
    assert result.log_z_err < 0.005


def test_values_alone_give_the_harmonic_mean():
    log_posterior, log_z, sample = gaussian(5)
    x = sample(6000, np.random.default_rng(2))
    result = evidence(x, log_posterior(x), random_state=0)
    assert result.method == "harmonic" and result.reliability.ok
    assert abs(result.log_z - log_z) < SIGMAS * result.log_z_err < 0.1


def test_curved_posterior_in_a_box():
    """Rosenbrock in two dimensions: ln Z = -5.804132 by quadrature (FACTS)."""
    rng = np.random.default_rng(3)

    def log_likelihood(x):
        return -100 * (x[:, 1] - x[:, 0] ** 2) ** 2 - (1 - x[:, 0]) ** 2

    # x1 given x0 is normal; x0 alone is normal about 1, weighted by what of x1's normal lies in the box: rejection is exact.
    x0 = 1 + rng.normal(size=20_000) / np.sqrt(2)
    x = np.column_stack([x0, x0**2 + rng.normal(size=20_000) / np.sqrt(200)])
    x = x[(np.abs(x) < 5).all(axis=1)][:8000]
    prior = BoxUniform([-5.0, -5.0], [5.0, 5.0])

    def log_posterior(x):
        inside = (np.abs(x) <= 5).all(axis=1)
        return np.where(inside, log_likelihood(x) - np.log(100), -np.inf)

    result = evidence(x, log_posterior, prior=prior, random_state=0)
    assert result.reliability.ok, result
    assert abs(result.log_z + 5.804132) < SIGMAS * result.log_z_err < 0.05


def test_separated_modes_and_the_loss_of_one():
    centres = np.array([[-5.0, 0.0], [5.0, 3.0], [0.0, -6.0]])
    prior = BoxUniform([-10.0, -10.0], [10.0, 10.0])
    area = 400.0

    def log_posterior(x):
        each = [stats.multivariate_normal(c, 0.3).pdf(x) for c in centres]
        with np.errstate(divide="ignore"):
            return np.log(np.mean(each, axis=0)) - np.log(area)

    rng = np.random.default_rng(4)
    mode = rng.integers(3, size=6000)
    x = centres[mode] + np.sqrt(0.3) * rng.normal(size=(6000, 2))
    clean = evidence(x, log_posterior, prior=prior, random_state=0)
    assert clean.reliability.ok and abs(clean.log_z + np.log(area)) < SIGMAS * clean.log_z_err < 0.05
    broken = evidence(x[mode != 1], log_posterior, prior=prior, random_state=0)
    assert any("mass the chains never visited" in reason for reason in broken.reliability.reasons)


def test_angles_need_no_cut():
    """A von Mises density about pi: ln Z = ln(2 pi I0(kappa)) a column."""
    kappa = np.array([2.0, 8.0])

    def log_posterior(x):
        return (kappa * np.cos(x - np.pi)).sum(axis=1)

    x = np.random.default_rng(5).vonmises(np.pi, kappa, size=(6000, 2))
    result = evidence(x, log_posterior, support="circular", random_state=0)
    log_z = np.sum(np.log(2 * np.pi * i0e(kappa)) + kappa)
    assert result.reliability.ok and abs(result.log_z - log_z) < SIGMAS * result.log_z_err < 0.05


def test_edges_of_a_support_are_not_leaked_over():
    """Beta densities that pile up at an edge integrate to one inside their support."""
    a, b = np.array([1.0, 3.0]), np.array([4.0, 1.0])

    def log_posterior(x):
        return stats.beta(a, b).logpdf(x).sum(axis=1)

    x = stats.beta(a, b).rvs((6000, 2), random_state=np.random.default_rng(6))
    result = evidence(x, log_posterior, support=(0, 1), random_state=0)
    assert result.reliability.ok and abs(result.log_z) < SIGMAS * result.log_z_err < 0.05


def test_emcee_sampler_goes_straight_in():
    log_posterior, log_z, sample = gaussian(2)
    sampler = emcee.EnsembleSampler(32, 2, log_posterior, vectorize=True)
    sampler.random_state = np.random.RandomState(7).get_state()
    state = sampler.run_mcmc(sample(32, np.random.default_rng(7)), 100, progress=False)
    sampler.reset()
    sampler.run_mcmc(state, 800, progress=False)
    result = evidence(sampler, random_state=0)
    assert result.reliability.ok, result
    assert abs(result.log_z - log_z) < SIGMAS * result.log_z_err


def test_correlated_chains_of_unequal_length_get_a_larger_error():
    """AR(1) chains of autocorrelation time 19: with values alone the error grows by about sqrt(19)."""
    rng = np.random.default_rng(8)

    def chain(n):
        x = np.zeros((n, 1))
        x[0] = rng.normal()
        for t in range(1, n):
            x[t] = 0.9 * x[t - 1] + np.sqrt(1 - 0.81) * rng.normal()
        return x

    def log_posterior(x):
        return -0.5 * x[:, 0] ** 2

    chains = [chain(4000), chain(2500), chain(3500)]
    result = evidence(chains, [log_posterior(c) for c in chains], random_state=0)
    independent = rng.normal(size=(10_000, 1))
    reference = evidence(independent, log_posterior(independent), random_state=0)
    assert abs(result.log_z - 0.5 * np.log(2 * np.pi)) < SIGMAS * result.log_z_err
    assert result.log_z_err > 1.5 * reference.log_z_err


def test_dataframe_names_reach_the_verdict():
    log_posterior, _, sample = gaussian(2)
    x = sample(4000, np.random.default_rng(9))
    frame = pd.DataFrame(x + np.array([x[:, 0].std(), 0.0]), columns=["log10_A", "gamma"])
    result = evidence(frame, log_posterior, random_state=0)
    assert not result.reliability.ok and "'log10_A'" in repr(result) and result.names == ("log10_A", "gamma")


def half_normal(x):
    return np.where(x[:, 0] > 0, -0.5 * x[:, 0] ** 2, -np.inf)


def test_hard_edge_that_nobody_declared():
    """A half-normal posterior with no support= given. A callable corrects for it; values alone cannot, and the verdict says so."""
    x = np.abs(np.random.default_rng(10).normal(size=(6000, 1)))
    result = evidence(x, half_normal, random_state=0)
    assert result.reliability.ok and abs(result.log_z - 0.5 * np.log(np.pi / 2)) < SIGMAS * result.log_z_err
    blind = evidence(x, half_normal(x), random_state=0)
    assert any("the posterior seems to end there" in reason for reason in blind.reliability.reasons)


@pytest.mark.parametrize("known", ["callable", "values"])
def test_one_percent_of_alien_draws_is_seen(known):
    rng = np.random.default_rng(14)
    x = rng.normal(size=(20_000, 1))
    alien = rng.random(20_000) < 0.01
    x[alien] = 4 + 0.3 * rng.normal(size=(alien.sum(), 1))

    def log_posterior(x):
        return -0.5 * x[:, 0] ** 2

    result = evidence(x, log_posterior if known == "callable" else log_posterior(x), random_state=0)
    assert not result.reliability.ok


def test_a_missing_correlation_is_seen():
    x = np.random.default_rng(15).normal(size=(8000, 2))

    def log_posterior(x):
        return -0.5 * (x[:, 0] ** 2 + x[:, 1] ** 2 - 0.2 * x[:, 0] * x[:, 1]) / 0.99

    result = evidence(x, log_posterior, random_state=0)
    assert any("the product of 'x0' and 'x1'" in reason for reason in result.reliability.reasons)


@pytest.mark.parametrize("shape", [(1000, 1, 2), (500, 3, 2), (150, 2)])
def test_few_draws_and_very_short_chains_are_usable(shape):
    x = np.random.default_rng(16).normal(size=shape)
    result = evidence(x, lambda x: -0.5 * (x**2).sum(axis=1), random_state=0)
    assert result.reliability.ok, result
    assert abs(result.log_z - np.log(2 * np.pi)) < SIGMAS * result.log_z_err


def test_small_clean_samples_do_not_cry_wolf_about_modes():
    """Eight sets of 200 draws with the prior given: at a false-alarm rate below 1 % a set, none is flagged."""
    prior = BoxUniform([-5.0, -5.0], [5.0, 5.0])
    for seed in range(8):
        x = np.random.default_rng(1000 + seed).normal(size=(200, 2))
        result = evidence(x, lambda x: -0.5 * (x**2).sum(axis=1), prior=prior, random_state=seed)
        assert result.reliability.ok, result


def test_stationary_chains_with_long_memory_pass():
    """Thirty-two AR(1) chains of 600 steps, autocorrelation time 39: R-hat exceeds 1.05 by that memory alone."""
    rng = np.random.default_rng(17)
    x = np.zeros((32, 600, 1))
    x[:, 0] = rng.normal(size=(32, 1))
    for t in range(1, 600):
        x[:, t] = 0.95 * x[:, t - 1] + np.sqrt(1 - 0.95**2) * rng.normal(size=(32, 1))
    result = evidence(x, lambda x: -0.5 * x[:, 0] ** 2, random_state=0)
    assert result.reliability.ok, result


@pytest.mark.parametrize("flat", [False, True])
def test_emcee_arrays_in_the_wrong_order_are_noticed(flat):
    """``get_chain()`` is (step, walker, d), and flattened its rows alternate between walkers."""
    sampler = emcee.EnsembleSampler(32, 2, lambda x: -0.5 * (x**2).sum(axis=1), vectorize=True)
    sampler.random_state = np.random.RandomState(18).get_state()
    sampler.run_mcmc(np.random.default_rng(18).normal(size=(32, 2)), 1000, progress=False)
    result = evidence(sampler.get_chain(flat=flat), lambda x: -0.5 * (x**2).sum(axis=1), random_state=0)
    words = "flattened step by step" if flat else "looks like (draw, chain, d)"
    assert any(words in reason for reason in result.reliability.reasons)


def test_more_draws_than_an_estimate_gains_from_are_thinned_and_it_is_said():
    """Of correlated chains as of the ends that they had; what is left must agree with the truth as well as it says."""
    rng = np.random.default_rng(3)
    x = np.zeros((4, 5000, 1))
    for t in range(1, 5000):
        x[:, t] = 0.8 * x[:, t - 1] + 0.6 * rng.normal(size=(4, 1))
    x = x[:, 100:]
    seen = []
    result = evidence(x, lambda rows: seen.append(len(rows)) or -0.5 * rows[:, 0] ** 2, max_draws=3000, random_state=0)
    assert any("one in 7 draws of each chain was used, 2800 of 19600" in note for note in result.reliability.notes)
    assert seen[0] == 2800 and result.reliability.ok
    assert abs(result.log_z - 0.5 * np.log(2 * np.pi)) < 5 * result.log_z_err
    short = read_draws(x[:, :700].reshape(28, 100, 1), x[:, :700, 0].reshape(28, 100), max_draws=1000)
    assert short.n == 2800 and not short.notes  # chains too short to lose any
    values = read_draws(list(x), [row[:, 0] for row in x], max_draws=10_000)
    np.testing.assert_array_equal(values.x[:, 0], values.log_p)
    assert values.x[-1] == x[-1, -1]
    with pytest.raises(ValueError, match="max_draws of at least 1000"):
        evidence(x, lambda rows: -0.5 * rows[:, 0] ** 2, max_draws=10)


def test_impossible_arguments():
    x = np.random.default_rng(19).normal(size=(200, 2))

    def log_posterior(x):
        return -0.5 * (x**2).sum(axis=1)

    with pytest.raises(ValueError, match=r"max_evaluations of at least 4000; got 10"):
        evidence(x, log_posterior, max_evaluations=10)
    with pytest.raises(TypeError, match=r"Expected a prior; got numbers"):
        evidence(x, log_posterior, prior=3)
    with pytest.raises(ValueError, match=r"got the string 'lp'"):
        evidence(x, "lp")
    with pytest.raises(ValueError, match=r"real samples; got complex"):
        evidence(x + 0j, log_posterior)
    with pytest.raises(ValueError, match=r"shape \(4, 50\), \(chain, draw\) as the samples; got \(50, 4\)"):
        evidence(x.reshape(4, 50, 2), log_posterior(x).reshape(50, 4))


def test_draws_outside_the_declared_support():
    x = np.random.default_rng(11).normal(size=(1000, 1))
    with pytest.raises(ValueError, match=r"draws lie outside the declared support"):
        evidence(x, lambda x: -0.5 * x[:, 0] ** 2, support=[(0, 1)])


def test_same_seed_same_bits():
    log_posterior, _, sample = gaussian(2)
    x = np.exp(sample(2000, np.random.default_rng(12)))

    def log_normal(x):
        return log_posterior(np.log(x)) - np.log(x).sum(axis=1)

    first, second = (evidence(x, log_normal, support=(0, np.inf), random_state=3) for _ in range(2))
    assert first.log_z == second.log_z and first.log_z_err == second.log_z_err


def test_folds_take_blocks_of_every_chain():
    draws = read_draws(Chains(np.random.default_rng(13).normal(size=(3, 200, 1)), ("x",), log_posterior=np.zeros((3, 200))))
    fold = fold_of(draws).reshape(3, 200)
    assert np.all(fold[:, :20] == 0) and np.all(fold[:, 20:40] == 1)
    assert np.all(fold.mean(axis=1) == 0.5)
