"""Verdicts: sound inputs pass, each kind of wrong input is named. A Gaussian fitted to other draws stands in for the flow."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.signal import lfilter

from sbi_flows.distributions import BoxUniform
from sbi_flows.model_evidence import evidence
from sbi_flows.model_evidence.checks import weight_reasons
from sbi_flows.model_evidence.methods import Estimate
from sbi_flows.results import Chains, Reliability


class GaussianDensity:
    """A fitted Gaussian with the two methods ``density=`` asks for."""

    def __init__(self, x, seed=0):
        self.normal = stats.multivariate_normal(x.mean(axis=0), np.atleast_2d(np.cov(x.T)))
        self.rng = np.random.default_rng(seed)

    def log_prob(self, x):
        return np.atleast_1d(self.normal.logpdf(x))

    def sample(self, n):
        return self.normal.rvs(n, random_state=self.rng).reshape(n, -1)


def log_posterior(x):
    return -0.5 * (x**2).sum(axis=1)


def run(x, values=log_posterior, **keywords):
    """Evidence from the first half of ``x`` with a density fitted to the second."""
    n = len(x) // 2
    values = values if callable(values) else values[:n]
    return evidence(x[:n], values, density=GaussianDensity(x[n:]), random_state=0, **keywords)


def test_a_density_fitted_to_the_very_draws_is_caught():
    """Its optimism is half the number of parameters over n, .06 here, many times the error claimed."""
    x = np.random.default_rng(0).normal(size=(4000, 20))
    result = evidence(x, log_posterior, density=GaussianDensity(x), random_state=0)
    assert any("disagree" in reason for reason in result.reliability.reasons)


@pytest.mark.parametrize("known", ["callable", "values"])
@pytest.mark.parametrize("d", [1, 4, 20])
def test_sound_draws_pass(known, d):
    """Ten clean cases a setting: a false alarm in any has probability below 1 % by construction of the checks."""
    for seed in range(10):
        x = np.random.default_rng(seed).normal(size=(8000, d))
        result = run(x, log_posterior if known == "callable" else log_posterior(x))
        assert result.reliability.ok, result


@pytest.mark.parametrize("known", ["callable", "values"])
@pytest.mark.parametrize("d", [1, 4, 20])
def test_shifted_and_widened_draws_are_flagged(known, d):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shifted = rng.normal(size=(8000, d))
        shifted[:, seed % d] += 1
        for wrong in (shifted, 1.5 * rng.normal(size=(8000, d))):
            result = run(wrong, log_posterior if known == "callable" else log_posterior(wrong))
            assert not result.reliability.ok
            assert "NOT RELIABLE" in repr(result)


def two_modes(x):
    return np.logaddexp(-8 * ((x - 2) ** 2).sum(axis=1), -8 * ((x + 2) ** 2).sum(axis=1))


def test_a_mode_that_prior_draws_reveal_is_flagged():
    rng = np.random.default_rng(1)
    one = 2 + 0.25 * rng.normal(size=(8000, 2))
    prior = BoxUniform([-5.0, -5.0], [5.0, 5.0])
    blind = run(one, two_modes)
    assert blind.reliability.ok and "modes the chains never visited cannot be found" in repr(blind)
    seen = run(one, two_modes, prior=prior)
    assert not seen.reliability.ok
    assert "prior draws find mass the chains never visited (about 50% of the whole, e.g. at x0=-" in repr(seen)


def test_prior_search_keeps_to_its_budget():
    calls = []

    def counting(x):
        calls.append(len(x))
        return log_posterior(x)

    x = np.random.default_rng(2).normal(size=(2000, 2))
    run(x, counting, prior=BoxUniform([-5.0, -5.0], [5.0, 5.0]), max_evaluations=12_000)
    assert sum(calls) == 1000 + 12_000


def test_prior_of_another_width():
    x = np.random.default_rng(2).normal(size=(2000, 2))
    with pytest.raises(ValueError, match=r"prior over 2 parameters.*draws 1"):
        run(x, prior=BoxUniform([-5.0], [5.0]), support=["real", "real"])


def test_stuck_chains_are_named():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 500, 2)) * 0.2 + np.array([-1.5, -0.5, 0.5, 1.5])[:, None, None] * np.array([1.0, 0.0])
    result = evidence(Chains(x, ("amplitude", "index")), log_posterior, density=GaussianDensity(x.reshape(-1, 2)), random_state=0)
    assert any("R-hat of 'amplitude'" in reason for reason in result.reliability.reasons)


def test_slow_chains_are_named():
    steps = np.random.default_rng(4).normal(size=(2000, 1))
    x = np.zeros((2000, 1))
    for t in range(1, 2000):
        x[t] = 0.999 * x[t - 1] + np.sqrt(1 - 0.999**2) * steps[t]
    result = run(x)
    assert any("effective draws in 1000" in reason for reason in result.reliability.reasons)


def test_a_tail_the_density_misses_raises_pareto_k():
    x = np.random.default_rng(5).standard_t(1.5, size=(4000, 1))
    density = GaussianDensity(np.clip(x, -3, 3))
    result = evidence(x, lambda x: stats.t.logpdf(x[:, 0], 1.5), density=density, method="importance", random_state=0)
    assert result.pareto_k > 0.7
    assert any("Pareto k of the importance weights" in reason for reason in result.reliability.reasons)


def test_method_that_needs_a_callable():
    x = np.random.default_rng(6).normal(size=(1000, 1))
    with pytest.raises(ValueError, match="'bridge' needs a callable"):
        run(x, log_posterior(x), method="bridge")
    with pytest.raises(ValueError, match="one of auto, bridge"):
        run(x, method="harmonik")


def test_density_of_the_wrong_kind():
    x = np.random.default_rng(6).normal(size=(1000, 1))
    with pytest.raises(TypeError, match=r"log_prob\(x\) and sample\(n\); got dict"):
        evidence(x, log_posterior, density={})


def test_same_seed_same_result():
    x = np.random.default_rng(7).normal(size=(1000, 2))
    first, second = run(x), run(x)
    assert first.log_z == second.log_z and first.log_z_err == second.log_z_err


def test_by_method_lists_what_was_possible():
    x = np.random.default_rng(8).normal(size=(1000, 2))
    assert list(run(x).by_method.index) == ["harmonic", "importance", "bridge"]
    assert list(run(x, log_posterior(x)).by_method.index) == ["harmonic"]
    assert run(x, log_posterior(x)).method == "harmonic"


def test_torch_density_and_torch_samples():
    from sbi_flows.distributions import MultivariateNormal

    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    density = MultivariateNormal(torch.zeros(2), torch.eye(2))
    result = evidence(x, log_posterior, density=density, random_state=0)
    assert result.log_z == pytest.approx(np.log(2 * np.pi), abs=1e-6)


def test_weights_without_a_variance_are_not_believed():
    """k between .5 and .7 has a mean and no variance: tolerable where the weights are nearly equal, not where few carry the sum."""
    few = Estimate(0.0, 0.02, 0.2, 0.6, 0, np.ones(1), ())
    assert "no finite variance" in weight_reasons("harmonic", few)[0]
    assert weight_reasons("bridge", few) == []
    assert weight_reasons("harmonic", dataclasses.replace(few, ess=0.9)) == []


@pytest.mark.parametrize(("steps", "told"), [(400, True), (4000, False)])
def test_an_ensemble_of_few_autocorrelation_times_says_so(steps, told):
    """Sixteen walkers of autocorrelation time 19: 21 and 210 of them long; the verdict stays ok, the doubt is a note."""
    rng = np.random.default_rng(0)
    shocks = rng.normal(size=(16, steps)) * np.sqrt(1 - 0.9**2)
    shocks[:, 0] = rng.normal(size=16)
    x = lfilter([1], [1, -0.9], shocks, axis=1)[:, :, None]
    chains = Chains(x, ("a",), log_posterior=-0.5 * x[..., 0] ** 2, ensemble=True)
    result = evidence(chains, density=GaussianDensity(rng.normal(size=(4000, 1))), random_state=0)
    assert any("autocorrelation times of 'a'" in note for note in result.reliability.notes) == told


def walkers(steps=200, stuck=1, thin=22, seed=0):
    """Forty walkers of nearly independent draws, of which the last ones stay six deviations away in the first of two columns."""
    x = np.random.default_rng(seed).normal(size=(40, steps, 2))
    x[40 - stuck :, :, 0] = 6 + 0.1 * x[40 - stuck :, :, 0]
    info = {"sampler": "emcee", "thin": thin}
    return Chains(x, ("mass", "index"), log_posterior=-0.5 * (x**2).sum(axis=2), ensemble=True, info=info)


def test_walkers_that_never_meet_are_told_from_slow_ones():
    """One of forty walkers stands apart; each moves freely, so that times within walkers see thousands of draws where there are forty."""
    density = GaussianDensity(np.random.default_rng(1).normal(size=(4000, 2)))
    result = evidence(walkers(), density=density, random_state=0)
    reason = result.reliability.reasons[0]
    assert "'mass' has only" in reason and "in 8000, one in 22 steps: chains stay apart" in reason
    assert int(re.search(r"would be worth (\d+)", reason).group(1)) > 4000
    assert int(re.search(r"only (\d+) effective", reason).group(1)) < 100 and "100 autocorrelation times" not in reason
    assert not any("steps are" in note for note in result.reliability.notes), "no autocorrelation time where there is none"


def test_what_chains_say_against_themselves_comes_first():
    density = GaussianDensity(np.random.default_rng(1).normal(size=(4000, 2)))
    told = dataclasses.replace(walkers(), reliability=Reliability(False, ("walkers disagree: cross with FlowMove",)))
    for result in (evidence(told, density=density, random_state=0), evidence(told, log_posterior, density=density, random_state=0)):
        assert result.reliability.reasons[0] == "the chains' own verdict: walkers disagree: cross with FlowMove"
        assert "chains stay apart" in result.reliability.reasons[1]
    sound = dataclasses.replace(walkers(stuck=0), reliability=Reliability(True, notes=("a note",)))
    assert evidence(sound, density=density, random_state=0).reliability.ok


def test_an_ensembles_length_is_told_in_steps_not_in_thinned_draws():
    rng = np.random.default_rng(0)
    shocks = rng.normal(size=(16, 100)) * np.sqrt(1 - 0.8**2)
    shocks[:, 0] = rng.normal(size=16)
    x = lfilter([1], [1, -0.8], shocks, axis=1)[:, :, None]
    chains = Chains(x, ("a",), log_posterior=-0.5 * x[..., 0] ** 2, ensemble=True, info={"thin": 5})
    result = evidence(chains, density=GaussianDensity(rng.normal(size=(4000, 1))), random_state=0)
    assert any("the ensemble's 500 steps are" in note for note in result.reliability.notes)
