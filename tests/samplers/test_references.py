"""emcee and dynesty under our interface, and a flow among emcee's moves."""

import math

import emcee
import numpy as np
import pytest
import torch

from sbi_flows import targets
from sbi_flows.distributions import BoxUniform, MultivariateNormal, Product
from sbi_flows.estimators import FlowDensity
from sbi_flows.samplers import FlowMove, run_dynesty, run_emcee
from sbi_flows.weights import log_mean_error

LOG_Z_BOX = math.log(2 * math.pi / 100)  # of a unit normal in two dimensions under a prior of area 100


def gaussian(x):
    return -0.5 * x.square().sum(-1)


def in_box(log_likelihood=gaussian):
    return targets.posterior(log_likelihood, BoxUniform([-5.0, -5.0], [5.0, 5.0], names=["a", "b"]))


# --- emcee ----------------------------------------------------------------------------------------------------------------------


def test_emcee_samples_the_target_and_counts():
    chains = run_emcee(in_box(), min_ess=1000, random_state=0)
    assert chains.ensemble and chains.reliability.ok and chains.names == ("a", "b")
    # 1000 independent draws: 4 standard errors of a mean are .13, of a standard deviation .09; chance 3e-4 for the four.
    flat = chains.samples.reshape(-1, 2)
    assert np.abs(flat.mean(0)).max() < 0.13 and np.abs(flat.std(0) - 1).max() < 0.09
    info = chains.info
    kept = info["n_steps"] + 500
    assert info["n_evaluations"] == 20 * 40 + 40 + 40 * kept  # the choice of starts, their first values, and every step
    assert info["n_gradients"] == 0 and info["seconds"] > 0 and len(info["tau"]) == 2 and info["random_state"] == 0
    np.testing.assert_allclose(chains.log_likelihood, chains.log_posterior + math.log(100), rtol=0, atol=1e-12)


def test_emcee_repeats_to_the_same_bits():
    first, second = (run_emcee(in_box(), n_burn_in=20, min_steps=30, max_steps=30, random_state=0) for _ in range(2))
    np.testing.assert_array_equal(first.samples, second.samples)


def test_emcee_starts_in_every_mode_the_prior_finds():
    """Two modes of masses .3 and .7; the walkers' own shares stay as they start, so the starts must have them about right."""

    def two(x):
        modes = torch.stack([-0.5 * ((x - m) ** 2).sum(-1) / 0.25 + math.log(w) for m, w in ((-3.0, 0.3), (3.0, 0.7))])
        return torch.logsumexp(modes, 0)

    chains = run_emcee(in_box(two), n_walkers=1000, n_burn_in=100, min_ess=2000, min_steps=100, max_steps=100, random_state=0)
    # Of 1000 starts a share has a standard error of .014, of the 600 draws of the prior near a mode one of .019: .024 together, and
    # flattening moves it. Four errors (6e-5); starts that ignored the masses would be .2 off.
    assert abs((chains.samples[..., 0] > 0).mean() - 0.7) < 0.1


def test_emcee_gives_up_and_says_so():
    chains = run_emcee(in_box(), min_ess=10**6, min_steps=50, max_steps=60, random_state=0)
    assert not chains.reliability.ok and "1000000 were asked for, after 60 steps" in str(chains.reliability)


