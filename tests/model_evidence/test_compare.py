"""Bayes factors and averages against closed forms, and the treatment of evidences that cannot be believed."""

import numpy as np
import pandas as pd
import pytest

from sbi_flows.model_evidence.compare import average_models, compare_models
from sbi_flows.results import Chains, Evidence, Reliability, WeightedSamples


def known(log_z, error=0.0, reasons=()):
    by_method = pd.DataFrame({"log_z": [log_z], "log_z_err": [error], "ess": [1.0], "pareto_k": [0.1]}, index=["bridge"])
    return Evidence(log_z, error, "bridge", 1.0, 0.1, Reliability.from_reasons(reasons), by_method)


def linear_model(columns, x, y):
    """Exact ln Z and posterior of y = X b + N(0, 1), b ~ N(0, I)."""
    design = x[:, columns]
    covariance = np.eye(len(y)) + design @ design.T
    log_z = -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + y @ np.linalg.solve(covariance, y))
    precision = design.T @ design + np.eye(len(columns))
    return log_z, np.linalg.solve(precision, design.T @ y), np.linalg.inv(precision)


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(20), rng.standard_normal((20, 2))])
    y = 0.4 + 0.5 * x[:, 1] + rng.standard_normal(20)
    return {name: linear_model(columns, x, y) for name, columns in {"flat": [0], "tilted": [0, 1], "full": [0, 1, 2]}.items()}


def test_probabilities_are_bayes_theorem(regression):
    evidences = {name: known(m[0], 0.01) for name, m in regression.items()}
    table = compare_models(evidences, "flat", {"flat": 2, "tilted": 1, "full": 1})
    log_z = pd.Series({name: m[0] for name, m in regression.items()})
    weight = np.exp(log_z) * pd.Series({"flat": 2, "tilted": 1, "full": 1})
    probability = weight / weight.sum()
    pd.testing.assert_series_equal(table["posterior_probability"].sort_index(), probability.sort_index(), check_names=False)
    assert np.allclose(table["log_bf"], log_z[table.index] - log_z["flat"])
    assert np.allclose(table["bf"], np.exp(table["log_bf"]))
    assert list(table["rank"]) == [1, 2, 3]
    assert table["posterior_probability"].is_monotonic_decreasing


def test_errors_propagate():
    errors = {"a": 0.3, "b": 0.4, "c": 0.1}
    log_z = {"a": 0.0, "b": 0.5, "c": -0.5}
    table = compare_models({name: known(log_z[name], errors[name]) for name in errors}, "a")
    assert table.loc["a", ["log_bf", "log_bf_err"]].tolist() == [0, 0]
    assert table.loc["b", "log_bf_err"] == pytest.approx(0.5)
    # The ends of the interval against 2e5 draws of the three evidences: the 16 and 84 % points.
    rng = np.random.default_rng(0)
    z = np.array([log_z[n] for n in "abc"]) + rng.standard_normal((200_000, 3)) * [errors[n] for n in "abc"]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    for i, name in enumerate("abc"):
        ends = table.loc[name, ["posterior_probability_low", "posterior_probability_high"]].to_numpy(float)
        assert np.allclose(ends, np.percentile(p[:, i], [15.87, 84.13]), atol=0.01)


@pytest.mark.parametrize(
    ("log_bf", "error", "words"),
    [
        (0.5, 0.01, "bare mention"),
        (-0.5, 0.01, "bare mention"),
        (2.0, 0.01, "positive for"),
        (-2.0, 0.01, "positive against"),
        (4.0, 0.01, "strong for"),
        (-9.0, 0.01, "very strong against"),
        (3.0, 0.1, "positive for to strong for"),
    ],
)
def test_words_of_kass_and_raftery(log_bf, error, words):
    assert compare_models({"a": known(0.0), "b": known(log_bf, error)}).loc["b", "kass_raftery"] == words


def test_huge_ratios_do_not_overflow():
    table = compare_models({"a": known(-1e4, 0.1), "b": known(1e4, 0.1)})
    assert table.loc["b", "bf"] == np.inf
    assert table["posterior_probability"].tolist() == [1, 0]
    assert table.index.tolist() == ["b", "a"]


def test_an_unreliable_model_is_marked_and_not_ranked():
    table = compare_models({"a": known(0.0, 0.1), "b": known(9.0, 0.1, ["a mode is missing"]), "c": known(1.0, 0.1)})
    assert table.index.tolist() == ["c", "a", "b"]
    assert table.loc["b", "rank"] is pd.NA
    assert np.isnan(table.loc["b", "posterior_probability"])
    assert table.loc["b", "kass_raftery"].startswith("not ranked")
    assert table.loc["b", "reasons"] == "a mode is missing"
    assert table["posterior_probability"].sum() == pytest.approx(1)


