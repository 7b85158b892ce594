"""SBC, expected coverage and TARP: p-values uniform for an exact posterior, tiny for broken ones, errors that teach."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sbi_flows import ConditionalFlow
from sbi_flows.diagnostics import expected_coverage, sbc, tarp
from tests.diagnostics.conjugate import BROKEN, EXACT, simulate

METHODS = {"sbc": sbc, "expected_coverage": expected_coverage, "tarp": tarp}


@pytest.mark.parametrize("name", METHODS)
def test_p_values_of_an_exact_posterior_are_uniform(name):
    """60 replications; for sbc, whose p-value is adjusted, only not too small. False alarm 1e-4."""
    p_values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        theta, x = simulate(200, rng)
        p_values.append(METHODS[name](EXACT, theta, x, n_draws=99, random_state=rng).p_value)
    alternative = "greater" if name == "sbc" else "two-sided"      # too small p-values raise their distribution function
    assert stats.kstest(p_values, "uniform", alternative=alternative).pvalue > 1e-4


SEEN = {
    "sbc": ["too narrow", "too wide", "shifted", "swapped"],
    "expected_coverage": ["too narrow", "too wide", "swapped"],
    "tarp": ["too narrow", "too wide", "shifted", "swapped", "prior returned"],
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in SEEN for kind in SEEN[name]])
def test_broken_posteriors_are_seen(name, kind):
    rng = np.random.default_rng(0)
    theta, x = simulate(1000, rng)
    result = METHODS[name](BROKEN[kind], theta, x, n_draws=99, random_state=rng)
    assert result.p_value < 1e-3
    assert not result.reliability.ok


def test_a_quantity_that_depends_on_x_sees_a_posterior_that_ignores_it():
    rng = np.random.default_rng(0)
    theta, x = simulate(500, rng)
    ignorant = BROKEN["prior returned"]
    assert sbc(ignorant, theta, x, n_draws=99, random_state=rng).reliability.ok

    def product(theta, x):
        return theta[:, 0] * x[:, 0]

    result = sbc(ignorant, theta, x, n_draws=99, quantities={"product": product}, random_state=rng)
    assert not result.reliability.ok
    assert result.names == ("theta_0", "theta_1", "product")
    assert "product" in result.reliability.reasons[0]


def test_words_and_numbers_of_a_narrow_posterior():
    rng = np.random.default_rng(0)
    theta, x = simulate(1000, rng)
    result = sbc(BROKEN["too narrow"], theta, x, n_draws=200, random_state=rng)
    assert set(result.table["shape"]) == {"draws too narrow"}
    exact = stats.norm.cdf(0.7 * stats.norm.ppf(0.95)) * 2 - 1
    # Four binomial standard errors at 1000 trials, and the discreteness of 200 draws.
    np.testing.assert_allclose(result.table["inside_90"], exact, atol=4 * np.sqrt(exact * (1 - exact) / 1000) + 1 / 201)
    coverage = expected_coverage(BROKEN["too narrow"], theta, x, random_state=rng)
    assert "overconfident" in str(coverage)
    value, low, high = coverage.at(0.9)
    hpd = stats.chi2.cdf(0.7**2 * stats.chi2.ppf(0.9, 2), 2)
    assert low < value < high
    assert value == pytest.approx(hpd, abs=4 * np.sqrt(hpd * (1 - hpd) / 1000) + 1 / 301)


def test_ties_of_discrete_parameters_are_no_error():
    """Theta in {0, 1, 2} and draws from the same distribution; false alarm 0.01 at this one seed."""

    class Discrete:
        def sample(self, x, n_samples, random_state=None):
            return np.random.default_rng(random_state).integers(0, 3, (len(x), n_samples, 1)).astype(float)

    rng = np.random.default_rng(0)
    theta = rng.integers(0, 3, (1000, 1))
    assert sbc(Discrete(), theta, np.zeros((1000, 1)), n_draws=50, random_state=rng).reliability.ok


def test_flat_posteriors_whose_densities_all_tie_are_no_error():
    """theta ~ U(0, 1) and x = theta + U(-.2, .2): every draw is as dense as the truth. False alarm 0.01 at this one seed."""

    class Flat:
        def _ends(self, x):
            return np.maximum(x - 0.2, 0.0), np.minimum(x + 0.2, 1.0)

        def sample(self, x, n_samples, random_state=None):
            low, high = self._ends(x)
            u = np.random.default_rng(random_state).random((len(x), n_samples, 1))
            return low[:, None] + (high - low)[:, None] * u

        def log_prob(self, theta, x):
            low, high = self._ends(x)
            return np.where((theta >= low) & (theta <= high), -np.log(high - low), -np.inf)[:, 0]

    rng = np.random.default_rng(0)
    theta = rng.random((1000, 1))
    x = theta + rng.uniform(-0.2, 0.2, (1000, 1))
    for test in METHODS.values():
        assert test(Flat(), theta, x, n_draws=99, random_state=rng).reliability.ok


class Rescaled:
    """The exact posterior in other units, beside a column of x that is noise without moments."""

    def sample(self, x, n_samples, random_state=None):
        return 1e6 * EXACT.sample(x[:, :3] / 1e-6, n_samples, random_state)

    def log_prob(self, theta, x):
        return EXACT.log_prob(theta / 1e6, x[:, :3] / 1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_units_and_heavy_tails_do_not_matter(name):
    theta, x = simulate(300, np.random.default_rng(0))
    cauchy = np.random.default_rng(1).standard_cauchy((300, 1))
    before = METHODS[name](EXACT, theta, x, n_draws=99, random_state=0)
    after = METHODS[name](Rescaled(), 1e6 * theta, np.hstack([1e-6 * x, cauchy]), n_draws=99, random_state=0)
    moved = np.abs(before.ranks - after.ranks).mean()
    # Ranks without x do not move at all; the predicted references of TARP see one more column.
    assert moved < (10 if name == "tarp" else 0.1)


def test_same_seed_same_numbers_and_draws_come_in_few_calls():
    calls = []

    class Counting:
        def sample(self, x, n_samples, random_state=None):
            calls.append(len(x))
            return EXACT.sample(x, n_samples, random_state)

    theta, x = simulate(1000, np.random.default_rng(0))
    first, second = (sbc(Counting(), theta, x, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(first.ranks, second.ranks)
    assert calls[:5] == [10, 20, 40, 80, 100]
    assert len(calls) == 26


def test_columns_name_the_parameters_and_frames_reach_the_estimator():
    class Picky:
        def sample(self, x, n_samples, random_state=None):
            assert list(x.columns) == ["u", "v", "w"]
            return EXACT.sample(x.to_numpy(), n_samples, random_state)

    theta, x = simulate(50, np.random.default_rng(0))
    result = sbc(Picky(), pd.DataFrame(theta, columns=["mass", "age"]), pd.DataFrame(x, columns=list("uvw")), n_draws=20)
    assert result.names == ("mass", "age")


def test_a_conditional_flow_is_turned_round():
    """Its log_prob takes the condition first; with as many observables as parameters a mix-up would go unseen."""
    theta, x = simulate(200, np.random.default_rng(0))
    flow = ConditionalFlow(layers=1, hidden=(8,), max_epochs=2, random_state=0).fit(x[:, :2], theta)
    from sbi_flows.diagnostics.draws import as_posterior_estimator

    turned = as_posterior_estimator(flow)
    np.testing.assert_array_equal(turned.log_prob(theta, x[:, :2]), flow.log_prob(x[:, :2], theta))
    assert 0 <= expected_coverage(flow, theta, x[:, :2], n_draws=10, random_state=0).p_value <= 1


def test_references_of_the_users_own():
    rng = np.random.default_rng(0)
    theta, x = simulate(500, rng)
    assert not tarp(BROKEN["shifted"], theta, x, references=x[:, :2] + 2, random_state=rng).reliability.ok
    assert tarp(BROKEN["prior returned"], theta, x, references="uniform", random_state=rng).reliability.ok
    with pytest.raises(ValueError, match="one reference point a row"):
        tarp(EXACT, theta, x, references=x[:10, :2])
    with pytest.raises(ValueError, match="'predicted', 'uniform'"):
        tarp(EXACT, theta, x, references="random")


class Wrong:
    def __init__(self, shape, value=0.0):
        self.shape, self.value = shape, value

    def sample(self, x, n_samples, random_state=None):
        return np.full(self.shape(len(x), n_samples), self.value)

    def log_prob(self, theta, x):
        return np.full(len(theta), np.nan)


def test_errors_teach():
    theta, x = simulate(20, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"theta of shape \(n, d\); got \(20,\)"):
        sbc(EXACT, theta[:, 0], x)
    with pytest.raises(ValueError, match="20 rows of theta and 19 of x"):
        sbc(EXACT, theta, x[:-1])
    with pytest.raises(ValueError, match="at least 10 pairs"):
        sbc(EXACT, theta[:5], x[:5])
    with pytest.raises(ValueError, match=r"of shape \(10, 7, 2\)"):
        sbc(Wrong(lambda m, n: (n, m, 2)), theta, x, n_draws=7)
    with pytest.raises(ValueError, match="NaN or inf for observation 0"):
        sbc(Wrong(lambda m, n: (m, n, 2), np.nan), theta, x, n_draws=7)
    with pytest.raises(ValueError, match="20 NaN among 20"):
        expected_coverage(Wrong(lambda m, n: (m, n, 2)), theta, x, n_draws=7)
    with pytest.raises(ValueError, match="n_draws"):
        sbc(EXACT, theta, x, n_draws=0)
    with pytest.raises(TypeError, match="sample"):
        sbc(object(), theta, x)
    with pytest.raises(ValueError, match="Expected 2 names"):
        sbc(EXACT, theta, x, names=["a", "b", "c"])