def test_emcee_of_angles_cubes_and_holes():
    circular = targets.from_log_prob(lambda x: 2 * torch.cos(x[:, 0]), 1, support=[("circular", 0.0, 2 * math.pi)])
    start = np.random.default_rng(0).uniform(-2 * np.pi, 2 * np.pi, (40, 1))
    start[0] = -1e-20  # its remainder rounds to the period
    x = run_emcee(circular, start, n_burn_in=200, max_steps=500, random_state=0).samples
    assert x.min() >= 0 and x.max() < 2 * np.pi
    assert np.cos(x).mean() == pytest.approx(0.6978, abs=0.185)  # I_1(2) / I_0(2); some 75 independent draws of spread .4, four errors
    cube = targets.from_dynesty(lambda u: 10 * u - 5, lambda t: -0.5 * (t**2).sum(-1), 2, vectorized=True)
    draws = run_emcee(cube, n_burn_in=100, max_steps=500, random_state=0)
    assert draws.log_posterior is None and abs(draws.samples.std() - 1) < 0.15
    holed = in_box(lambda x: torch.where(x[:, 0] > 1, math.nan, gaussian(x)))
    holes = run_emcee(holed, n_burn_in=100, min_steps=100, max_steps=100, random_state=0)
    assert holes.samples[..., 0].max() <= 1 and "proposals after burn-in (" in str(holes.reliability)


def test_emcee_walkers_frozen_in_separate_modes_are_told():
    """Masses .9 and .1, half of the walkers in each: every walker mixes within its mode, and none crosses."""
    log_mass = torch.tensor([0.9, 0.1], dtype=torch.float64).log()

    def two(x):
        return torch.logsumexp(torch.stack([-0.5 * (x - m).square().sum(-1) for m in (-20.0, 20.0)], -1) + log_mass, -1)

    start = np.random.default_rng(0).normal(size=(40, 5)) + np.repeat([-20.0, 20.0], 20)[:, None]
    settings = {"n_burn_in": 200, "min_ess": 500, "min_steps": 2500, "max_steps": 5000, "random_state": 0}
    chains = run_emcee(targets.from_log_prob(two, 5), start, **settings)
    assert abs((chains.samples[..., 0] > 0).mean() - 0.5) < 0.01
    assert not chains.reliability.ok and "walkers disagree about 5 of 5 parameters" in str(chains.reliability)
    # In one mode, walkers of the same settings agree.
    assert run_emcee(targets.from_log_prob(gaussian, 5), start % 5, **settings).reliability.ok


def test_emcee_bad_input():
    real = targets.from_log_prob(gaussian, 2)
    with pytest.raises(ValueError, match="no prior to draw them from"):
        run_emcee(real)
    with pytest.raises(ValueError, match="at least 4 walkers"):
        run_emcee(real, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="n_walkers=10 rows; got 8"):
        run_emcee(real, np.zeros((8, 2)), n_walkers=10)
    outside = np.random.default_rng(0).uniform(-4, 4, (40, 2))
    outside[7:10, 1] = 6.5
    with pytest.raises(ValueError, match=r"3 of 40 rows of init have none, the first is row 7 \(a=[-\d.]+, b=6.5\): it is outside"):
        run_emcee(in_box(), outside, random_state=0)
    with pytest.raises(ValueError, match=r"4 different rows.*40 rows hold 1, and row 0 is there 40 times"):
        run_emcee(in_box(), np.ones((40, 2)), random_state=0)
    with pytest.raises(ValueError, match="max_steps of at least min_steps"):
        run_emcee(real, np.zeros((8, 2)), min_steps=10, max_steps=5)
    with pytest.raises(ValueError, match="pass init"):
        run_emcee(in_box(lambda x: torch.full((len(x),), -math.inf)), random_state=0)


# --- A flow among emcee's moves -------------------------------------------------------------------------------------------------


def ensemble(log_prob, density, start, n_steps, seed=0, local=0.5):
    moves = [(FlowMove(density), 1 - local), (emcee.moves.StretchMove(), local)]
    sampler = emcee.EnsembleSampler(*start.shape, log_prob, vectorize=True, moves=moves)
    sampler.run_mcmc(emcee.State(start, random_state=np.random.RandomState(seed).get_state()), n_steps)
    return sampler.get_chain()


