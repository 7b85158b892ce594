"""NPE against posteriors that are known, and what it says to bad input."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from sbi_flows import NPE, ConditionalFlow, FlowDensity, Reliability, simulate
from sbi_flows.distributions import BoxUniform, MultivariateNormal, from_pair
from sbi_flows.inference.atomic import go_on_by_atoms
from sbi_flows.inference.defaults import default_estimator
from sbi_flows.inference.posterior import FlowPosterior


def conjugate(n, seed=0):
    """theta ~ N(0, I), x = theta + N(0, I / 4): the posterior is N(0.8 x, 0.2 I)."""
    generator = torch.Generator().manual_seed(seed)
    prior = MultivariateNormal([0.0, 0.0], np.eye(2))
    theta = prior.sample(n, generator)
    return prior, theta.numpy(), (theta + 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)).numpy()


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


def test_no_draw_leaves_the_prior():
    prior = BoxUniform([0.0, -1.0], [1.0, 1.0])
    theta = prior.sample(1000, torch.Generator().manual_seed(0)).numpy()
    x = theta + 0.3 * np.random.default_rng(0).normal(size=theta.shape)
    npe = NPE(prior, ConditionalFlow(layers=1, hidden=(16,), max_epochs=3), random_state=0).fit(theta, x)
    draws = npe.sample([1.5, -2.0], 20_000, random_state=0)
    assert np.isfinite(prior.log_prob(torch.from_numpy(draws)).numpy()).all()


# --- More than one fit, files ------------------------------------------------------------------------------------------------


QUICK = {"flow": "maf", "layers": 1, "hidden": (8,), "max_epochs": 2}


def quick(prior, **settings):
    return NPE(prior, ConditionalFlow(**{**QUICK, **settings}), random_state=0)


def uniform_problem(n=400, columns=2):
    prior = BoxUniform([0.0] * columns, [1.0] * columns)
    theta = prior.sample(n, torch.Generator().manual_seed(0)).numpy()
    return prior, theta, theta + 0.1 * np.random.default_rng(0).normal(size=theta.shape)


def curved(n):
    """A problem that the linear start of a fit does not solve: polar coordinates seen as Cartesian ones."""
    prior = BoxUniform([0.5, 0.0], [1.0, 5.0])
    theta = prior.sample(n, torch.Generator().manual_seed(0)).numpy()
    x = theta[:, :1] * np.stack([np.cos(theta[:, 1]), np.sin(theta[:, 1])], axis=1)
    return prior, theta, x + 0.05 * np.random.default_rng(0).normal(size=x.shape)


@pytest.mark.parametrize("n_members", [1, 3])
def test_a_second_fit_adds_simulations_and_goes_on(n_members):
    """Nine times the simulations must help, and a third fit of one epoch at a small rate, too little to learn from, must keep the rest.

    Held-out means of 1000 rows have errors of 0.03 nats, their differences less."""
    prior, theta, x = curved(4000)
    fresh = theta[3000:], x[3000:]
    npe = quick(prior, max_epochs=20, hidden=(32,), learning_rate=1e-2, n_members=n_members).fit(theta[:300], x[:300])
    scaling = members_of(npe)[0].scaling.mean.clone()
    first = npe.log_prob(*fresh).mean()
    npe.fit(theta[300:3000], x[300:3000])
    assert npe.n_simulations_ == 3000 and len(members_of(npe)) == n_members
    second = npe.log_prob(*fresh).mean()
    assert second > first + 0.2
    assert torch.equal(members_of(npe)[0].scaling.mean, scaling)
    npe.estimator_.set_params(max_epochs=1, learning_rate=1e-4)
    assert npe.fit(theta[:1000], x[:1000]).log_prob(*fresh).mean() > second - 0.05


def members_of(npe):
    flow = npe.estimator_.flow_
    return list(getattr(flow, "flows", [flow]))


def test_a_second_fit_starts_afresh_where_x_shows_what_it_did_not():
    """theta_1 appears only in later simulations' third column, which was constant; x_0 is missing there for the first time."""
    prior, theta, x = uniform_problem(2000)
    before = np.column_stack([x[:, :1], np.ones((2000, 1))])
    npe = quick(prior, max_epochs=20, learning_rate=1e-2, hidden=(32,)).fit(theta[:500], before[:500])
    after = x.copy()
    after[::20, 0] = np.nan
    npe.fit(theta[500:], after[500:])
    assert npe.n_simulations_ == 2000
    note = "fitted afresh, since x[0] missing for the first time and x[1] no longer the same in all simulations"
    assert note in npe.history_.reliability.notes
    assert np.std(npe.sample([0.5, 0.5], 2000, random_state=0)[:, 1]) < 0.25 and npe.posterior([np.nan, 0.5]).reliability.ok
    npe.fit(theta[500:], after[500:])
    assert not any("afresh" in note for note in npe.history_.reliability.notes) and npe.n_simulations_ == 3500


def test_rounds_go_on_when_a_value_is_first_missing_in_the_second():
    prior, theta, x = uniform_problem()
    npe = quick(prior).fit(theta, x)
    gaps = x.copy()
    gaps[3, 1] = np.nan
    go_on_by_atoms(npe, theta, gaps, 5)
    assert npe.n_simulations_ == 799 and "1 of 800 simulations failed and were left out" in npe.history_.reliability.notes


def test_saved_and_loaded(tmp_path):
    prior, theta, x = uniform_problem()
    x[::9, 0] = np.nan
    npe = quick(prior).fit(theta, x)
    npe.save(tmp_path / "npe")
    loaded = NPE.load(tmp_path / "npe")
    np.testing.assert_array_equal(loaded.log_prob(theta[:50], x[:50]), npe.log_prob(theta[:50], x[:50]))
    assert loaded.theta_names_ == npe.theta_names_ and loaded.posterior(x[1]).reliability == npe.posterior(x[1]).reliability
    assert loaded.fit(theta, x).n_simulations_ == 400


