"""NPE fitted again, seeded again, saved and loaded."""

import numpy as np
import pytest
import scipy.stats
import torch
from npe_cases import QUICK, curved, quick, uniform_problem

from sbi_flows import NPE, ConditionalFlow
from sbi_flows.inference.atomic import go_on_by_atoms


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


def test_same_seed_same_bits():
    prior, theta, x = uniform_problem()
    first, second = (quick(prior).fit(theta, x).sample(x[:3], 20, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, NPE(prior, ConditionalFlow(**QUICK), random_state=1).fit(theta, x).sample(x[:3], 20, random_state=3))
