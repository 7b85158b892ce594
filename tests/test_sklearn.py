"""The public estimators inside scikit-learn's own machinery: searches, cross-validation in processes, pipelines, frames, copies."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sbi_flows import ConditionalFlow, FlowDensity, ModelClassifier, RatioClassifier

FAST = {"flow": "maf", "layers": 1, "hidden": (8,), "max_epochs": 2, "random_state": 0}


def pairs(n=300, seed=0):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 2)), columns=["a", "b"])
    return X, pd.DataFrame(X.to_numpy() + 0.3 * rng.normal(size=(n, 2)), columns=["u", "v"])


ESTIMATORS = {
    "density": (FlowDensity(**FAST), lambda model, X, y: model.fit(X), lambda model, X, y: model.log_prob(X)),
    "conditional": (ConditionalFlow(**FAST), lambda model, X, y: model.fit(X, y), lambda model, X, y: model.log_prob(X, y)),
    "ratio": (
        RatioClassifier(hidden=(8,), max_epochs=2, random_state=0),
        lambda model, X, y: model.fit(X, y),
        lambda model, X, y: model.log_ratio(X, y),
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.filterwarnings("ignore:[A-Z].*:UserWarning")  # of fits cut short
def test_copies_fit_and_value_alike(name):
    """``clone`` before the fit and ``pickle`` after it; names of columns come along."""
    estimator, fit, value = ESTIMATORS[name]
    X, y = pairs()
    assert {k: repr(v) for k, v in clone(estimator).get_params().items()} == {k: repr(v) for k, v in estimator.get_params().items()}
    model, again = fit(clone(estimator), X, y), fit(clone(estimator), X, y)
    expected = np.asarray(value(model, X, y))
    np.testing.assert_array_equal(value(again, X, y), expected)
    np.testing.assert_array_equal(value(pickle.loads(pickle.dumps(model)), X, y), expected)
    if name != "ratio":  # which keeps no names: its rows are arrays of theta and x
        assert list(pickle.loads(pickle.dumps(model)).feature_names_in_) == list(X.columns)
    assert not hasattr(clone(model), "n_features_in_"), "a clone is not fitted"


def test_processes_change_no_score():
    """``n_jobs=2``: the same folds and seeds give the same numbers, in the order of the folds."""
    X, _ = pairs()
    alone = cross_val_score(FlowDensity(**FAST), X, cv=3)
    np.testing.assert_array_equal(cross_val_score(FlowDensity(**FAST), X, cv=3, n_jobs=2), alone)
    assert len(set(alone)) == 3


@pytest.mark.filterwarnings("ignore:[A-Z].*:UserWarning")
def test_a_search_over_the_steps_of_a_pipeline():
    X, y = pairs()
    y["u"] += X["a"] ** 2  # what the ridge regression that a fit starts from cannot see
    model = Pipeline([("scale", StandardScaler()), ("flow", ConditionalFlow(**FAST))])
    search = GridSearchCV(model, {"flow__max_epochs": [1, 40], "scale__with_mean": [True, False]}, cv=2).fit(X, y)
    assert search.best_params_["flow__max_epochs"] == 40
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and search.best_score_ == scores.max()
    assert search.score(X, y) == pytest.approx(search.best_estimator_.named_steps["flow"].log_prob(
        search.best_estimator_.named_steps["scale"].transform(X), y).mean())  # fmt: skip


@pytest.mark.filterwarnings("ignore:[A-Z].*:UserWarning")
def test_frames_pass_through_a_pipeline_with_set_output():
    """``set_output`` makes the scaler hand on a frame, whose names the flow keeps and demands again."""
    X, y = pairs()
    model = make_pipeline(StandardScaler(), FlowDensity(**FAST)).set_output(transform="pandas").fit(X)
    flow = model[-1]
    assert list(flow.feature_names_in_) == ["a", "b"]
    drawn = flow.sample(5, random_state=0)
    assert isinstance(drawn, pd.DataFrame) and list(drawn.columns) == ["a", "b"]
    with pytest.raises(ValueError, match="feature names"):
        flow.log_prob(X.rename(columns={"a": "spam"}))
    conditional = make_pipeline(StandardScaler(), ConditionalFlow(**FAST)).set_output(transform="pandas").fit(X, y)
    assert np.isfinite(conditional.score(X, y))


def test_a_search_hands_the_error_of_one_setting_on():
    X, _ = pairs()
    search = GridSearchCV(FlowDensity(**FAST), {"flow": ["maf", "spam"]}, cv=2, error_score="raise")
    with pytest.raises(ValueError, match="spam"):
        search.fit(X)


def test_nested_parameters_are_set_by_name():
    model = FlowDensity(**FAST).set_params(layers=2, hidden=(4, 4))
    assert (model.layers, model.hidden) == (2, (4, 4))
    with pytest.raises(ValueError, match="Invalid parameter 'spam'"):
        model.set_params(spam=1)
    assert clone(ModelClassifier()).get_params().keys() == ModelClassifier().get_params().keys()
