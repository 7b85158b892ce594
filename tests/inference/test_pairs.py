"""Parameters that do not follow the prior and x that has nothing to do with them: no fit to such pairs may pass as reliable."""

import numpy as np
import pytest
import torch

from sbi_flows import NLE, NPE, NRE, simulate
from sbi_flows.distributions import BoxUniform
from sbi_flows.estimators import ConditionalFlow, RatioClassifier
from sbi_flows.inference.pairs import off_prior, tells_nothing
from sbi_flows.results import FitHistory, Reliability

PRIOR = BoxUniform([0.0, 0.0], [1.0, 1.0], names=["mass", "spin"])
QUICK = {"layers": 1, "hidden": (16,), "max_epochs": 3}


def methods():
    return {
        "NPE": NPE(PRIOR, ConditionalFlow(**QUICK), random_state=0),
        "NLE": NLE(PRIOR, ConditionalFlow(**QUICK), random_state=0),
        "NRE": NRE(PRIOR, RatioClassifier(hidden=(16,), max_epochs=3), random_state=0),
    }


def pairs(n=600, power=1.0):
    theta = PRIOR.sample(n, torch.Generator().manual_seed(1)).numpy() ** power
    return theta, theta + 0.1 * np.random.default_rng(1).normal(size=theta.shape)


@pytest.mark.parametrize("name", ["NPE", "NRE"])
def test_parameters_of_another_distribution_are_told(name):
    theta, x = pairs(power=2.0)
    method = methods()[name]
    with pytest.warns(UserWarning, match=r"theta does not follow the prior: of (mass|spin) \d+% lie at or below .* the prior has"):
        method.fit(theta, x)
    assert not method.posterior(x[0]).reliability.ok
    more = pairs(100)
    with pytest.warns(UserWarning, match="does not follow the prior"):  # good simulations added do not mend it
        method.fit(*more)


@pytest.mark.parametrize("name", ["NPE", "NLE", "NRE"])
def test_parameters_of_a_part_on_purpose(name):
    theta, x = pairs(power=2.0)
    assert methods()[name].fit(theta, x, from_prior=False).history_.reliability.ok
    if name == "NLE":
        assert methods()[name].fit(theta, x).history_.reliability.ok


@pytest.mark.parametrize("name", ["NPE", "NLE", "NRE"])
def test_x_of_other_parameters_is_told(name):
    """Shuffled rows. A false "ok" has a probability of 1 % at most for each method; the seed is fixed."""
    theta, x = pairs()
    method = methods()[name]
    with pytest.warns(UserWarning, match="x tells nothing of theta that shows on 60 held-out simulations"):
        method.fit(theta, x[np.random.default_rng(2).permutation(len(x))])
    assert "Do the rows of theta and x belong together" in str(method.posterior(x[0]).reliability)
    assert methods()[name].fit(theta, x).history_.reliability.ok


def test_failed_simulations_do_not_count_as_another_prior():
    """Those of large mass fail: the simulations left follow no prior, but theta did."""
    theta, x = pairs()
    x[theta[:, 0] > 0.8] = np.nan
    with pytest.warns(UserWarning, match="simulations failed"):
        npe = methods()["NPE"].fit(theta, x)
    assert "does not follow" not in str(npe.history_.reliability)


def test_false_alarms_are_rare():
    """100 sets of 500 prior draws, each with a chance of 1e-6 of an alarm: the test fails by chance once in 10^4."""
    for seed in range(100):
        assert off_prior(PRIOR.sample(500, torch.Generator().manual_seed(seed)).numpy(), PRIOR, PRIOR.names) == []


@pytest.mark.parametrize(("name", "n"), [("NPE", 25), ("NRE", 12)])
@pytest.mark.filterwarnings("ignore:x tells nothing")
def test_unrelated_x_hardly_ever_passes_though_weights_are_chosen_on_the_same_rows(name, n):
    """Each with a chance of at most 1 %: two or more pass once in 40 times (NPE) and once in 150."""
    passed = 0
    for seed in range(n):
        theta, rng = PRIOR.sample(300, torch.Generator().manual_seed(seed)).numpy(), np.random.default_rng(seed)
        method = methods()[name].set_params(random_state=seed).fit(theta, rng.normal(size=(300, 2)))
        passed += method.history_.reliability.ok
    assert passed <= 1


def history(epochs):
    curve = np.zeros((epochs, 1))
    return FitHistory(curve, curve, np.zeros(epochs), np.zeros(1, dtype=int), epochs, 0, 0.0, "max_epochs", Reliability(True))


def test_information_is_judged_by_its_error():
    """The best of 20 looks at 100 gains without a mean passes with a chance of 1 %: 20 of 2000 +- 4.5."""
    rng = np.random.default_rng(0)
    best = [max(rng.normal(size=(20, 100, 1)), key=np.mean) for _ in range(2000)]
    found = sum(tells_nothing(gains, history(19)) == [] for gains in best)
    assert 2 < found < 38
    assert tells_nothing(rng.normal(0.5, 1.0, size=(100, 1)), history(19)) == []
    # One simulation that is impossible under the fit is not a sign that x says nothing.
    assert tells_nothing(np.append(np.full(99, 2.0), -1e5)[:, None], history(19)) == []
    assert tells_nothing(np.zeros((5, 1)), history(19)) == []


def test_simulate_and_fit_with_one_seed():
    """The seed of theta, of the simulations and of the fit may be the same number."""
    theta = PRIOR.sample(300, torch.Generator().manual_seed(0)).numpy()
    x = simulate(lambda row, rng: row + 0.1 * rng.normal(size=2), theta, random_state=0)
    assert methods()["NPE"].fit(theta, x).history_.reliability.ok