def test_flow_move_leaves_a_gaussian_invariant():
    """Proposals from another normal: only with the right Hastings factor do exact draws stay exact. KS at 1e-3 in each column."""
    from scipy import stats

    proposal = MultivariateNormal([0.5, 0.0], [[2.0, 0.3], [0.3, 1.5]])
    start = np.random.default_rng(0).normal(size=(2000, 2))
    chain = ensemble(lambda x: -0.5 * (x**2).sum(-1), proposal, start, 8, local=0.0)
    assert (chain[-1] != start).any(-1).mean() > 0.3
    for column in chain[-1].T:
        assert stats.kstest(column, "norm").pvalue > 1e-3


class Mixture:
    """A density over two modes with masses other than the target's, of wider spread: what a fitted flow is."""

    def sample(self, n, random_state=None):
        rng = np.random.default_rng(random_state)
        return rng.normal(np.where(rng.random((n, 1)) < 0.5, -5.0, 5.0), 1.3, (n, 1))

    def log_prob(self, x):
        return np.logaddexp(*(-0.5 * ((x[:, 0] - m) / 1.3) ** 2 for m in (-5.0, 5.0))) - math.log(2 * 1.3 * math.sqrt(2 * math.pi))


def test_flow_move_crosses_modes_to_the_right_masses():
    def log_prob(x):
        return np.logaddexp(math.log(0.2) - 0.5 * (x[:, 0] + 5) ** 2, math.log(0.8) - 0.5 * (x[:, 0] - 5) ** 2)

    start = np.random.default_rng(0).normal(-5.0, 1.0, (200, 1))  # all walkers in the small mode
    chain = ensemble(log_prob, Mixture(), start, 200)[50:]
    # Half the steps are independence moves, accepted well above a third of the time: 30 000 states are worth above 3000; 4 errors.
    assert abs((chain > 0).mean() - 0.8) < 0.032
    stuck = emcee.EnsembleSampler(200, 1, log_prob, vectorize=True)
    stuck.run_mcmc(emcee.State(start, random_state=np.random.RandomState(0).get_state()), 200)
    assert (stuck.get_chain() > 0).mean() < 0.5  # what emcee alone does with these starts


def test_flow_move_with_a_fitted_density():
    rows = np.random.default_rng(0).normal([1.0, -2.0], [0.5, 2.0], (500, 2))
    density = FlowDensity(flow="realnvp", layers=2, max_epochs=2, random_state=0).fit(rows)
    chain = ensemble(lambda x: -0.5 * (((x - [1.0, -2.0]) / [0.5, 2.0]) ** 2).sum(-1), density, rows[:200], 20)
    # Exact starts, of which means have errors of .07, stay exact: four of them, chance 1e-4. A forgotten Hastings factor is caught above.
    assert np.abs((chain[5:].mean((0, 1)) - [1.0, -2.0]) / [0.5, 2.0]).max() < 0.28


def test_flow_move_outside_its_density_never_lies():
    narrow = BoxUniform([0.0], [1.0])
    start = np.linspace(3.0, 4.0, 10)[:, None]
    chain = ensemble(lambda x: np.zeros(len(x)), narrow, start, 5, local=0.0)
    assert (chain == start).all()  # where q is zero, leaving could not be undone
    with pytest.raises(TypeError, match="sample and log_prob"):
        FlowMove(object())
    with pytest.raises(ValueError, match="over the 2 parameters of the walkers; its draws have 1"):
        ensemble(lambda x: np.zeros(len(x)), narrow, np.random.default_rng(0).normal(size=(10, 2)), 1, local=0.0)


# --- dynesty --------------------------------------------------------------------------------------------------------------------


def test_absent_dynesty_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dynesty", None)
    with pytest.raises(ImportError, match=r"sbi_flows\[dynesty\]"):
        run_dynesty(in_box())


