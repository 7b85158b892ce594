"""Every kind of samples is read alike, and every kind of bad input is told apart."""

import arviz as az
import emcee
import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from sbi_flows.model_evidence.inputs import evaluate, read_draws
from sbi_flows.results import Chains, WeightedSamples


def log_posterior(x):
    return -0.5 * (x**2).sum(axis=1)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(4, 100, 2))


def test_array_of_chains_keeps_chain_order(x):
    draws = read_draws(x, log_posterior)
    np.testing.assert_array_equal(draws.x, x.reshape(-1, 2))
    np.testing.assert_array_equal(draws.chain, np.repeat(np.arange(4), 100))
    np.testing.assert_allclose(draws.log_p, log_posterior(x.reshape(-1, 2)))


def test_chains_of_unequal_length_are_all_used(x):
    ragged = [x[0], x[1, :30], x[2, :77]]
    draws = read_draws(ragged, log_posterior)
    np.testing.assert_array_equal(draws.x, np.concatenate(ragged))
    np.testing.assert_array_equal(draws.chain, np.repeat([0, 1, 2], [100, 30, 77]))
    values = read_draws(ragged, [log_posterior(block) for block in ragged])
    np.testing.assert_array_equal(values.log_p, draws.log_p)


def test_dataframe_names_and_log_posterior_column(x):
    frame = pd.DataFrame(x.reshape(-1, 2), columns=["log10_A", "gamma"])
    frame["lp"] = log_posterior(x.reshape(-1, 2))
    draws = read_draws(frame)
    assert draws.names == ("log10_A", "gamma")
    np.testing.assert_array_equal(draws.log_p, frame["lp"])


def test_chains_record_and_arviz_agree(x):
    record = Chains(x, ("a", "b"), log_posterior=log_posterior(x.reshape(-1, 2)).reshape(4, 100))
    direct, through_arviz = read_draws(record), read_draws(record.to_arviz())
    np.testing.assert_array_equal(direct.x, through_arviz.x)
    np.testing.assert_array_equal(direct.log_p, through_arviz.log_p)
    assert direct.names == through_arviz.names == ("a", "b")
    assert any("sample_stats.lp" in note for note in through_arviz.notes) and not direct.notes


def test_arviz_vector_variables_become_numbered_columns(x):
    data = az.from_dict(posterior={"theta": x}, sample_stats={"lp": log_posterior(x.reshape(-1, 2)).reshape(4, 100)})
    assert read_draws(data).names == ("theta[0]", "theta[1]")


def test_emcee_sampler_brings_values_callable_and_its_ensemble():
    sampler = emcee.EnsembleSampler(8, 2, log_posterior, vectorize=True)
    sampler.run_mcmc(np.random.default_rng(0).normal(size=(8, 2)), 60, progress=False)
    draws = read_draws(sampler)
    assert draws.ensemble and draws.n == 480
    np.testing.assert_allclose(draws.log_posterior(draws.x), draws.log_p)


def test_walkers_of_an_ensemble_are_one_time_series():
    """Walkers that move together carry one series' worth of information, not eight."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=(1, 400, 2)) + 1e-6 * rng.normal(size=(8, 400, 2))
    alone = read_draws(Chains(common, ("a", "b"), log_posterior=np.zeros((8, 400))))
    together = read_draws(Chains(common, ("a", "b"), log_posterior=np.zeros((8, 400)), ensemble=True))
    values = common[..., 0].reshape(-1)
    assert together.variance_of_mean(values) == pytest.approx(values.var() / 400, rel=0.3)
    assert alone.variance_of_mean(values) == pytest.approx(values.var() / 3200, rel=0.3)


def test_a_small_slow_part_of_an_ensemble_is_not_lost_in_its_mean():
    """A tenth of the variance has an autocorrelation time of 60 steps; the series of means alone gives .66 of the true variance.

    Each seed's ratio has a spread of .28, the mean of 40 one of .044 about .96: .8 to 1.1 fails it for other seeds in one run of 500.
    """
    slow, time, shape = 0.1, 60, (16, 1600)
    persistence = (time - 1) / (time + 1)
    truth = (slow * time + 1 - slow) / (shape[0] * shape[1])
    ratios = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        steps = rng.normal(size=shape) * np.sqrt(1 - persistence**2)
        steps[:, 0] = rng.normal(size=shape[0])
        values = np.sqrt(slow) * lfilter([1], [1, -persistence], steps, axis=1) + np.sqrt(1 - slow) * rng.normal(size=shape)
        walkers = Chains(values[:, :, None], ("a",), log_posterior=np.zeros(shape), ensemble=True)
        ratios.append(read_draws(walkers).variance_of_mean(values.reshape(-1)) / truth)
    assert 0.8 < np.mean(ratios) < 1.1


def test_variance_of_mean_counts_autocorrelation():
    """AR(1) with coefficient 0.9 has an autocorrelation time of 19; 4 x 20 000 draws know it to about 5 %."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(4, 20_000))
    x = np.zeros_like(noise)
    for t in range(1, x.shape[1]):
        x[:, t] = 0.9 * x[:, t - 1] + noise[:, t]
    draws = read_draws(x[..., None], np.zeros(x.shape))
    assert draws.variance_of_mean(x.reshape(-1)) == pytest.approx(19 * x.var() / x.size, rel=0.2)


