"""NPE against posteriors that are known, and what it says to bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from npe_cases import conjugate, quick, uniform_problem

from sbi_flows import NPE, ConditionalFlow, FlowDensity, simulate
from sbi_flows.distributions import BoxUniform
from sbi_flows.inference.defaults import default_estimator


@pytest.fixture(scope="module")
def gaussian():
    prior, theta, x = conjugate(3000)
    return NPE(prior, ConditionalFlow(flow="maf", layers=1, hidden=(32,)), random_state=0).fit(theta, x)


def test_conjugate_gaussian_is_recovered(gaussian):
    """Errors of the fit: 3000 simulations determine a linear regression to 0.5 / sqrt(3000) = 0.01; allowed is ten times that."""
    for x_o in ([0.0, 0.0], [1.0, -1.0]):
        draws = gaussian.posterior(x_o).sample(20_000, random_state=0)
        np.testing.assert_allclose(draws.mean(0), 0.8 * np.array(x_o), atol=0.1)
        np.testing.assert_allclose(np.cov(draws.T), 0.2 * np.eye(2), atol=0.05)


def test_shapes_of_single_observations_and_batches(gaussian):
    single, batch = gaussian.posterior([0.0, 1.0]), gaussian.posterior(np.zeros((3, 2)))
    assert single.sample(5, random_state=0).shape == (5, 2)
    assert batch.sample(5, random_state=0).shape == (3, 5, 2)
    assert single.log_prob(np.zeros((4, 2))).shape == (4,)
    assert batch.log_prob(np.zeros((4, 2))).shape == (3, 4)
    assert gaussian.log_prob(np.zeros((3, 2)), np.zeros((3, 2))).shape == (3,)
    assert batch[1].sample(5, random_state=0).shape == (5, 2)
    assert batch.map(random_state=0, n_draws=50, n_starts=1).shape == (3, 2)
    with pytest.raises(ValueError, match=r"single observation for reweight\(\); this posterior holds 3. Pick one: posterior\[0\]"):
        batch.reweight(lambda theta: theta[:, 0])


def test_map_is_the_mode(gaussian):
    """The mode of a normal is its mean, to the 0.1 of the fit."""
    np.testing.assert_allclose(gaussian.posterior([0.5, -0.5]).map(random_state=0), [0.4, -0.4], atol=0.1)


def test_reweighting_reaches_the_exact_posterior_and_evidence(gaussian):
    """ln Z of N(0, 1.25 I) at x_o; its error is 1 / sqrt(ESS), and four of them are allowed (false alarm 1e-4)."""
    x_o = np.array([0.5, -0.5])

    def log_likelihood(theta):
        return -0.5 * np.square((x_o - theta) / 0.5).sum(1) - np.log(2 * np.pi * 0.25)

    weighted = gaussian.posterior(x_o).reweight(log_likelihood, 5000, random_state=0)
    exact = -0.5 * np.square(x_o).sum() / 1.25 - np.log(2 * np.pi * 1.25)
    assert weighted.ess > 2500
    log_z = np.log(np.mean(np.exp(weighted.log_weights)))
    assert abs(log_z - exact) < 4 / np.sqrt(weighted.ess)


def test_data_frames_in_names_out():
    _, theta, x = uniform_problem()
    prior = BoxUniform([0.0, 0.0], [1.0, 1.0], names=["a", "b"])
    theta, x = pd.DataFrame(theta, columns=["a", "b"]), pd.DataFrame(x, columns=["u", "v"])
    npe = quick(prior).fit(theta[["b", "a"]], x)
    posterior = npe.posterior(x[["v", "u"]].iloc[0])
    assert posterior.names == ("a", "b") and list(posterior.to_dataframe(5, random_state=0).columns) == ["a", "b"]
    table = posterior.to_dataframe(5, random_state=0)
    np.testing.assert_array_equal(posterior.log_prob(table[["b", "a"]]), posterior.log_prob(table.to_numpy()))
    np.testing.assert_array_equal(posterior.sample(5, random_state=0), npe.sample(x.to_numpy()[0], 5, random_state=0))
    with pytest.raises(ValueError, match="columns of theta to be a, b; got a, c"):
        quick(prior).fit(theta.rename(columns={"b": "c"}), x)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_units_do_not_matter(factor):
    """Same seed, same data in other units: the network learns from the same bits, so the draws differ by rounding only.

    A standardised value of 800 comes so near the border between two float32 numbers that it rounds the other way in 1e-9 of cases."""
    prior, theta, x = uniform_problem()
    scaled = BoxUniform([0.0, 0.0], [factor, factor])

    def fitted(prior, theta, x):
        return NPE(prior, default_estimator().set_params(max_epochs=5), random_state=0).fit(theta, x)

    draws = fitted(prior, theta, x).sample(x[0], 500, random_state=0)
    for other, own, observed in ((prior, theta, x * factor), (scaled, theta * factor, x)):
        again = fitted(other, own, observed).sample(observed[0], 500, random_state=0)
        np.testing.assert_allclose(again / np.ptp(own), draws / np.ptp(theta), rtol=0, atol=1e-12)


def test_a_column_of_cauchy_noise_does_little_harm():
    """Of the defaults on 600 simulations: the mean log posterior at fresh pairs, and with a large noise value in all of them.

    Fits to 600 simulations with other seeds differ by 0.015 nats (deviation of three), of which 0.05 is three; at a noise of 30, in the
    outer 2 % of what was simulated, twice that. Unscaled, the noise would cost whole nats."""
    prior, theta, x = conjugate(1600)
    noisy = np.column_stack([x, np.random.default_rng(1).standard_cauchy(len(x))])
    extreme = noisy[600:].copy()
    extreme[:, 2] = 30.0
    clean = NPE(prior, random_state=0).fit(theta[:600], x[:600]).log_prob(theta[600:], x[600:]).mean()
    npe = NPE(prior, random_state=0).fit(theta[:600], noisy[:600])
    assert npe.log_prob(theta[600:], noisy[600:]).mean() > clean - 0.05
    assert npe.log_prob(theta[600:], extreme).mean() > clean - 0.1


def test_missing_values_leave_what_the_others_say():
    """With x_1 missing the posterior of theta_1 is its prior N(0, 1), that of theta_0 is unchanged N(0.8 x_0, 0.2)."""
    prior, theta, x = conjugate(4000)
    x[np.random.default_rng(0).random(len(x)) < 0.3, 1] = np.nan
    npe = quick(prior, hidden=(32,), max_epochs=40).fit(theta, x)
    draws = npe.sample([1.0, np.nan], 5000, random_state=0)
    np.testing.assert_allclose(draws.mean(0), [0.8, 0.0], atol=0.12)
    np.testing.assert_allclose(draws.std(0), [0.2**0.5, 1.0], atol=0.12)
    with pytest.raises(ValueError, match=r"x_o misses x\[0\], which no simulation missed"):
        npe.posterior([np.nan, 1.0])


def test_one_parameter_and_one_observable():
    prior, theta, x = uniform_problem(columns=1)
    npe = quick(prior).fit(theta[:, 0], x[:, 0])
    assert npe.posterior(0.5).sample(4, random_state=0).shape == (4, 1)
    assert npe.posterior([[0.5], [0.6]]).sample(4, random_state=0).shape == (2, 4, 1)
    assert np.isfinite(npe.posterior(0.5).map(random_state=0)).all()
    assert npe.log_prob(theta[:5, 0], x[:5]).shape == (5,)


def test_twenty_simulations_warn():
    prior, theta, x = uniform_problem(20)
    with pytest.warns(UserWarning, match="20 simulations are few"):
        npe = quick(prior).fit(theta, x)
    assert not npe.posterior(x[0]).reliability.ok


def test_parameters_outside_the_prior():
    prior, theta, x = uniform_problem()
    theta[7, 1] = 1.5
    with pytest.raises(ValueError, match=r"theta drawn from the prior; 1 of 400 rows .* first row 7: theta_0 = .*, theta_1 = 1.5"):
        quick(prior).fit(theta, x)


def test_parameters_that_never_change():
    prior, theta, x = uniform_problem()
    theta[:, 1] = 0.5
    with pytest.raises(ValueError, match=r"all simulations have theta_1 = 0.5. If it is known, build it into the simulator"):
        quick(prior).fit(theta, x)


def test_failed_simulations_are_left_out_and_counted():
    prior, theta, x = uniform_problem()
    x[3], x[5, 0] = np.nan, np.inf
    assert "2 of 400 simulations failed and were left out" in quick(prior).fit(theta, x).history_.reliability.notes
    x[:100] = np.nan
    with pytest.warns(UserWarning, match="100 of 400 simulations failed .* look at one failed simulation"):
        quick(prior).fit(theta, x)
    with pytest.raises(ValueError, match="at least two simulations that succeeded; got 0 of 400"):
        quick(prior).fit(theta, np.full_like(x, np.nan))


def test_constant_simulations():
    prior, theta, x = uniform_problem()
    with pytest.raises(ValueError, match=r"all 2 of its columns are constant.*Does the simulator use its parameters"):
        quick(prior).fit(theta, np.ones_like(x))
    npe = quick(prior).fit(theta, np.column_stack([x, np.ones(len(x))]))
    assert "x[2] the same in all simulations" in str(npe.history_.reliability)
    assert "x_o lies outside the range of the simulations in x[2]" in str(npe.posterior([0.5, 0.5, 2.0]).reliability)


@pytest.mark.parametrize(
    ("theta", "x", "message"),
    [
        (np.zeros(2), np.zeros((1, 2)), r"theta of shape \(n, 2\) to match the prior; got \(2,\).*theta\[None\]"),
        (np.zeros((5, 3)), np.zeros((5, 2)), r"theta of shape \(n, 2\)"),
        (np.zeros((5, 2)), np.zeros((4, 2)), r"one simulation for each of the 5 rows of theta; got x of shape \(4, 2\)"),
    ],
)
def test_wrong_shapes(theta, x, message):
    with pytest.raises(ValueError, match=message):
        quick(BoxUniform([0, 0], [1, 1])).fit(theta, x)


def test_wrong_observations(gaussian):
    with pytest.raises(ValueError, match=r"x_o of shape \(2,\) like one simulation, or \(m, 2\) for m observations; got \(3,\)"):
        gaussian.posterior(np.zeros(3))
    with pytest.raises(ValueError, match=r"finite x_o .* infinite values in x\[1\]"):
        gaussian.posterior([0.0, np.inf])
    with pytest.raises(ValueError, match="as many rows of theta as of x, or a single x; got 3 and 2"):
        gaussian.log_prob(np.zeros((3, 2)), np.zeros((2, 2)))
    verdict = gaussian.posterior([0.0, 50.0]).reliability
    assert not verdict.ok and "outside the range of the simulations in x[1]" in verdict.reasons[-1]
    assert gaussian.posterior([0.0, 1.0]).reliability.ok
    batch = gaussian.posterior([[0.0, 1.0], [0.0, 50.0], [1.0, 0.0]])
    assert "1 of 3 observations (the first is number 1) lie outside the range" in batch.reliability.reasons[-1]
    assert batch[0].reliability.ok and not batch[1].reliability.ok


def test_wrong_estimators():
    prior, theta, x = uniform_problem()
    with pytest.raises(TypeError, match="estimator to be a ConditionalFlow or None; got FlowDensity"):
        NPE(prior, FlowDensity()).fit(theta, x)
    with pytest.raises(ValueError, match="without support=, which the prior decides"):
        NPE(prior, ConditionalFlow(support="real")).fit(theta, x)


def test_float64_throughout():
    """Log densities do not depend on how rows are batched beyond 1e-12, which float32 cannot keep."""
    prior, theta, x = uniform_problem()
    npe = quick(prior, dtype="float64").fit(theta, x)
    assert {p.dtype for p in npe.estimator_.flow_.parameters()} == {torch.float64}
    together = npe.log_prob(theta[:50], x[:50])
    alone = np.concatenate([npe.log_prob(theta[i : i + 1], x[i]) for i in range(50)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def test_from_a_simulator_that_sometimes_fails():
    def simulator(theta, rng):
        if theta[0] > 0.95:
            raise ArithmeticError("overflow")
        return theta + 0.1 * rng.normal(size=2)

    prior, theta, _ = uniform_problem()
    with pytest.warns(UserWarning, match="simulations failed and are rows of NaN: .* raised ArithmeticError: overflow"):
        x = simulate(simulator, theta, random_state=0)
    npe = quick(prior).fit(theta, x)
    assert npe.n_simulations_ == (theta[:, 0] <= 0.95).sum()
    assert npe.posterior(x[0] if np.isfinite(x[0]).all() else x[1]).sample(10, random_state=0).shape == (10, 2)
