"""diagnose: one verdict, rarely wrong about the exact estimator and never right about broken ones."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sbi_flows.diagnostics import diagnose
from tests.diagnostics.conjugate import BROKEN, EXACT, MIXING, NOISE_STD, simulate


def run(estimator, seed, m=1000, **options):
    rng = np.random.default_rng(seed)
    theta, x = simulate(m, rng)
    x_o = simulate(1, rng)[1][0]

    def simulator(theta):
        return theta @ MIXING.T + NOISE_STD * rng.normal(size=(len(theta), 3))

    return diagnose(estimator, theta, x, x_o, simulator=simulator, random_state=rng, **options)


def test_the_exact_estimator_alarms_no_more_often_than_stated():
    """60 replications at a stated rate of 1/4, where alarms are frequent enough to count: 27 fail, which happens by chance once in 1700.

    A true rate of 1/2 fails with probability .82, one of .6 with .99; one of .35 is rarely seen (.07).
    """
    alarms = sum(not run(EXACT, seed, m=40, n_draws=65, false_alarm=0.25).reliability.ok for seed in range(60))
    assert stats.binomtest(alarms, 60, 0.25, alternative="greater").pvalue > 1e-3


def test_the_exact_estimator_is_ok_in_all_its_words():
    # Seed 0 happens to be one of the false alarms, about one in a hundred.
    result = run(EXACT, 1)
    assert result.reliability.ok
    assert list(result.table.columns) == ["p_value", "ok", "says"]
    assert len(result.table) == 7
    assert result.p_value == min(1.0, 7 * result.table.p_value.min())
    assert "1000 observations" in str(result)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_estimators_are_not_ok(kind):
    result = run(BROKEN[kind], 0)
    assert not result.reliability.ok
    assert result.p_value < 0.01
    assert "NOT" in str(result)


def test_an_impossible_observation_is_not_ok_though_the_estimator_is_exact():
    theta, x = simulate(1000, np.random.default_rng(0))
    result = diagnose(EXACT, theta, x, np.array([30.0, -30.0, 0.0]), random_state=0)
    assert not result.reliability.ok
    assert result.sbc.reliability.ok
    assert not result.misspecification.reliability.ok


def test_without_observation_density_or_many_rows():
    class Draws:
        sample = staticmethod(EXACT.sample)

    theta, x = simulate(50, np.random.default_rng(0))
    result = diagnose(Draws(), pd.DataFrame(theta, columns=["a", "b"]), x, random_state=0)
    assert result.coverage is None and result.local is None and result.predictive is None
    assert result.sbc.names == ("a", "b")
    assert any("no log_prob" in note for note in result.reliability.notes)
    again = diagnose(Draws(), pd.DataFrame(theta, columns=["a", "b"]), x, random_state=0)
    pd.testing.assert_frame_equal(result.table, again.table)


def test_a_slow_estimator_is_stopped_and_a_note_says_so():
    class Slow:
        log_prob = staticmethod(EXACT.log_prob)

        def sample(self, x, n_samples, random_state=None):
            time.sleep(0.02 * (len(x) > 1))
            return EXACT.sample(x, n_samples, random_state)

    theta, x = simulate(500, np.random.default_rng(0))
    result = diagnose(Slow(), theta, x, x[0], max_seconds=0.01, random_state=0)
    assert len(result.sbc.ranks) == 10
    assert any("after 10 of 500" in note for note in result.reliability.notes)


def test_errors_teach():
    theta, x = simulate(50, np.random.default_rng(0))
    with pytest.raises(ValueError, match="50 rows of theta and 49 of x"):
        diagnose(EXACT, theta, x[1:])
    with pytest.raises(ValueError, match="at least 65"):
        diagnose(EXACT, theta, x, n_draws=10)
    with pytest.raises(ValueError, match=r"x_o of shape \(3,\)"):
        diagnose(EXACT, theta, x, [1.0, 2.0])
