"""The diagnostics on our own estimators: names, frames and batches go through; a trained one is calibrated, a poor one is not."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sbi_flows import NPE, ConditionalFlow, diagnose, sbc
from tests.diagnostics.conjugate import simulate

PRIOR = [stats.norm(0, 1), stats.norm(0, 2)]


def frames(n, seed):
    theta, x = simulate(n, np.random.default_rng(seed))
    return pd.DataFrame(theta, columns=["mass", "age"]), pd.DataFrame(x, columns=list("uvw"))


@pytest.mark.parametrize("as_frames", [True, False])
def test_a_hardly_trained_one_goes_through_and_is_found_out(as_frames):
    estimator = ConditionalFlow(layers=1, hidden=(8,), max_epochs=1, random_state=0)
    theta, x = frames(300, 0)
    new_theta, new_x = frames(300, 1)
    x_o = new_x.iloc[0]
    if not as_frames:
        theta, x, new_theta, new_x, x_o = (value.to_numpy() for value in (theta, x, new_theta, new_x, x_o))
    npe = NPE(PRIOR, estimator).fit(theta, x)
    result = diagnose(npe, new_theta, new_x, x_o, n_draws=70, random_state=0)
    assert result.sbc.names == (("mass", "age") if as_frames else ("theta_0", "theta_1"))
    assert not result.reliability.ok


@pytest.mark.slow
def test_a_trained_one_is_calibrated():
    """False alarm 0.01 for an exact posterior; 1000 x 1000 ranks see errors of a tenth of the spread."""
    npe = NPE(PRIOR, random_state=0).fit(*frames(10_000, 0))
    result = sbc(npe, *frames(1000, 1), quantities={"log_prob": npe.log_prob}, random_state=0)
    assert result.reliability.ok, str(result)
