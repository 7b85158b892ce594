"""Tests at one observation: local C2ST, misspecification, posterior predictive."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sbi_flows.diagnostics import joint_c2st, local_c2st, misspecification, posterior_predictive, sbc
from tests.diagnostics.conjugate import BROKEN, EXACT, MIXING, NOISE_STD, Gaussian, simulate


def test_local_p_values_of_an_exact_posterior_are_uniform():
    """40 replications, Kolmogorov-Smirnov: false alarm 1e-4."""
    p_values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        theta, x = simulate(200, rng)
        p_values.append(local_c2st(EXACT, theta, x, simulate(1, rng)[1][0], n_permutations=99, n_draws=200, random_state=rng).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_joint_p_values_of_an_exact_posterior_are_uniform():
    """40 replications, Kolmogorov-Smirnov: false alarm 1e-4."""
    p_values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p_values.append(joint_c2st(EXACT, *simulate(200, rng), n_permutations=99, random_state=rng).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_joint_c2st_sees_a_missing_correlation_that_ranks_do_not():
    covariance = np.linalg.inv(np.eye(2) + 4 * np.ones((2, 2)))

    class Uncorrelated:
        """Of theta ~ N(0, 1)^2 given x = theta_0 + theta_1 + N(0, 1/4), the right marginals only."""

        def sample(self, x, n_samples, random_state=None):
            noise = np.random.default_rng(random_state).normal(size=(len(x), n_samples, 2))
            return (4 * x @ np.ones((1, 2)) @ covariance)[:, None] + noise * np.sqrt(np.diag(covariance))

    rng = np.random.default_rng(0)
    theta = rng.normal(size=(500, 2))
    x = theta.sum(axis=1, keepdims=True) + 0.5 * rng.normal(size=(500, 1))
    assert sbc(Uncorrelated(), theta, x, n_draws=99, random_state=rng).reliability.ok
    assert joint_c2st(Uncorrelated(), theta, x, random_state=rng).p_value == 0.001


@pytest.mark.parametrize("kind", BROKEN)
def test_local_c2st_sees_broken_posteriors(kind):
    rng = np.random.default_rng(1)
    theta, x = simulate(1000, rng)
    result = local_c2st(BROKEN[kind], theta, x, simulate(1, rng)[1], random_state=rng)
    assert result.p_value < 0.01
    assert not result.reliability.ok
    assert result.theta.shape == (1000, 2)


def test_local_c2st_knows_where_the_posterior_is_wrong():
    """Wrong only where x_0 > 1: clear there, and more than ten times fainter far away."""

    class Patchy(Gaussian):
        def _moments(self, x):
            mean, root = super()._moments(x)
            return mean + np.where(x[:, :1] > 1, 0.4, 0.0), root

    rng = np.random.default_rng(0)
    theta, x = simulate(3000, rng)
    at = [local_c2st(Patchy(), theta, x, [x_0, 0.0, 0.0], random_state=0) for x_0 in (2.0, -2.0)]
    assert at[0].p_value <= 0.002
    assert at[0].statistic > 10 * at[1].statistic
    # Too little mass at small theta, where the shift has moved the draws away from.
    assert np.corrcoef(at[0].theta.sum(axis=1), at[0].preference)[0, 1] < -0.5


@pytest.mark.parametrize("kind", ["exact", "too narrow", "too wide", "shifted"])
@pytest.mark.parametrize("where", ["x_o", "all x"])
def test_preference_is_that_of_the_exact_densities(kind, where):
    """(p - q) / (p + q), which least squares find up to a factor of about two; an arbitrary constant would swamp it."""
    rng = np.random.default_rng(0)
    theta, x = simulate(2000, rng)
    x_o = simulate(1, rng)[1][0]
    estimator = BROKEN.get(kind, EXACT)
    if where == "x_o":
        result = local_c2st(estimator, theta, x, x_o, n_permutations=99, random_state=1)
        at = np.tile(x_o, (len(result.theta), 1))
    else:
        result, at = joint_c2st(estimator, theta, x, n_permutations=99, random_state=1), x
    p, q = (np.exp(density.log_prob(result.theta, at)) for density in (EXACT, estimator))
    exact = (p - q) / (p + q)
    if kind == "exact":
        assert result.statistic < 0.001
        return
    assert np.mean(exact**2) / 4 < result.statistic < 1.25 * np.mean(exact**2)
    assert np.corrcoef(exact, result.preference)[0, 1] > 0.8
    # On average the ratio of two normalised densities is one: no side of the picture is all of one colour.
    assert 0.1 < np.mean(result.preference > 0) < 0.9


def test_local_c2st_forms_of_x_o():
    theta, x = simulate(100, np.random.default_rng(0))
    frame = pd.DataFrame(x, columns=list("abc"))

    class Picky:
        def sample(self, x, n_samples, random_state=None):
            return EXACT.sample(x[["a", "b", "c"]].to_numpy(), n_samples, random_state)

    p_values = {
        local_c2st(EXACT, theta, x, x[0], random_state=0).p_value,
        local_c2st(EXACT, theta, x, x[:1], random_state=0).p_value,
        local_c2st(Picky(), theta, frame, frame.iloc[0], random_state=0).p_value,
        local_c2st(Picky(), theta, frame, frame[:1], random_state=0).p_value,
    }
    assert len(p_values) == 1
    with pytest.raises(ValueError, match=r"x_o of shape \(3,\).*got \(2,\)"):
        local_c2st(EXACT, theta, x, x[0, :2])


def test_misspecification_p_values_are_uniform():
    """40 heavy-tailed correlated observations among 200 simulations: false alarm 1e-4."""
    p_values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.standard_t(2, size=(201, 3)) @ np.array([[1, 0.8, 0], [0, 0.5, 1e6], [0, 0, 1e-6]])
        p_values.append(misspecification(x[1:], x[0], random_state=rng).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def correlated(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2)) @ np.array([[1.0, 0.95], [0.0, 0.3]])


@pytest.mark.parametrize(
    ("x_o", "words"), [([8.0, 0.0], "x_0"), ([1.8, -1.8], "their combination"), ([1e9, 1e9], "x_0, x_1")]
)
def test_impossible_observations_are_seen(x_o, words):
    result = misspecification(correlated(2000), x_o, random_state=0)
    assert result.p_value == pytest.approx(1 / 2001)
    assert words in result.reliability.reasons[0]
    assert list(result.columns.columns) == ["value", "low", "high", "p_value"]


def test_a_gap_between_modes_is_seen():
    """Usual in every column and by Mahalanobis distance: only its neighbours are far."""
    rng = np.random.default_rng(0)
    x = rng.choice([-5.0, 5.0], (2000, 1)) + rng.normal(size=(2000, 2)) * [0.3, 1.0]
    assert "neighbours" in str(misspecification(x, [0.0, 0.0], random_state=0).reliability)


def test_many_columns_of_few_degrees_of_freedom():
    """Spectra of 400 channels, made of three shapes and noise: a fourth shape is no outlier in any channel. False alarm 0.01."""
    rng = np.random.default_rng(0)
    channel = np.linspace(0, 1, 400)
    shapes = np.stack([np.ones(400), channel, np.sin(6 * channel)])
    x = rng.normal(size=(501, 3)) @ shapes + 0.3 * rng.normal(size=(501, 400))
    assert misspecification(x[1:], x[0], random_state=0).reliability.ok
    result = misspecification(x[1:], x[0] + 0.2 * np.sin(40 * channel), random_state=0)
    assert result.p_value < 0.01
    assert ((result.columns.value > result.columns.low) & (result.columns.value < result.columns.high)).mean() > 0.95


def test_several_observations_missing_values_images_and_frames():
    x = correlated(1000)
    x[::7, 1] = np.nan
    result = misspecification(pd.DataFrame(x, columns=["u", "v"]), pd.DataFrame([[0.1, np.nan], [50.0, 0.0]], columns=["u", "v"]))
    assert result.p_values[0] > 0.01 > result.p_values[1]
    assert result.columns.index.tolist() == ["u", "v"]
    images = np.random.default_rng(0).normal(size=(500, 4, 4))
    assert not misspecification(images, images[0] + 9, random_state=0).reliability.ok
    assert not misspecification(images, images[0] + 9, embedding=lambda x: x.mean(axis=(1, 2))[:, None], random_state=0).reliability.ok


def test_what_never_varies_in_simulations():
    result = misspecification(correlated(1000), [0.0, np.nan], random_state=0)
    assert "x_1 (missing)" in result.reliability.reasons[0]
    x = np.column_stack([correlated(1000), np.full(1000, 3.0)])
    assert misspecification(x, [0.1, 0.1, 3.0], random_state=0).reliability.ok
    assert "x_2" in misspecification(x, [0.1, 0.1, 3.1], random_state=0).reliability.reasons[0]


def test_few_simulations_cannot_reject_and_say_so():
    result = misspecification(correlated(90), [50.0, 0.0], random_state=0)
    assert result.reliability.ok
    assert "at least 100" in result.reliability.notes[0]
    with pytest.raises(ValueError, match="at least 40"):
        misspecification(correlated(30), [0.0, 0.0])
    with pytest.raises(ValueError, match=r"x_o of shape \(2,\)"):
        misspecification(correlated(100), [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="constant ones only"):
        misspecification(np.ones((100, 2)), [1.0, 1.0])
    assert not misspecification(np.ones((200, 2)), [1.0, 1.1]).reliability.ok
    with pytest.raises(ValueError, match="inf in number 1"):
        misspecification(correlated(100), [0.0, np.inf])


class At:
    """The posterior of one observation."""

    def __init__(self, estimator, x_o):
        self.estimator, self.x_o = estimator, x_o

    def sample(self, n_samples=1, random_state=None):
        return self.estimator.sample(self.x_o[None], n_samples, random_state)[0]


def make_simulator(seed):
    rng = np.random.default_rng(seed)
    return lambda theta: theta @ MIXING.T + NOISE_STD * rng.normal(size=(len(theta), 3))


def test_predictive_checks_of_an_exact_posterior_alarm_less_often_than_stated():
    """Data used twice make p-values larger than uniform: 60 replications at a level of .1, false alarm 1e-4."""
    alarms = 0
    for seed in range(60):
        x_o = simulate(1, np.random.default_rng(seed))[1][0]
        alarms += posterior_predictive(At(EXACT, x_o), make_simulator(seed), x_o, n_samples=200, random_state=seed).p_value < 0.1
    assert stats.binomtest(alarms, 60, 0.1, alternative="greater").pvalue > 1e-4


def test_predictive_checks_see_a_wrong_posterior_and_a_wrong_model():
    x_o = np.array([3.0, 2.0, 0.5])
    result = posterior_predictive(At(Gaussian(shift=15.0), x_o), make_simulator(0), x_o, names=list("abc"), random_state=0)
    assert not result.reliability.ok
    assert result.table.index.tolist() == list("abc")
    wrong = posterior_predictive(At(EXACT, x_o), lambda theta: np.tile([3.0, 2.0, 9.0], (len(theta), 1)), x_o, random_state=0)
    assert "x_2" in wrong.reliability.reasons[0]


def test_one_strange_summary_among_many_is_seen_and_named():
    """Adjusting two hundred p-values, none below 2/1001, one by one would hide it."""
    rng = np.random.default_rng(0)
    x_o = rng.normal(size=200)
    x_o[17] = 9.0
    result = posterior_predictive(At(EXACT, np.zeros(3)), lambda theta: rng.normal(size=(len(theta), 200)), x_o, random_state=0)
    assert result.p_value < 0.01
    assert "x_17 (" in result.reliability.reasons[0]
    assert (result.table.p_adjusted < 0.05).sum() == 1


def test_predictive_summaries_failures_and_missing_values():
    x_o = np.array([1.0, 0.0, 0.0])

    def flaky(theta):
        x = make_simulator(0)(theta)
        x[::10] = np.nan
        return x

    summaries = {"mean": lambda x: x.mean(axis=1), "largest": lambda x: x.max(axis=1)}
    result = posterior_predictive(At(EXACT, x_o), flaky, x_o, summaries=summaries, random_state=0)
    assert result.n_failed == 100
    assert result.x.shape == (900, 2)
    assert "100 of 1000" in result.reliability.notes[0]
    partly = posterior_predictive(At(EXACT, x_o), make_simulator(0), [1.0, np.nan, 0.0], random_state=0)
    assert partly.table.index.tolist() == ["x_0", "x_2"]
    with pytest.raises(ValueError, match=r"simulator\(theta\) of shape \(1000, 2\)"):
        posterior_predictive(At(EXACT, x_o), flaky, [1.0, 2.0])
    with pytest.raises(ValueError, match="1000 of 1000"):
        posterior_predictive(At(EXACT, x_o), lambda theta: np.full((len(theta), 3), np.nan), x_o)
    with pytest.raises(ValueError, match="summary 'bad'"):
        posterior_predictive(At(EXACT, x_o), flaky, x_o, summaries={"bad": lambda x: x})
