"""What NPE fits when it is not told: a trial says whether simulations or training are scarce."""

import numpy as np
import pandas as pd
import pytest

from sbi_flows import NPE, ConditionalFlow
from sbi_flows.distributions import BoxUniform
from sbi_flows.inference.defaults import default_estimator, settle


def settled(make, n, quality="default"):
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1, 1, size=(n, 2))
    estimator = default_estimator().set_params(random_state=0, support=[(-1, 1)] * 2)
    note = settle(estimator, make(theta, rng), pd.DataFrame(theta), quality)
    return estimator, note


def many_columns(theta, rng):
    return np.hstack([theta + rng.normal(size=theta.shape), rng.normal(size=(len(theta), 60))])


def sharp(theta, rng):
    x = np.stack([np.abs(theta.sum(1)), theta[:, 0] - theta[:, 1]], axis=1)
    return x + 0.02 * rng.normal(size=theta.shape)


def test_scarce_simulations_get_more_members_and_sharp_ones_a_longer_fit():
    wide, note = settled(many_columns, 1000)
    assert wide.n_members == 8 and wide.weight_decay > 0 and wide.max_epochs < 71 and "more of them" in note
    narrow, note = settled(sharp, 3000)
    assert narrow.n_members == 2 and narrow.weight_decay == 0 and narrow.max_epochs > 50 and "longer" in note


def test_few_simulations_need_no_trial():
    estimator, note = settled(sharp, 300)
    assert estimator.n_members == 4 and "more of them" in note


def test_quality_is_checked_and_is_not_for_an_estimator_of_ones_own():
    prior, theta = BoxUniform([-1.0], [1.0]), np.linspace(-0.9, 0.9, 300)[:, None]
    with pytest.raises(ValueError, match="Expected quality to be one of"):
        NPE(prior, quality="best").fit(theta, theta)
    with pytest.raises(ValueError, match="whose settings stand"):
        NPE(prior, ConditionalFlow(), quality="high").fit(theta, theta)
    assert settled(sharp, 300, "high")[0].n_members > settled(sharp, 300)[0].n_members
