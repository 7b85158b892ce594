"""The estimators among scikit-learn's own tools; clone, pickle, GridSearchCV and check_estimator are in test_estimators."""

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sbi_flows import ConditionalFlow, FlowDensity

FAST = {"layers": 1, "max_epochs": 3, "random_state": 0}


@pytest.fixture
def frame():
    return pd.DataFrame(np.random.default_rng(0).normal([10.0, -3.0], [2.0, 0.1], size=(400, 2)), columns=["mass", "spin"])


def test_cross_validation_in_threads_gives_the_scores_of_one_after_another(frame):
    alone = cross_val_score(FlowDensity(**FAST), frame, cv=3)
    with joblib.parallel_config(backend="threading"):
        together = cross_val_score(FlowDensity(**FAST), frame, cv=3, n_jobs=2)
    np.testing.assert_array_equal(alone, together)
    # The entropy of the normal, in nats; the mean of 133 rows scatters by sqrt(d / 2 / 133) = .09.
    assert alone.mean() == pytest.approx(-np.log(2 * np.pi * np.e * 0.2), abs=0.4)


@pytest.mark.slow
def test_cross_validation_in_processes(frame):
    alone = cross_val_score(FlowDensity(**FAST), frame, cv=3)
    np.testing.assert_array_equal(cross_val_score(FlowDensity(**FAST), frame, cv=3, n_jobs=2), alone)


def test_names_pass_through_a_pipeline_that_says_pandas(frame):
    model = make_pipeline(StandardScaler().set_output(transform="pandas"), FlowDensity(**FAST)).fit(frame)
    assert list(model[-1].feature_names_in_) == ["mass", "spin"]
    assert list(model[-1].sample(3, random_state=0).columns) == ["mass", "spin"]
    assert model.score_samples(frame).shape == (400,)


def test_a_conditional_flow_is_scored_by_its_log_density(frame):
    y = frame[["spin"]] * 10
    scores = cross_val_score(make_pipeline(StandardScaler(), ConditionalFlow(**FAST)), frame[["mass"]], y, cv=2)
    # y is independent of mass, and a normal of unit variance: its entropy.
    assert scores.mean() == pytest.approx(-0.5 * np.log(2 * np.pi * np.e), abs=0.3)
