import numpy as np
import pytest
from scipy import stats

from sbi_flows import NPE
from sbi_flows.distributions import BoxUniform
from sbi_flows.inference.observations import Observations
from sbi_flows.inference.relevance import idle_columns


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def signs(rng, n):
    return rng.choice([-1.0, 1.0], size=(n, 1))


def informed(rng, n=3000):
    theta = rng.uniform(-1, 1, size=(n, 2))
    return theta, theta + 0.3 * rng.normal(size=(n, 2))


def test_noise_of_any_tails_is_idle(rng):
    theta, x = informed(rng)
    noise = [rng.normal(size=3000), rng.standard_cauchy(3000), rng.integers(0, 2, 3000), rng.exponential(size=3000) * 1e9]
    assert idle_columns(theta, np.column_stack([x, *noise])).tolist() == [False, False, True, True, True, True]


def test_noise_columns_that_depend_on_each_other_are_idle(rng):
    theta, x = informed(rng)
    common = rng.normal(size=(3000, 1))
    noise = common + 0.1 * rng.normal(size=(3000, 20))
    assert idle_columns(theta, np.hstack([x, noise])).tolist() == [False] * 2 + [True] * 20


def test_a_channel_that_measures_another_one_s_noise_is_kept(rng):
    theta, _ = informed(rng)
    background = rng.normal(size=(3000, 1))
    x = np.hstack([theta[:, :1] + background, background + 0.1 * rng.normal(size=(3000, 1)), rng.normal(size=(3000, 1))])
    assert idle_columns(theta, x).tolist() == [False, False, True]


def test_columns_that_tell_together_only_are_kept(rng):
    # Neither the sign nor the signed amount goes with theta; their product is theta.
    theta, _ = informed(rng)
    sign = signs(rng, 3000)
    assert not idle_columns(theta, np.hstack([sign, sign * theta[:, :1]])).any()


def test_a_spread_that_goes_with_theta_is_seen(rng):
    theta = rng.uniform(0.5, 2, size=(2000, 1))
    x = np.hstack([theta * rng.normal(size=(2000, 1)), rng.normal(size=(2000, 1))])
    assert idle_columns(theta, x).tolist() == [False, True]


def test_traces_too_weak_to_be_seen_alone_are_kept_where_they_add_up(rng):
    theta, x = informed(rng, 2000)
    weak = 0.1 * theta[:, 1:] + rng.normal(size=(2000, 60))  # each goes with theta by .06, below the bound of .1; together by .4
    assert not idle_columns(theta, np.hstack([x[:, :1], weak])).any()


def test_nothing_is_left_out_where_nothing_tells_or_simulations_are_few(rng):
    theta, x = informed(rng)
    assert not idle_columns(theta, rng.normal(size=(3000, 4))).any()
    assert not idle_columns(theta[:900], np.hstack([x, rng.normal(size=(3000, 1))])[:900]).any()


def test_columns_that_miss_values_or_are_constant_are_not_called_idle(rng):
    theta, x = informed(rng)
    gaps = np.where(rng.random((3000, 1)) < 0.1, np.nan, rng.normal(size=(3000, 1)))
    assert not idle_columns(theta, np.hstack([x, gaps, np.ones((3000, 1))])).any()


def test_noise_is_seldom_kept():
    # Stated: about 1 % of data sets keep any column of noise. More than 9 of 200 by chance: 5e-5.
    kept = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        theta, x = informed(rng, 1000)
        kept += not idle_columns(theta, np.hstack([x, rng.normal(size=(1000, 3))]))[2:].all()
    assert kept <= stats.binom.isf(1e-4, 200, 0.01)


def test_a_cauchy_column_leaves_the_posterior_as_it_was(rng):
    theta, x = informed(rng)
    prior = BoxUniform([-1.0, -1.0], [1.0, 1.0])
    with_noise = np.column_stack([x, rng.standard_cauchy(3000)])
    one = NPE(prior, random_state=0).fit(theta, x)
    other = NPE(prior, random_state=0).fit(theta, with_noise)
    assert any("x[2] left out, as nothing there goes with theta" in note for note in other.history_.reliability.notes)
    draws = one.posterior([0.3, 0.1]).sample(100, random_state=1)
    np.testing.assert_array_equal(draws, other.posterior([0.3, 0.1, 50.0]).sample(100, random_state=1))


def test_idle_columns_are_looked_at_again(rng):
    theta, x = informed(rng)
    rows = np.column_stack([x, rng.normal(size=3000)])
    observations = Observations.from_data(Observations(idle=[2]).fit(rows).to_data())
    assert observations.n_columns == 2 and observations.transform(rows).shape == (3000, 2)
    assert observations.outgrown_by(rows, theta) == ""
    rows[:, 2] += theta[:, 0]
    assert observations.outgrown_by(rows, theta) == "x[2] found to tell of theta"
