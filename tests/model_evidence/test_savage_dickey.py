"""Savage-Dickey ratios of nested linear models, whose Bayes factors are known in closed form."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import halfnorm, norm, truncnorm

from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.model_evidence.savage_dickey import savage_dickey
from sbi_flows.results import Chains


class Normal:
    """A one-dimensional normal density, in the role of a fitted one."""

    def __init__(self, mean, scale, seed=0):
        self.mean, self.scale, self.rng = mean, scale, np.random.default_rng(seed)

    def log_prob(self, x):
        return norm(self.mean, self.scale).logpdf(x[:, 0])

    def sample(self, n):
        return self.mean + self.scale * self.rng.standard_normal((n, 1))


def linear_log_z(design, y):
    covariance = np.eye(len(y)) + design @ design.T
    return -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + y @ np.linalg.solve(covariance, y))


@pytest.fixture
def nested():
    """y = level + slope x + N(0, 1), both coefficients ~ N(0, 1): exact posterior and exact ln B_01 for slope = 0."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal(30)
    y = 0.3 + 0.25 * x + rng.standard_normal(30)
    full = np.column_stack([np.ones(30), x])
    covariance = np.linalg.inv(full.T @ full + np.eye(2))
    mean = covariance @ full.T @ y
    return {"mean": mean, "cov": covariance, "log_bf": linear_log_z(full[:, :1], y) - linear_log_z(full, y)}


def draws_of(nested, n, seed=0):
    return np.random.default_rng(seed).multivariate_normal(nested["mean"], nested["cov"], n)


PRIOR = MultivariateNormal(np.zeros(1), np.eye(1))


def test_a_known_density_gives_the_exact_ratio(nested):
    marginal = Normal(nested["mean"][1], np.sqrt(nested["cov"][1, 1]))
    result = savage_dickey(marginal, PRIOR, 0.0)
    assert result.log_bf == pytest.approx(nested["log_bf"], abs=1e-10)
    assert np.isnan(result.log_bf_err)
    assert "error is not known" in repr(result)


def test_the_error_covers_the_truth(nested):
    """Pulls of 40 data sets are standard normal: their mean square is 1 within 4 of its standard errors, sqrt(2 / 40)."""
    wrong = Normal(nested["mean"][1], 1.1 * np.sqrt(nested["cov"][1, 1]))        # a fit ten per cent too wide is put right
    pulls = []
    for seed in range(40):
        result = savage_dickey(draws_of(nested, 4000, seed), PRIOR, 0.0, columns=[1], density=wrong, random_state=seed)
        pulls.append((result.log_bf - nested["log_bf"]) / result.log_bf_err)
    assert np.mean(np.square(pulls)) < 1 + 4 * np.sqrt(2 / 40)
    assert np.mean(np.square(pulls)) > 0.2
    assert 0 < result.log_bf_err < 0.1


def test_names_and_columns_agree(nested):
    marginal = Normal(nested["mean"][1], np.sqrt(nested["cov"][1, 1]))
    draws = draws_of(nested, 4000)
    table = pd.DataFrame(draws, columns=["level", "slope"])
    chains = Chains(draws.reshape(4, 1000, 2), ("level", "slope"))
    results = []
    for samples, point, columns in [(draws, 0.0, [1]), (table, {"slope": 0.0}, None), (chains, [0.0], ["slope"])]:
        marginal.rng = np.random.default_rng(0)
        results.append(savage_dickey(samples, PRIOR, point, columns=columns, density=marginal).log_bf)
    assert np.ptp(results) == 0


def test_a_column_may_be_called_log_prob(nested):
    table = pd.DataFrame(draws_of(nested, 400), columns=["level", "slope"]).assign(log_prob=0.0)
    marginal = Normal(nested["mean"][1], np.sqrt(nested["cov"][1, 1]))
    assert np.isfinite(savage_dickey(table, PRIOR, {"slope": 0.0}, density=marginal).log_bf)


def test_chains_in_a_list_may_differ_in_length(nested):
    draws = draws_of(nested, 1000)
    results = []
    for samples in (draws[None], [draws[:300], draws[300:]], [pd.DataFrame(part) for part in (draws[:900], draws[900:])]):
        marginal = Normal(nested["mean"][1], np.sqrt(nested["cov"][1, 1]))
        results.append(savage_dickey(samples, PRIOR, 0.0, columns=[1], density=marginal).log_bf)
    assert np.ptp(results) == 0
    four = savage_dickey(list(draws.reshape(4, 250, 2)), PRIOR, 0.0, columns=[1], density=marginal)
    assert np.isfinite(four.log_bf_err)
    with pytest.raises(ValueError, match="Expected chains with the same columns"):
        savage_dickey([draws, draws[:, :1]], PRIOR, 0.0, columns=[0])


