"""Model probabilities against an exactly known Bayes factor, their calibration check, and bad input."""

import numpy as np
import pandas as pd
import pytest

from sbi_flows import ConditionalFlow, ModelClassifier
from sbi_flows.inference.model_calibration import calibration

TRIALS = 5


def simulations(n, seed):
    """No signal: five standard normals. Signal: the same around a common mean, itself N(0, 1)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, n, TRIALS))
    x[1] += rng.normal(size=(n, 1))
    return {"noise": x[0], "signal": x[1]}


def exact_log_bayes_factor(x):
    """Signal over noise: with s = sum x, -ln(1 + N) / 2 + s^2 / (2 (1 + N))."""
    return -0.5 * np.log(1 + TRIALS) + x.sum(-1) ** 2 / (2 * (1 + TRIALS))


@pytest.fixture(scope="module")
def classifier():
    return ModelClassifier(ConditionalFlow(hidden=(32, 32), max_epochs=12, n_members=2), random_state=0).fit(simulations(5000, 0))


def test_bayes_factors_are_the_exact_ones(classifier):
    """On 1000 fresh simulations: mean square error of the probabilities below .03^2, where chance has .2^2; ln B within .25 for nine in ten
    of those between -1 and 4."""
    fresh = np.concatenate(list(simulations(500, 1).values()))
    exact = exact_log_bayes_factor(fresh)
    stated = classifier.predict_proba(fresh)
    np.testing.assert_allclose(stated.sum(1), 1.0, atol=1e-12)
    assert np.sqrt(np.mean((stated[:, 1] - 1 / (1 + np.exp(-exact))) ** 2)) < 0.03
    log_bayes_factors = classifier.log_bayes_factors(fresh)[:, 1]
    moderate = exact < 4
    assert np.quantile(np.abs(log_bayes_factors - exact)[moderate], 0.9) < 0.25


def test_calibration_and_verdict(classifier):
    found = classifier.calibration_
    assert classifier.history_.reliability.ok
    assert found.n == 1000 and found.error < 0.05 and 0.7 < found.temperature < 1.4
    assert set(found.table.columns) == {"model", "stated", "observed", "n"}
    result = classifier.compare(np.full(TRIALS, 1.5))
    assert result.best == "signal" and result.reliability.ok
    assert result.log_bayes_factors["signal"] == 0.0
    exact = exact_log_bayes_factor(np.full(TRIALS, 1.5))  # 3.8: strong
    assert result.log_bayes_factors["noise"] == pytest.approx(-exact, abs=0.5)
    assert "noise: p = " in repr(result) and "strong against" in repr(result)
    far = classifier.compare(np.full(TRIALS, 30.0))
    assert not far.reliability.ok and "outside the range of the simulations" in far.reliability.reasons[0]
    with pytest.raises(ValueError, match="Use predict_proba for many"):
        classifier.compare(np.zeros((3, TRIALS)))


def test_files_bring_everything_back(classifier, tmp_path):
    classifier.save(tmp_path / "classifier")
    again = ModelClassifier.load(tmp_path / "classifier")
    x_o = np.full(TRIALS, 0.8)
    np.testing.assert_array_equal(again.predict_proba(x_o), classifier.predict_proba(x_o))
    assert repr(again.compare(x_o)) == repr(classifier.compare(x_o))
    pd.testing.assert_frame_equal(again.calibration_.table, classifier.calibration_.table)
    assert again.calibration_.p_value == classifier.calibration_.p_value


def test_prior_odds_and_unequal_numbers_of_simulations():
    """Probabilities are those of the stated prior, not of how many simulations each model has: checked where the models are told apart by
    nothing, to .05."""
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(3000, 1)), "b": rng.normal(size=(600, 1))}
    settings = ConditionalFlow(hidden=(8,), max_epochs=3)
    assert ModelClassifier(settings, random_state=0).fit(x).predict_proba([0.0])[0] == pytest.approx(0.5, abs=0.05)
    odds = ModelClassifier(settings, prior={"a": 1, "b": 4}, random_state=0).fit(x)
    assert odds.predict_proba([0.0]) == pytest.approx([0.2, 0.8], abs=0.05)
    np.testing.assert_allclose(odds.log_bayes_factors([0.0], reference="b")[1], 0.0)


def test_arrays_with_labels_are_the_same_as_a_mapping():
    x = simulations(300, 0)
    settings = ConditionalFlow(hidden=(8,), max_epochs=2)
    by_name = ModelClassifier(settings, random_state=0).fit(x)
    columns = [f"c{i}" for i in range(TRIALS)]
    table = pd.DataFrame(np.concatenate(list(x.values())), columns=columns)
    by_label = ModelClassifier(settings, random_state=0).fit(table, ["noise"] * 300 + ["signal"] * 300)
    assert by_label.models_ == ("noise", "signal")
    np.testing.assert_array_equal(by_label.predict_proba(table[:5]), by_name.predict_proba(x["noise"][:5]))
    np.testing.assert_array_equal(by_label.predict_proba(table[columns[::-1]][:5]), by_label.predict_proba(table[:5]))


def test_sets_of_varying_number():
    x = {name: part[..., None] for name, part in simulations(400, 0).items()}
    for part in x.values():
        part[:200, 3:] = np.nan
    fitted = ModelClassifier(ConditionalFlow(hidden=(16,), max_epochs=2), random_state=0).fit(x)
    assert fitted.estimator_.embedding["embedding"] == "set"
    assert fitted.predict_proba(x["noise"][0, :3]).shape == (2,)


def test_calibrated_probabilities_pass_and_others_do_not():
    """P-values of 300 calibrated sets: fewer than 1 % + 4 standard errors below .01 (a false alarm of 1e-4). Too sure by a factor two
    in ln B is always found; equal probabilities in the order of the models are no fault."""
    rng = np.random.default_rng(0)
    p_values, wrong = [], []
    for _ in range(300):
        logit = 2 * rng.normal(size=1000)
        p = 1 / (1 + np.exp(-logit))
        labels = (rng.random(1000) < p).astype(int)
        p_values.append(calibration(np.stack([1 - p, p], 1), labels, ["a", "b"]).p_value)
        sure = 1 / (1 + np.exp(-2 * logit))
        wrong.append(calibration(np.stack([1 - sure, sure], 1), labels, ["a", "b"]).p_value)
    assert np.mean(np.array(p_values) < 0.01) < 0.01 + 4 * np.sqrt(0.01 * 0.99 / 300)
    assert max(wrong) < 0.01
    assert calibration(np.full((1000, 2), 0.5), np.repeat([0, 1], 500), ["a", "b"]).p_value > 1e-3


def test_failures_and_bad_input():
    x = simulations(400, 0)
    x["signal"][:20] = np.nan
    x["noise"][:3, 1] = np.inf
    fitted = ModelClassifier(ConditionalFlow(hidden=(8,), max_epochs=2), random_state=0).fit(x)
    assert any("3 of noise, 20 of signal" in note for note in fitted.history_.reliability.notes)
    with pytest.raises(ValueError, match="at least two models; got 1"):
        ModelClassifier().fit({"a": x["noise"]})
    with pytest.raises(ValueError, match=r"one shape from every model; got a: \(400, 5\), b: \(400, 4\)"):
        ModelClassifier().fit({"a": x["noise"], "b": x["noise"][:, :4]})
    with pytest.raises(ValueError, match="or models= with the model of every row"):
        ModelClassifier().fit(x["noise"])
    with pytest.raises(ValueError, match=r"models of shape \(400,\)"):
        ModelClassifier().fit(x["noise"], ["a"])
    with pytest.raises(ValueError, match="positive prior odds for noise, signal"):
        ModelClassifier(prior={"noise": 1}).fit(x)
    with pytest.raises(ValueError, match=r"at least 10 simulations .* got 4 of 'signal'"):
        ModelClassifier().fit({"noise": x["noise"], "signal": x["signal"][20:24]})
    with pytest.raises(ValueError, match="reference to be one of noise, signal"):
        fitted.log_bayes_factors(np.zeros(TRIALS), "b")
    with pytest.warns(UserWarning, match="200 simulations are few"):
        ModelClassifier(ConditionalFlow(hidden=(8,), max_epochs=2), random_state=0).fit({k: v[100:200] for k, v in x.items()})