def test_against_an_unreliable_reference_no_word_is_given():
    table = compare_models({"a": known(0.0, 0.1, ["broken"]), "b": known(9.0, 0.1)})
    assert table.loc["b", "kass_raftery"].startswith("not ranked")


def test_an_evidence_that_is_not_a_number_is_marked():
    table = compare_models({"a": known(0.0, 0.1), "b": known(np.nan, np.nan)})
    assert not table.loc["b", "reliable"]
    assert "not finite" in table.loc["b", "reasons"]
    assert table.loc["a", "posterior_probability"] == 1


def test_the_average_over_models_is_the_mixture_of_posteriors(regression):
    rng = np.random.default_rng(1)
    evidences = {name: known(m[0], 0.01) for name, m in regression.items()}
    draws = {
        name: pd.DataFrame(rng.multivariate_normal(m[1], m[2], 20_000), columns=["level", "slope", "other"][: len(m[1])])
        for name, m in regression.items()
    }
    probability = compare_models(evidences)["posterior_probability"]
    average = average_models(draws, evidences, 10_000, quantity="level", random_state=2)
    assert average.shape == (10_000, 2)
    share = average["model"].value_counts(normalize=True)
    assert (share - probability).abs().max() < 2e-4        # systematic allocation rounds to one draw of 10 000
    exact = sum(probability[name] * m[1][0] for name, m in regression.items())
    assert average["level"].mean() == pytest.approx(exact, abs=4 * average["level"].std() / 100)        # 4 standard errors
    assert average_models(draws, evidences, 500, quantity="level", random_state=2).equals(
        average_models(draws, evidences, 500, quantity="level", random_state=2)
    )


def test_quantities_may_be_functions_and_draws_any_record():
    rng = np.random.default_rng(0)
    draws = {
        "array": rng.standard_normal((50, 2)),
        "chains": Chains(rng.standard_normal((2, 50, 2)), ("a", "b")),
        "weighted": WeightedSamples(rng.standard_normal((50, 2)), np.zeros(50), ("a", "b")),
    }
    evidences = {name: known(0.0, 0.1) for name in draws}
    one = average_models(draws, evidences, 300, quantity=lambda x: x.sum(axis=1), random_state=0)
    assert one["model"].value_counts().tolist() == [100, 100, 100]
    assert set(one) == {"quantity", "model"}
    two = average_models(draws, evidences, 30, quantity={name: (lambda x: x**2) for name in draws}, random_state=0)
    assert set(two) == {"quantity_0", "quantity_1", "model"}


def test_messages():
    pair = {"smbhb": known(0.0, 0.1), "igw": known(1.0, 0.1)}
    with pytest.raises(ValueError, match="at least one model"):
        compare_models({})
    with pytest.raises(TypeError, match="Expected an Evidence for model 'b'; got float"):
        compare_models({"a": known(0.0), "b": 1.0})
    with pytest.raises(ValueError, match="Did you mean 'smbhb'"):
        compare_models(pair, reference="smbh")
    with pytest.raises(ValueError, match="igw missing"):
        compare_models(pair, prior_odds={"smbhb": 1})
    with pytest.raises(ValueError, match="positive finite prior_odds"):
        compare_models(pair, prior_odds={"smbhb": 1, "igw": 0})
    with pytest.raises(ValueError, match="finite ln Z"):
        compare_models({"a": known(np.nan, 0.1), "b": known(0.0)})
    draws = {"smbhb": np.zeros((5, 1)), "igw": np.zeros((5, 1))}
    with pytest.raises(ValueError, match="same models"):
        average_models({"smbhb": draws["smbhb"]}, pair, 10, quantity="x0")
    with pytest.raises(ValueError, match=r"Expected model .* to have columns \['y'\]"):
        average_models(draws, pair, 10, quantity="y")
    with pytest.raises(ValueError, match="positive integer"):
        average_models(draws, pair, 0, quantity="x0")
    with pytest.raises(ValueError, match="Expected reliable evidences; those of igw"):
        average_models(draws, pair | {"igw": known(0.0, 0.1, ["k > 0.7"])}, 10, quantity="x0")
    with pytest.raises(ValueError, match="shape"):
        average_models(draws | {"igw": np.zeros(5)}, pair, 10, quantity="x0")
    with pytest.raises(ValueError, match="to have shape"):
        average_models(draws, pair, 10, quantity=lambda x: 1.0)
    with pytest.raises(ValueError, match="quantity for every model"):
        average_models(draws, pair, 10, quantity={"smbhb": lambda x: x})
