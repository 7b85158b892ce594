"""Estimators as scikit-learn knows them: its checks, densities and conditional densities that are learned, ensembles."""

import pickle
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from small_fits import FAST, pairs, rows
from torch import nn

from sbi_flows import ConditionalFlow, FlowDensity, flows

SKIPPED = {"check_array_api_input": "array API dispatch is off unless SCIPY_ARRAY_API is set before scipy is imported"}


@pytest.mark.filterwarnings("ignore:[Xy] has|[Xy].{1,2}column:UserWarning")  # the checks use tiny and discrete data
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix:UserWarning")
@pytest.mark.parametrize(("estimator", "n_checks"), [(FlowDensity, 48), (ConditionalFlow, 49)])
def test_scikit_learn_checks(estimator, n_checks):
    """All that there are, counted so that none goes missing; scikit-learn 1.6 has one fewer."""
    # float64, as one check compares rows evaluated alone and together to 1e-7.
    fast = estimator(**{**FAST, "hidden": (8,), "max_epochs": 2, "dtype": "float64"})
    results = check_estimator(fast, on_skip=None, on_fail="raise")
    status = Counter(result["status"] for result in results)
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= set(SKIPPED)
    assert status["passed"] + status["skipped"] == len(results) == n_checks - sklearn.__version__.startswith("1.6.")


@pytest.mark.parametrize("estimator", [FlowDensity, ConditionalFlow])
def test_clone_keeps_parameters(estimator):
    model = estimator(support=[(0, 1)], hidden=(3,), n_members=2)
    assert clone(model).get_params() == model.get_params()


def test_pickle(density, conditional):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(density)).log_prob(rows(5)), density.log_prob(rows(5)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(conditional)).log_prob(*pairs(5)), conditional.log_prob(*pairs(5)))


def test_grid_search_chooses_by_likelihood():
    search = GridSearchCV(FlowDensity(**FAST), {"max_epochs": [1, 25]}, cv=2).fit(rows(400, 2))
    assert search.best_params_ == {"max_epochs": 25}
    assert search.score(rows(50, 2)) == pytest.approx(search.best_estimator_.log_prob(rows(50, 2)).mean())


def test_pipelines():
    X, y = pairs()
    model = make_pipeline(StandardScaler(), ConditionalFlow(**FAST)).fit(X, y)
    assert np.isfinite(model.score(X, y))
    plain = make_pipeline(StandardScaler(), FlowDensity(**FAST)).fit(X)
    assert plain.score_samples(X).shape == (len(X),)


def test_density_is_learned():
    x = rows(3000, 2)
    fitted = FlowDensity(layers=2, hidden=(32,), max_epochs=12, batch_size=128, random_state=0).fit(x[:2500])
    exact = -2 * (0.5 * np.log(2 * np.pi) + 0.5)
    # Over 500 rows the entropy's estimate has a standard error of .045: five of those, plus the fit's own loss.
    assert fitted.score(x[2500:]) > exact - 0.3
    assert fitted.history_.reliability.ok


def test_shapes_and_dtypes(density):
    x = rows(7)
    assert density.log_prob(x).shape == (7,) and density.log_prob(x).dtype == np.float64
    np.testing.assert_array_equal(density.score_samples(x), density.log_prob(x))
    assert density.score(x) == pytest.approx(density.log_prob(x).mean())
    assert density.sample(5).shape == (5, 3) and density.sample().shape == (1, 3)
    assert density.n_features_in_ == 3 and not hasattr(density, "feature_names_in_")


def test_seeds(density):
    again = FlowDensity(**FAST).fit(rows())
    np.testing.assert_array_equal(again.log_prob(rows(9)), density.log_prob(rows(9)))
    np.testing.assert_array_equal(again.sample(4, random_state=1), density.sample(4, random_state=1))
    assert not np.array_equal(density.sample(4, random_state=1), density.sample(4, random_state=2))
    other = FlowDensity(**{**FAST, "random_state": 1}).fit(rows())
    assert not np.array_equal(other.log_prob(rows(9)), density.log_prob(rows(9)))


