"""What the diagnostics say: columns by their names, advice that fits the failure, and no more than was found."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sbi_flows import simulate as run_simulator
from sbi_flows.diagnostics import diagnose, misspecification, posterior_predictive, sbc
from sbi_flows.diagnostics.uniformity import p_text
from sbi_flows.distributions import BoxUniform
from tests.diagnostics.conjugate import BROKEN, EXACT, MIXING, NOISE_STD, Gaussian, simulate


class Named(Gaussian):
    """The exact posterior of one that was trained on columns of these names."""

    theta_names_ = ("mass", "age")


def pairs(n=300, seed=0):
    theta, x = simulate(n, np.random.default_rng(seed))
    return pd.DataFrame(theta, columns=["mass", "age"]), x


def test_columns_of_theta_are_put_in_the_estimators_order():
    theta, x = pairs()
    first, second = (sbc(Named(), frame, x, n_draws=99, random_state=0) for frame in (theta, theta[["age", "mass"]]))
    assert second.names == first.names == ("mass", "age")
    np.testing.assert_array_equal(first.ranks, second.ranks)
    labelled = sbc(Named(), theta[["age", "mass"]], x, n_draws=99, names=["t", "M"], random_state=0)
    assert labelled.names == ("M", "t")
    np.testing.assert_array_equal(first.ranks, labelled.ranks)
    assert diagnose(Named(), theta[["age", "mass"]], x, random_state=0).p_value == diagnose(Named(), theta, x, random_state=0).p_value
    with pytest.raises(ValueError, match="columns of theta to be mass, age; got mass, weight"):
        sbc(Named(), theta.rename(columns={"age": "weight"}), x)


def test_theta_outside_the_prior_is_told_as_fit_does():
    theta, x = pairs()
    estimator = Named()
    estimator.prior_ = BoxUniform([-10.0, -20.0], [10.0, 20.0])
    assert sbc(estimator, theta, x, n_draws=99, random_state=0).reliability.ok
    with pytest.raises(ValueError, match="order and units"):
        diagnose(estimator, 1000 * theta, x)
    with pytest.raises(ValueError, match=r"theta of shape \(m, 2\).*then theta, then x"):
        diagnose(estimator, x, theta.to_numpy())


def test_a_gross_failure_is_told_to_check_what_was_passed_first():
    theta, x = pairs(500)
    reasons = diagnose(EXACT, 10 * theta.to_numpy(), x, random_state=0).reliability.reasons
    assert "check first that theta is drawn from the prior" in reasons[0]
    assert sum("check first" in reason for reason in reasons) == 1
    narrow = sbc(BROKEN["too narrow"], theta, x, n_draws=99, random_state=0).reliability.reasons
    assert "check first" not in " ".join(narrow)
    assert "more members" in narrow[0]


def test_draws_too_wide_are_not_sent_for_members_that_widen_them():
    theta, x = pairs(1000)
    result = diagnose(BROKEN["too wide"], theta.to_numpy(), x, random_state=0)
    assert "too wide" in result.sbc.reliability.reasons[0]
    for reason in (*result.sbc.reliability.reasons, *result.coverage.reliability.reasons):
        assert "members" not in reason
        assert "it uses less of x than there is" in reason


def test_a_check_that_cannot_fail_names_itself():
    note = misspecification(np.random.default_rng(0).normal(size=(90, 2)), [0.0, 0.0], random_state=0).reliability.notes[0]
    assert note.startswith("x_o among simulations: this check alone cannot fail")
    assert "0.011" in note and "at least 100 simulations" in note


def test_few_pairs_without_an_error_are_no_calibration():
    theta, x = pairs(20)
    few = diagnose(EXACT, theta, x, random_state=0)
    assert few.verdict == "nothing found, too few to tell"
    assert few.verdict in str(few).splitlines()[0]
    theta, x = pairs(200)
    enough = diagnose(EXACT, theta, x, random_state=0)
    assert enough.verdict == "no check finds an error"
    # The false-alarm rate over four checks.
    assert enough.threshold == 0.01 / 4
    assert "not ok below p=0.0025" in str(enough)
    assert diagnose(BROKEN["swapped"], theta, x, random_state=0).verdict == "NOT RELIABLE"


def test_no_p_value_is_printed_as_zero():
    assert p_text(0.0) == "<1e-300"
    assert p_text(1.234e-5) == "=1.2e-05"
    theta, x = pairs(1000)
    result = sbc(Gaussian(shift=100.0), theta, x, n_draws=200, random_state=0)
    assert result.p_value == 0
    assert "p<1e-300" in repr(result).splitlines()[0]
    assert "p<1e-300" in result.reliability.reasons[0]
    assert "p=0 " not in str(diagnose(Gaussian(shift=100.0), theta, x, random_state=0))


@pytest.mark.parametrize(("n_seen", "ok"), [(5, True), (150, False)])
def test_pairs_of_the_training_data_are_told(n_seen, ok):
    theta, x = pairs(200)
    estimator = Named()
    estimator._simulations = SimpleNamespace(theta=theta.to_numpy()[:n_seen])
    result = diagnose(estimator, theta, x, random_state=0)
    assert f"{n_seen} of 200 pairs were in the training data" in str(result)
    assert result.reliability.ok == ok


class At:
    """The exact posterior of one observation."""

    def __init__(self, x_o):
        self.x_o = x_o

    def sample(self, n_samples=1, random_state=None):
        return EXACT.sample(self.x_o[None], n_samples, random_state)[0]


X_O = np.array([1.0, 0.0, 0.5])


def of_one_row(theta, rng):
    assert theta.shape == (2,)
    return MIXING @ theta + NOISE_STD * rng.normal(size=3)


def of_rows(theta, rng):
    return theta @ MIXING.T + NOISE_STD * rng.normal(size=(len(theta), 3))


def test_simulators_of_simulate_are_simulators_here():
    """One row with a generator, rows with a generator, one row alone, rows alone: all spread as the simulator does."""
    own = np.random.default_rng(0)
    theta = At(X_O).sample(500, random_state=0)
    expected = run_simulator(of_one_row, theta, random_state=0).std(axis=0)
    for simulator, vectorized in [
        (of_one_row, None),
        (of_rows, True),
        (lambda theta: of_one_row(theta, own), False),
        (lambda theta: of_rows(theta, own), None),
    ]:
        result = posterior_predictive(At(X_O), simulator, X_O, n_samples=500, vectorized=vectorized, random_state=0)
        # Standard deviations of 500 draws each: five of their standard errors.
        np.testing.assert_allclose(result.x.std(axis=0), expected, rtol=5 / np.sqrt(500))
    theta, x = pairs()
    assert diagnose(EXACT, theta, x, X_O, simulator=of_one_row, random_state=0).predictive is not None
    with pytest.raises(ValueError, match="vectorized=False"):
        posterior_predictive(At(X_O), lambda theta: of_one_row(theta, own), X_O)


def test_arguments_in_another_order_are_told_the_order():
    order = r"posterior_predictive\(posterior, simulator, x_o\)"
    with pytest.raises(TypeError, match=order):
        posterior_predictive(At(X_O), X_O, of_rows)
    with pytest.raises(TypeError, match=order):
        posterior_predictive(of_rows, At(X_O), X_O)

    class Estimator(At):
        def posterior(self, x_o):
            return At(x_o)

    with pytest.raises(TypeError, match=r"\.posterior\(x_o\)"):
        posterior_predictive(Estimator(X_O), of_rows, X_O)