def test_chain_ids_gather_interleaved_chains(x):
    flat, ids = x.reshape(-1, 2), np.tile([0, 1, 2, 3], 100)
    draws = read_draws(flat, log_posterior(flat), chain_ids=ids)
    np.testing.assert_array_equal(draws.x[:100], flat[ids == 0])
    np.testing.assert_allclose(draws.log_p, log_posterior(draws.x))


def test_weights_are_turned_into_draws_of_the_weighted_density():
    rng = np.random.default_rng(3)
    x = rng.uniform(-6, 6, size=(20_000, 1))
    draws = read_draws(x, log_posterior, weights=np.exp(log_posterior(x)))
    assert draws.x.std() == pytest.approx(1, abs=0.03) and "effective size" in draws.notes[0]


def test_draws_of_no_density_are_dropped_and_said(x):
    flat = x.reshape(-1, 2)
    values = log_posterior(flat)
    values[:8] = -np.inf
    draws = read_draws(flat, values)
    assert draws.n == 392 and "8 of 400 draws" in draws.reasons[0] and "burn-in" in draws.reasons[0]


BAD = {
    "empty": (lambda x: x[:, :0], {}, "not empty"),
    "one row": (lambda x: x[:1, :1], {}, "at least 100 draws"),
    "n < d": (lambda x: np.random.default_rng(0).normal(size=(30, 40)), {}, "at least 400 draws"),
    "flat": (lambda x: x[:, 0, 0], {}, r"samples\[:, None\]"),
    "nan": (lambda x: np.where(np.arange(800).reshape(x.shape) == 7, np.nan, x), {}, r"1 of 400 rows hold NaN .* row 3"),
    "inf": (lambda x: np.where(np.arange(800).reshape(x.shape) == 7, np.inf, x), {}, "hold NaN or infinity"),
    "constant": (lambda x: np.concatenate([x, np.ones((4, 100, 1))], axis=2), {}, "'x2' is constant at 1"),
    "duplicated": (lambda x: np.concatenate([x, 2 * x[..., :1] + 1], axis=2), {}, "'x0' and 'x2' are duplicates"),
    "integer": (lambda x: np.concatenate([x, np.round(x[..., :1])], axis=2), {}, "'x2' takes only . distinct values"),
    "text": (lambda x: [["a", "b"]], {}, "does not convert to a float array"),
    "weights": (lambda x: x, {"weights": -np.ones(400)}, "non-negative"),
    "weights of one": (lambda x: x, {"weights": np.eye(400)[0]}, "effective size of 1 "),
    "chain ids": (lambda x: x, {"chain_ids": np.zeros(3)}, r"chain_ids of shape \(400,\)"),
    "ragged widths": (lambda x: [x[0], x[1, :, :1]], {}, r"widths \[1, 2\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_told_apart(name, x):
    spoil, keywords, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        read_draws(spoil(x), log_posterior, **keywords)


def test_no_log_posterior_at_all(x):
    with pytest.raises(ValueError, match=r"ln L \+ ln prior with both normalised"):
        read_draws(x)


def test_values_of_another_length(x):
    with pytest.raises(ValueError, match="400 in all; got 399"):
        read_draws(x, np.zeros(399))


def test_weighted_samples_must_be_unpacked_by_the_user(x):
    with pytest.raises(TypeError, match=r"weights=result\.weights"):
        read_draws(WeightedSamples(x[0], np.zeros(100), ("a", "b")), log_posterior)


def test_callable_of_the_wrong_shape_or_infinite(x):
    with pytest.raises(ValueError, match=r"returned \(400, 1\)"):
        read_draws(x, lambda rows: np.zeros((len(rows), 1)))
    with pytest.raises(ValueError, match=r"\+inf"):
        evaluate(lambda rows: np.full(len(rows), np.inf), x[0])
    with pytest.warns(UserWarning, match="NaN at 100 of 100 points"):
        assert np.all(evaluate(lambda rows: np.full(len(rows), np.nan), x[0]) == -np.inf)


def test_samples_of_another_posterior_altogether(x):
    with pytest.raises(ValueError, match="are not from this posterior"):
        read_draws(x, np.full(400, -np.inf))