def test_data_frames_in_and_out():
    frame = pd.DataFrame(rows(), columns=["a", "b", "c"])
    fitted = FlowDensity(**FAST, support={"a": (-10, 10)}).fit(frame)
    drawn = fitted.sample(4, random_state=0)
    assert list(fitted.feature_names_in_) == list(drawn.columns) == ["a", "b", "c"]
    assert np.isfinite(fitted.log_prob(drawn)).all()
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.log_prob(frame[["c", "b", "a"]])


def test_draws_never_leave_the_support_and_density_vanishes_outside():
    rng = np.random.default_rng(0)
    x = np.stack([rng.beta(0.5, 0.5, 500) * 0.1, rng.exponential(size=500), rng.uniform(-np.pi, np.pi, 500)], axis=1)
    fitted = FlowDensity(**FAST, support=[(0, 0.1), (0, np.inf), "circular"]).fit(x)
    drawn = fitted.sample(20000, random_state=0)
    assert (drawn > [0, 0, -np.inf]).all() and (drawn < [0.1, np.inf, np.pi]).all() and (drawn[:, 2] >= -np.pi).all()
    # Nor do they pile up at the last number inside. Angles are float32: pairs of equal ones are chance.
    assert max(np.unique(column, return_counts=True)[1].max() for column in drawn.T) <= 3
    outside = np.array([[0.2, 1.0, 0.0], [0.05, -1.0, 0.0], [0.05, 1.0, 0.0]])
    assert np.isneginf(fitted.log_prob(outside)).tolist() == [True, True, False]


@pytest.mark.parametrize("given", [lambda d, c: flows.maf(d, c, layers=1), flows.maf(2, layers=1)])
def test_a_flow_that_is_built_has_its_own_support(given):
    x = np.random.default_rng(0).uniform(size=(200, 2))
    with pytest.raises(ValueError, match=r"Expected no support= beside a flow .* Give the support to the function: nsf\("):
        FlowDensity(**{**FAST, "flow": given}, support=(0, 1)).fit(x)
    FlowDensity(**{**FAST, "flow": given}, support="real").fit(x)


def test_the_support_of_a_flow_given_as_a_function_is_kept():
    x = np.random.default_rng(0).uniform(size=(200, 2))

    def boxed(features, context):
        return flows.maf(features, context, layers=1, support=(0, 1))

    for support in (None, (0, 1)):
        fitted = FlowDensity(**{**FAST, "flow": boxed}, support=support).fit(x)
        drawn = fitted.sample(5000, random_state=0)
        assert ((drawn > 0) & (drawn < 1)).all() and np.isneginf(fitted.log_prob([[0.5, 1.5]])).all()
    with pytest.raises(ValueError, match="Expected X inside its declared support; column 0 has 200 of 200 values outside"):
        FlowDensity(**{**FAST, "flow": boxed}).fit(x + 1)


def test_sample_weight_shifts_the_density():
    x = np.concatenate([rows(400, 2), rows(400, 2, seed=1) + 6])
    fitted = FlowDensity(**FAST).fit(x, sample_weight=np.repeat([1.0, 0.0], 400))
    assert fitted.sample(500, random_state=0)[:, 0].mean() < 1
    assert any("rows of zero weight" in note for note in fitted.history_.reliability.notes)


@pytest.mark.parametrize("name", ["nsf", "nsf-coupling", "maf", "realnvp"])
def test_named_flows(name):
    fitted = FlowDensity(**{**FAST, "flow": name, "max_epochs": 1}).fit(rows(200))
    assert np.isfinite(fitted.log_prob(fitted.sample(5, random_state=0))).all()