def test_a_density_that_disagrees_with_the_draws_is_flagged(nested):
    narrow = Normal(nested["mean"][1] + 0.3, 0.3 * np.sqrt(nested["cov"][1, 1]))
    result = savage_dickey(draws_of(nested, 4000), PRIOR, nested["mean"][1], columns=[1], density=narrow)
    assert not result.reliability.ok
    assert "disagree" in repr(result)


def test_a_point_beyond_the_draws_is_flagged(nested):
    marginal = Normal(nested["mean"][1], np.sqrt(nested["cov"][1, 1]))
    far = nested["mean"][1] - 5 * marginal.scale
    result = savage_dickey(draws_of(nested, 4000), PRIOR, far, columns=[1], density=marginal)
    assert not result.reliability.ok
    assert "extrapolation" in result.reliability.reasons[0]


def test_slow_chains_have_a_larger_error(nested):
    marginal = Normal(nested["mean"][1], np.sqrt(nested["cov"][1, 1]))
    rng = np.random.default_rng(0)
    noise, slow = rng.standard_normal((4, 4000)), np.zeros((4, 4000))
    for i in range(1, 4000):
        slow[:, i] = 0.9 * slow[:, i - 1] + np.sqrt(0.19) * noise[:, i]
    fast = savage_dickey((marginal.mean + marginal.scale * noise)[..., None], PRIOR, 0.0, density=marginal)
    slow = savage_dickey((marginal.mean + marginal.scale * slow)[..., None], PRIOR, 0.0, density=marginal)
    assert slow.log_bf_err > 2 * fast.log_bf_err


def test_with_the_default_flow(nested):
    result = savage_dickey(draws_of(nested, 3000), PRIOR, {"x1": 0.0}, random_state=0)
    assert abs(result.log_bf - nested["log_bf"]) < 4 * result.log_bf_err and result.log_bf_err < 0.2
    assert result.reliability.ok, result


def test_a_point_on_the_edge_of_the_support_with_the_default_flow():
    """An amplitude >= 0 tested at 0: posterior N(0.5, 1) cut at zero."""

    class HalfNormal:
        support = ((0.0, np.inf),)

        def log_prob(self, x):
            return halfnorm(scale=2).logpdf(x[:, 0])

    posterior = truncnorm(-0.5, np.inf, loc=0.5)
    draws = posterior.rvs((3000, 1), random_state=0)
    result = savage_dickey(draws, HalfNormal(), 0.0, random_state=0)
    exact = posterior.logpdf(0.0) - halfnorm(scale=2).logpdf(0.0)
    # The mirrored density has a kink where the posterior's slope is not zero, which a smooth flow rounds off: 0.05 for it.
    assert result.log_bf == pytest.approx(exact, abs=4 * result.log_bf_err + 0.05)


def test_messages(nested):
    draws = draws_of(nested, 200)
    with pytest.raises(ValueError, match="one a tested column"):
        savage_dickey(draws, PRIOR, 0.0)
    with pytest.raises(ValueError, match="Unknown column 'tilt'; the samples have x0, x1"):
        savage_dickey(draws, PRIOR, {"tilt": 0.0})
    with pytest.raises(ValueError, match="between 0 and 1"):
        savage_dickey(draws, PRIOR, 0.0, columns=[2])
    with pytest.raises(ValueError, match="Is the point inside"):
        savage_dickey(draws, BoxUniform([1.0], [2.0]), 0.0, columns=[1])
    with pytest.raises(ValueError, match="at least 100 draws"):
        savage_dickey(draws[:50], PRIOR, 0.0, columns=[1])
    with pytest.raises(ValueError, match="Expected finite draws"):
        savage_dickey(np.where(draws > 0, draws, np.nan), PRIOR, 0.0, columns=[1])
    with pytest.raises(ValueError, match="at least one is constant"):
        savage_dickey(np.ones((200, 1)), PRIOR, 0.0)
    with pytest.raises(ValueError, match=r"Expected samples of shape .* got \(200,\)"):
        savage_dickey(draws[:, 0], PRIOR, 0.0)
    with pytest.raises(TypeError, match="from_scipy"):
        savage_dickey(draws, norm(0, 1), 0.0, columns=[1])
    with pytest.raises(ValueError, match="it names"):
        savage_dickey(draws, PRIOR, {"x0": 0.0, "x1": 0.0}, columns=["x1"])