def test_priors_that_are_code_are_given_back_in(tmp_path):

    prior, theta, x = uniform_problem(columns=1)
    npe = quick([scipy.stats.uniform(0, 1)]).fit(theta, x)
    npe.save(tmp_path / "npe")
    with pytest.raises(ValueError, match=r"prior that is code .* pass it as prior="):
        NPE.load(tmp_path / "npe")
    with pytest.raises(ValueError, match=r"prior that .* was fitted with; got one of support \[\(0.0, 2.0\)\]"):
        NPE.load(tmp_path / "npe", prior=scipy.stats.uniform(0, 2))
    assert NPE.load(tmp_path / "npe", prior=prior).sample(x[0], 3, random_state=0).shape == (3, 1)


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


# --- Units, noise, missing values --------------------------------------------------------------------------------------------


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


def test_a_prior_whose_support_is_no_box():
    """Triangle a < b: no draw outside, and the density integrates to one over it (grid of 200 x 200: 2 % at the diagonal)."""

    def sample(n, generator):
        return torch.rand(n, 2, generator=generator, dtype=torch.float64).sort(-1).values

    def log_prob(x):
        inside = (x[:, 0] < x[:, 1]) & (x >= 0).all(-1) & (x <= 1).all(-1)
        return torch.where(inside, math.log(2), -math.inf)

    prior = from_pair(sample, log_prob, 2, support=[(0, 1), (0, 1)])
    theta = prior.sample(1000, torch.Generator().manual_seed(0)).numpy()
    x = theta + 0.5 * np.random.default_rng(0).normal(size=theta.shape)
    npe = quick(prior, max_epochs=10).fit(theta, x)
    posterior = npe.posterior([0.5, 0.5])
    assert 0.1 < posterior.acceptance[0] < 0.99 and "lie inside the prior's support" in str(posterior.reliability)
    draws = posterior.sample(3000, random_state=0)
    assert draws.shape == (3000, 2) and (draws[:, 0] < draws[:, 1]).all()
    grid = (np.arange(200) + 0.5) / 200
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    assert np.exp(posterior.log_prob(points)).mean() == pytest.approx(1, abs=0.04)
    assert (posterior.log_prob(points[points[:, 0] > points[:, 1]]) == -np.inf).all()
    assert npe.sample(x[:3], 7, random_state=0).shape == (3, 7, 2)


def test_a_prior_that_forbids_a_corner():
    """x_o in the forbidden corner, which few simulations come near: no draw leaves the prior there, and the verdict says what was cut."""

    def allowed(x):
        return ((x >= 0) & (x <= 1)).all(-1) & ~(x > 0.9).all(-1)

    def sample(n, generator):
        x = torch.rand(2 * n + 50, 2, generator=generator, dtype=torch.float64)
        return x[allowed(x)][:n]

    prior = from_pair(sample, lambda x: torch.where(allowed(x), -math.log(0.99), -math.inf), 2, support=[(0, 1), (0, 1)])
    theta = prior.sample(1000, torch.Generator().manual_seed(0)).numpy()
    npe = quick(prior, hidden=(32,), max_epochs=20).fit(theta, theta + 0.02 * np.random.default_rng(0).normal(size=theta.shape))
    corner, middle = [0.93, 0.93], [0.5, 0.5]
    batch = npe.posterior([middle] * 24 + [corner])
    assert batch.acceptance[24] < 0.9 and (batch.acceptance[:24] > 0.99).all()
    assert allowed(torch.from_numpy(batch.sample(500, random_state=0))).all()
    assert "lie inside the prior's support, which is no box; the others are rejected (for observation 24" in str(batch.reliability)
    assert npe.posterior([1.1, 1.1]).log_prob([[0.95, 0.95]]) == -np.inf


def test_a_leak_spoils_the_verdict_of_batches_of_any_size():
    class Leaky(ConditionalFlow):
        def sample(self, condition, n_samples, random_state=None):
            return np.linspace(-2, 1, n_samples)[None, :, None].repeat(len(condition), 0)

    estimator, many = Leaky(), np.zeros((25, 1))
    for rows, m in ((many[:1], None), (many, 25)):
        posterior = FlowPosterior(estimator, rows, BoxUniform([0], [1]), ["a"], rows, Reliability(True), m, rejects=True)
        posterior.remark([], ["seen"])
        assert not posterior.reliability.ok and posterior.reliability.notes == ("seen",) and len(posterior.reliability.reasons) == 1


# --- Bad input ---------------------------------------------------------------------------------------------------------------


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


# --- Same bits, float64, and from simulator to posterior -----------------------------------------------------------------------


def test_same_seed_same_bits():
    prior, theta, x = uniform_problem()
    first, second = (quick(prior).fit(theta, x).sample(x[:3], 20, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, NPE(prior, ConditionalFlow(**QUICK), random_state=1).fit(theta, x).sample(x[:3], 20, random_state=3))


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


def test_a_prior_with_heavy_tails():
    """Cauchy prior, noise 0.3: at x_o = 0.5 the posterior is nearly N(0.5, 0.3^2). Moments of the draws give no scale."""
    rng = np.random.default_rng(0)
    theta = rng.standard_cauchy((2000, 1))
    npe = quick(scipy.stats.cauchy(), hidden=(32,), max_epochs=30).fit(theta, theta + 0.3 * rng.normal(size=theta.shape))
    draws = npe.sample([0.5], 4000, random_state=0)
    assert abs(np.median(draws) - 0.5) < 0.15 and 0.15 < np.std(draws) < 0.6