def test_flow_given_as_module_and_as_function():
    for given in (flows.realnvp(3, layers=2), lambda d, c: flows.realnvp(d, c, layers=2)):
        fitted = FlowDensity(**{**FAST, "flow": given}).fit(rows(200))
        assert fitted.flow_.spec["architecture"] == "realnvp" and fitted.flow_ is not given
    with pytest.raises(ValueError, match="Expected a flow of 3 features and 0 context features to match the data; got one of 2"):
        FlowDensity(**{**FAST, "flow": flows.maf(2)}).fit(rows(200))
    with pytest.raises(ValueError, match="for n_members > 1, so that members start apart"):
        FlowDensity(**{**FAST, "flow": flows.maf(3)}, n_members=2).fit(rows(200))
    with pytest.raises(ValueError, match="Expected flow to be one of 'nsf', 'nsf-coupling', 'maf', 'realnvp', 'cnf', 'score'; got 'glow'"):
        FlowDensity(**{**FAST, "flow": "glow"}).fit(rows(200))


def test_one_column():
    x = np.random.default_rng(0).gamma(2.0, size=(500, 1))
    fitted = FlowDensity(**{**FAST, "flow": "nsf"}, support=(0, np.inf)).fit(x)
    grid = np.linspace(1e-3, 40, 4001)
    # The trapezoid's error on this grid is below 1e-3; what lies outside the grid is less than that.
    assert np.trapezoid(np.exp(fitted.log_prob(grid[:, None])), grid) == pytest.approx(1, abs=5e-3)


def test_ensemble_is_the_mean_density_and_samples_all_members():
    fitted = FlowDensity(**FAST, n_members=3).fit(rows())
    x = torch.tensor(rows(50), dtype=torch.float32)
    each = np.stack([flow.log_prob(x).double().numpy() for flow in fitted.flow_.flows])
    np.testing.assert_allclose(fitted.log_prob(rows(50)), np.log(np.exp(each).mean(0)), rtol=1e-5)
    assert fitted.history_.validation_loss.shape[1] == 3 and fitted.sample(1000, random_state=0).shape == (1000, 3)


def test_ensemble_draws_come_from_members_in_equal_shares_and_in_the_order_of_their_context():
    class Constant(nn.Module):
        features, context_features = 1, 1

        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def sample(self, n, context, *, generator=None):
            return context * 10 + self.value

    from sbi_flows.estimators import FlowEnsemble

    ensemble = FlowEnsemble([Constant(1.0), Constant(2.0)])
    drawn = ensemble.sample(4000, torch.arange(4000.0)[:, None], generator=torch.Generator().manual_seed(0))
    member = drawn[:, 0] - 10 * torch.arange(4000.0)
    assert set(member.tolist()) == {1.0, 2.0}
    # A binomial share of 4000 has standard deviation 0.008: five of those, false alarms 6e-7.
    assert abs((member == 1.0).double().mean() - 0.5) < 0.04


def test_conditional_shapes(conditional):
    X, y = pairs(6)
    assert conditional.log_prob(X, y).shape == (6,) and conditional.score(X, y) == pytest.approx(
        conditional.log_prob(X, y).mean()
    )
    assert conditional.sample(X, 10, random_state=0).shape == (6, 10, 2)
    assert (conditional.n_features_in_, conditional.n_targets_) == (2, 2)


def test_condition_matters_and_rows_keep_their_order():
    X, y = pairs(2000)
    fitted = ConditionalFlow(**{**FAST, "max_epochs": 20}, n_members=2).fit(X, y)
    drawn = fitted.sample(np.array([[-1.0, 1.0], [1.0, -1.0]]), 500, random_state=0)
    # The mean of 500 draws with standard deviation about .3 is good to .02; the rest is the fit's own error.
    np.testing.assert_allclose(drawn.mean(1), [[-1, 1], [1, -1]], atol=0.3)