@pytest.mark.filterwarnings("default")
def test_dynesty_gives_draws_and_evidence():
    pytest.importorskip("dynesty")
    draws, evidence = run_dynesty(in_box(), n_live=150, dlogz=0.1, random_state=0)
    assert abs(evidence.log_z - LOG_Z_BOX) < 4 * evidence.log_z_err  # chance 6e-5
    assert evidence.log_z_err < 0.2  # sqrt(H / n_live) is .11
    assert draws.log_z == pytest.approx(evidence.log_z, abs=1e-6)
    assert evidence.info["n_evaluations"] == draws.info["n_evaluations"] > 500
    assert evidence.by_method.loc["nested sampling", "n_evaluations"] == evidence.info["n_evaluations"]
    # The square of a unit normal has variance 2; five errors.
    assert abs(np.average(draws.samples[:, 0] ** 2, weights=draws.weights) - 1) < 5 * math.sqrt(2 / draws.ess)
    assert evidence.reliability.ok and "nested sampling" in repr(evidence)
    early = run_dynesty(in_box(), n_live=150, max_calls=300, random_state=0)[1]
    assert not early.reliability.ok and "max_calls" in str(early.reliability)
    assert early.info["n_evaluations"] <= 300 + 20  # the live points' calls counted; one more point at most, on the way
    with pytest.raises(ValueError, match="above n_live = 150"):
        run_dynesty(in_box(), n_live=150, max_calls=150)
    with pytest.raises(ValueError, match="target with a prior"):
        run_dynesty(targets.from_log_prob(gaussian, 2))


@pytest.mark.filterwarnings("default")
def test_dynesty_draws_say_what_its_run_found():
    """As independent draws the points would have an error several times too small, and a tail that means nothing."""
    pytest.importorskip("dynesty")
    draws, evidence = run_dynesty(in_box(), n_live=100, dlogz=0.1, random_state=0)
    assert (draws.log_z, draws.log_z_err) == (evidence.log_z, evidence.log_z_err) and draws.evidence is evidence
    assert math.isnan(draws.pareto_k) and draws.smoothed() is draws and draws.reliability.ok
    assert log_mean_error(draws.log_weights) < 0.5 * draws.log_z_err


@pytest.mark.filterwarnings("default")
def test_dynesty_that_ends_by_itself_was_not_cut_short():
    """With as many calls as it takes, and one fewer: the last point was on its way. With a twentieth fewer it was."""
    pytest.importorskip("dynesty")

    def run(max_calls):
        return run_dynesty(in_box(), n_live=50, dlogz=0.1, max_calls=max_calls, random_state=0)[1]

    whole = run(None)
    calls = whole.info["n_evaluations"]
    for max_calls in (calls, calls - 1):
        again = run(max_calls)
        assert again.log_z == whole.log_z and again.reliability.ok
    nearly = run(int(0.95 * calls)).reliability
    assert not nearly.ok and "in its live points" in str(nearly)


@pytest.mark.filterwarnings("default")
def test_dynesty_of_other_priors_and_of_its_own_pair():
    pytest.importorskip("dynesty")
    prior = Product([BoxUniform([-5.0], [5.0]), MultivariateNormal([0.0], [[1.0]])])
    _, evidence = run_dynesty(targets.posterior(gaussian, prior), n_live=150, dlogz=0.1, random_state=0)
    exact = math.log(math.sqrt(2 * math.pi) / 10) - 0.5 * math.log(2)
    assert abs(evidence.log_z - exact) < 4 * evidence.log_z_err
    pair = targets.from_dynesty(lambda u: 10 * u - 5, lambda t: -0.5 * t @ t, 2, names=["a", "b"])
    draws, evidence = run_dynesty(pair, n_live=150, dlogz=0.1, random_state=0)
    assert abs(evidence.log_z - LOG_Z_BOX) < 4 * evidence.log_z_err and draws.samples.min() < -2
    angle = targets.from_dynesty(lambda u: 2 * np.pi * u, lambda t: 20 * np.cos(t[0]), 1, periodic=[0])
    _, evidence = run_dynesty(angle, n_live=100, dlogz=0.1, random_state=0)
    assert abs(evidence.log_z - math.log(np.i0(20))) < 4 * evidence.log_z_err