def test_one_dimensional_target_and_names():
    X, y = pairs()
    frame, series = pd.DataFrame(X, columns=["u", "v"]), pd.Series(y[:, 0], name="w")
    fitted = ConditionalFlow(**FAST).fit(frame, series)
    assert list(fitted.target_names_) == ["w"] and list(fitted.feature_names_in_) == ["u", "v"]
    assert fitted.sample(frame[:3], 2, random_state=0).shape == (3, 2, 1)
    assert fitted.log_prob(frame, series).shape == (600,)
    both = ConditionalFlow(**FAST, support={"p": (-9, 9)}).fit(frame, pd.DataFrame(y, columns=["p", "q"]))
    assert list(both.target_names_) == ["p", "q"]


def test_embedding_is_trained_jointly():
    X, y = pairs()
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    before = network[0].weight.detach().clone()
    for members in (1, 2):
        fitted = ConditionalFlow(**FAST, embedding=network, n_members=members).fit(X, y)
        assert torch.equal(network[0].weight, before)  # the user's module is not touched
        inner = fitted.flow_ if members == 1 else fitted.flow_.flows[1]
        assert not torch.equal(inner.embedding[0].weight, before) and inner.flow.context_features == 3
        assert fitted.sample(X[:2], 3, random_state=0).shape == (2, 3, 2)
    with pytest.raises(ValueError, match=r"Expected an embedding from \(n, 2\) to \(n, k\); for n = 2 it gave \(4,\)"):
        ConditionalFlow(**FAST, embedding=nn.Flatten(0)).fit(X, y)
    with pytest.raises(ValueError, match="Expected embedding to be 'auto', None or a torch module"):
        ConditionalFlow(**FAST, embedding="cnn").fit(X, y)


def test_one_condition_must_be_a_column(conditional):
    x, y = np.arange(20.0), np.arange(20.0)
    with pytest.raises(ValueError, match=r"Expected X of shape \(n, c\), .*; got \(20,\). For one condition pass X\[:, None\]"):
        ConditionalFlow(**FAST).fit(x, y)
    with pytest.raises(ValueError, match=r"pass X\.to_frame\(\)"):
        ConditionalFlow(**FAST).fit(pd.Series(x), y)
    with pytest.raises(ValueError, match=r"For one row pass X\[None\]"):
        conditional.sample(np.zeros(conditional.n_features_in_))


def test_wrong_target_width(conditional):
    X, y = pairs(5)
    with pytest.raises(ValueError, match=r"Expected y of shape \(5, 2\), one row for each of X; got \(5, 1\)"):
        conditional.log_prob(X, y[:, 0])
    with pytest.raises(ValueError, match=r"Expected y of shape \(5, 2\), one row for each of X; got the single value 3\.0"):
        conditional.log_prob(X, 3.0)


def test_nothing_is_printed_or_warned_by_default(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlowDensity(**FAST).fit(rows(200))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.gpu
def test_on_the_gpu():
    fitted = FlowDensity(**FAST, n_members=2, device="cuda").fit(rows())
    assert next(fitted.flow_.parameters()).device.type == "cuda"
    assert np.isfinite(fitted.log_prob(fitted.sample(10, random_state=0))).all()


def test_warm_start_goes_on_from_the_old_weights():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 1))
    y = X + 0.1 * rng.normal(size=(400, 1))
    model = ConditionalFlow(flow="maf", layers=1, max_epochs=20, random_state=0, warm_start=True).fit(X, y)
    first = model.score(X, y)
    scaling = model.flow_.scaling.mean.clone()
    model.set_params(max_epochs=1, learning_rate=1e-6).fit(X + 1.0, y + 1.0)
    assert model.score(X, y) == pytest.approx(first, abs=0.01)
    assert torch.equal(model.flow_.scaling.mean, scaling)
    with pytest.raises(ValueError, match=r"like those of the first fit .* got 1, 1 and 2"):
        model.set_params(n_members=2).fit(X, y)
