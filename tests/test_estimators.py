import pickle
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from sbi_flows import ConditionalFlow, FlowDensity, flows
from sbi_flows._files import load_tensors, save_tensors
from sbi_flows.estimators.base import split_rows

FAST = {"flow": "maf", "layers": 1, "hidden": (16,), "max_epochs": 3, "batch_size": 128, "random_state": 0}


def rows(n=600, d=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    x[:, -1] += x[:, 0] ** 2
    return x


def pairs(n=600, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    return X, X + 0.3 * rng.normal(size=(n, 2))


@pytest.fixture(scope="module")
def density():
    return FlowDensity(**FAST).fit(rows())


@pytest.fixture(scope="module")
def conditional():
    return ConditionalFlow(**FAST).fit(*pairs())


# ------------------------------------------------------------------------------------------------------------------ scikit-learn

SKIPPED = {"check_array_api_input": "array API dispatch is off unless SCIPY_ARRAY_API is set before scipy is imported"}


@pytest.mark.filterwarnings("ignore:[Xy] has|[Xy].{1,2}column:UserWarning")  # the checks use tiny and discrete data
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix:UserWarning")
@pytest.mark.parametrize(("estimator", "n_checks"), [(FlowDensity, 48), (ConditionalFlow, 49)])
def test_scikit_learn_checks(estimator, n_checks):
    # float64, as one check compares rows evaluated alone and together to 1e-7.
    fast = estimator(**{**FAST, "hidden": (8,), "max_epochs": 2, "dtype": "float64"})
    results = check_estimator(fast, on_skip=None, on_fail="raise")
    status = Counter(result["status"] for result in results)
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= set(SKIPPED)
    assert status["passed"] + status["skipped"] == len(results) == n_checks


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


# ----------------------------------------------------------------------------------------------------------------------- density


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


# --------------------------------------------------------------------------------------------------------------------- ensembles


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


# ------------------------------------------------------------------------------------------------------------------- conditional


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


# ------------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("members", [1, 2])
def test_saved_density_is_the_same_to_the_bit(tmp_path, dtype, members):
    frame = pd.DataFrame(np.abs(rows(300)), columns=["a", "b", "c"])
    fitted = FlowDensity(**{**FAST, "flow": "nsf"}, dtype=dtype, n_members=members, support=(0, np.inf)).fit(frame)
    fitted.save(tmp_path / "a.flow")
    loaded = FlowDensity.load(tmp_path / "a.flow")
    np.testing.assert_array_equal(loaded.log_prob(frame), fitted.log_prob(frame))
    pd.testing.assert_frame_equal(loaded.sample(5, random_state=0), fitted.sample(5, random_state=0))
    np.testing.assert_array_equal(loaded.history_.validation_loss, fitted.history_.validation_loss)
    assert loaded.history_.reliability == fitted.history_.reliability and loaded.n_features_in_ == 3
    loaded.fit(frame)  # parameters came along


def test_saved_conditional_with_embedding(tmp_path):
    X, y = pairs(300)
    network = nn.Linear(2, 3)
    fitted = ConditionalFlow(**FAST, embedding=network).fit(X, y)
    fitted.save(tmp_path / "c.flow")
    loaded = ConditionalFlow.load(tmp_path / "c.flow", embedding=nn.Linear(2, 3))
    np.testing.assert_array_equal(loaded.log_prob(X, y), fitted.log_prob(X, y))
    with pytest.raises(
        ValueError, match="fitted with an embedding network, which is code and not in the file: pass it as embedding="
    ):
        ConditionalFlow.load(tmp_path / "c.flow")
    with pytest.raises(ValueError, match=r"does not fit the model it describes: embedding\.weight has shape"):
        ConditionalFlow.load(tmp_path / "c.flow", embedding=nn.Linear(2, 4))
    with pytest.raises(ValueError, match=r"Expected a file holding a FlowDensity; .* holds a ConditionalFlow"):
        FlowDensity.load(tmp_path / "c.flow")


def test_parameters_that_are_code_are_left_out(tmp_path):
    fitted = FlowDensity(**{**FAST, "flow": lambda d, c: flows.maf(d, c, layers=1)}, callbacks=[print], device="cpu").fit(
        rows(200)
    )
    fitted.save(tmp_path / "a.flow")
    loaded = FlowDensity.load(tmp_path / "a.flow")
    np.testing.assert_array_equal(loaded.log_prob(rows(9)), fitted.log_prob(rows(9)))
    assert loaded.callbacks == () and loaded.flow == "nsf"


def test_numbers_of_numpy_and_torch_are_saved_as_plain_ones(tmp_path):
    settings = {
        "layers": np.arange(1, 2)[0],
        "hidden": np.array([16]),
        "random_state": np.int64(3),
        "validation_fraction": np.float32(0.25),
        "support": [(np.int64(-9), np.float32(9)), np.array([-9, np.inf]), "real"],
        "device": torch.device("cpu"),
        "dtype": torch.float64,
    }
    fitted = FlowDensity(**{**FAST, **settings}).fit(rows(200))
    fitted.save(tmp_path / "a.flow")
    loaded = FlowDensity.load(tmp_path / "a.flow")
    kept = {name: loaded.get_params()[name] for name in settings}
    assert kept == {
        "layers": 1,
        "hidden": [16],
        "random_state": 3,
        "validation_fraction": 0.25,
        "support": [[-9, 9], [-9, np.inf], "real"],
        "device": "cpu",
        "dtype": "float64",
    }
    np.testing.assert_array_equal(loaded.fit(rows(200)).log_prob(rows(9)), fitted.log_prob(rows(9)))


@pytest.mark.parametrize("lost", ["spec", "facts", "history", "parameters", "embedded", "members"])
@pytest.mark.parametrize("estimator", [FlowDensity, ConditionalFlow])
def test_files_whose_header_is_incomplete(tmp_path, density, conditional, estimator, lost):
    (density if estimator is FlowDensity else conditional).save(tmp_path / "a.flow")
    tensors, header = load_tensors(tmp_path / "a.flow", kind=estimator.__name__, version=1)
    for replaced in ({name: value for name, value in header.items() if name != lost}, {**header, lost: 5}):
        if lost in ("members", "embedded") and lost in replaced:
            continue  # a number is what belongs there
        save_tensors(tmp_path / "b.flow", tensors, replaced, kind=estimator.__name__, version=1)
        with pytest.raises(ValueError, match=r"b\.flow is damaged: its header is incomplete"):
            estimator.load(tmp_path / "b.flow")


def test_foreign_flows_cannot_be_saved(tmp_path):
    from toy_flow import ToyFlow

    class Foreign(ToyFlow):
        def fit_scaling(self, x, context=None, weights=None):
            return self

    fitted = FlowDensity(**{**FAST, "flow": Foreign(3)}).fit(rows(200))
    with pytest.raises(TypeError, match=r"Expected a flow built by sbi_flows\.flows"):
        fitted.save(tmp_path / "a.flow")


@pytest.mark.parametrize("damage", ["missing", "truncated", "tampered"])
def test_damaged_files(tmp_path, density, damage):
    path = tmp_path / "a.flow"
    density.save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-40])
    else:
        path.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises((ValueError, FileNotFoundError), match=r"there is none|damaged or truncated|was changed after"):
        FlowDensity.load(path)


def test_unfitted_estimators(tmp_path):
    for use in (lambda m: m.log_prob(rows(3)), lambda m: m.sample(3), lambda m: m.save(tmp_path / "a")):
        with pytest.raises(NotFittedError):
            use(FlowDensity())
    with pytest.raises(NotFittedError):
        ConditionalFlow().sample(rows(3))


# ---------------------------------------------------------------------------------------------------------- checkpoint, progress


def test_checkpoint_resumes(tmp_path):
    class Stop(Exception):
        pass

    def stop(report):
        if report.epoch == 2:
            raise Stop

    expected = FlowDensity(**FAST).fit(rows())
    with pytest.raises(ValueError, match="Expected random_state to be an int where checkpoint= is given"):
        FlowDensity(**{**FAST, "random_state": None}, checkpoint=tmp_path / "c").fit(rows())
    model = FlowDensity(**FAST, checkpoint=tmp_path / "c", callbacks=[stop])
    with pytest.raises(Stop):
        model.fit(rows())
    resumed = FlowDensity(**FAST, checkpoint=tmp_path / "c").fit(rows())
    np.testing.assert_array_equal(resumed.log_prob(rows(5)), expected.log_prob(rows(5)))
    finished = FlowDensity(**FAST, checkpoint=tmp_path / "c").fit(rows())
    np.testing.assert_array_equal(finished.log_prob(rows(5)), expected.log_prob(rows(5)))


# --------------------------------------------------------------------------------------------------------------------- bad input


def with_column(values, n=200):
    x = rows(n)
    x[:, 1] = values
    return x


def atom(value, n):
    """One column of n copies of a value among 300 uniform numbers."""
    return np.concatenate([np.full(n, value), np.random.default_rng(0).uniform(size=300)])[:, None]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.empty((0, 3)), r"Found array with 0 sample\(s\).*minimum of 2 is required"),
        (np.empty((5, 0)), r"0 feature\(s\)"),
        (rows(1), r"Found array with 1 sample\(s\)"),
        (np.zeros(5), "Expected 2D array, got 1D array instead"),
        (
            with_column([np.nan] + [1.0] * 199),
            "Expected finite values in X; got NaN or inf: column 1 has 1 NaN and 0 infinite values",
        ),
        (with_column([np.inf, -np.inf] * 100), "column 1 has 0 NaN and 200 infinite values, first in row 0"),
        (with_column(3.0), r"Expected columns of X that vary; got constant column 1 = 3\. A constant has no density: drop it"),
        (with_column(2 * rows(200)[:, 0] + 1), "column 0, column 1 are copies of each other up to scale and shift"),
        (with_column(rows(200)[:, 0] - rows(200)[:, 2]), "column 0, column 1, column 2 are linearly dependent"),
    ],
)
def test_hopeless_data_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**FAST).fit(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            with_column(np.random.default_rng(0).integers(0, 9, 200)),
            "X: column 1 has only 9 distinct whole numbers; a density of discrete",
        ),
        (with_column(np.round(rows(200)[:, 0], 1)), "X: column 1 has only .* distinct values"),
        (with_column(np.maximum(rows(200)[:, 0], 0.0)), "X: column 1 has .*the value 0 in"),
        (atom(0.0, 200), "X: column 0 has the value 0 in 40% of the rows"),
        (atom(0.3, 40), "X: column 0 has the value 0.3 in 12% of the rows"),
        (np.repeat(atom(0.3, 40), 2, axis=1) + [[0, 1]] * rows(340, 1) * (atom(0.3, 40) != 0.3), "X: the same row, which starts"),
        (np.random.default_rng(0).integers(0, 9, (200, 1)), "X: column 0 has only 9 distinct whole numbers"),
        (np.random.default_rng(0).normal(size=(400, 1)).round(1), "X: column 0 has only .* distinct values"),
        (rows(20, 25), "X has n=20 rows for d=25 columns: the correlations between columns cannot be learned"),
    ],
)
def test_odd_data_are_fitted_with_a_warning_and_an_unfavourable_verdict(x, message):
    with pytest.warns(UserWarning, match=message):
        fitted = FlowDensity(**FAST).fit(x)
    assert any(message.split(".*")[0].split(";")[0] in reason for reason in fitted.history_.reliability.reasons)
    assert np.isfinite(fitted.log_prob(x)).all()


def test_offsets_far_beyond_float32_change_nothing():
    """Supports and standardisation are float64, so a date in seconds is as good as one in days from the middle."""
    x = rows(300)
    offset = np.array([1e9, -3e6, 0.0])
    near, far = FlowDensity(**FAST).fit(x), FlowDensity(**FAST).fit(x + offset)
    np.testing.assert_allclose(far.log_prob(x + offset), near.log_prob(x), atol=1e-3)
    np.testing.assert_allclose(far.sample(50, random_state=1) - offset, near.sample(50, random_state=1), atol=1e-3)


def test_a_foreign_float32_flow_is_told_of_columns_it_cannot_hold():
    from toy_flow import ToyFlow

    class Foreign(ToyFlow):
        def fit_scaling(self, x, context=None, weights=None):
            return self

    settings = {**FAST, "flow": Foreign}
    with pytest.raises(ValueError, match=r"column 1 vary by less than float32 can hold\. Subtract an offset first"):
        FlowDensity(**settings).fit(with_column(1e9 + rows(200)[:, 0]))
    with pytest.warns(UserWarning, match=r"X: column 1 spans only .* steps of float32 about 100000"):
        FlowDensity(**settings).fit(with_column(1e5 + rows(200)[:, 1]))


def test_a_chain_of_one_column_is_not_taken_for_discrete():
    rng = np.random.default_rng(0)
    for dtype in (np.float64, np.float32):
        x = np.repeat(rng.normal(size=3000).astype(dtype), rng.geometric(0.2, size=3000))[:, None]
        fitted = FlowDensity(**{**FAST, "max_epochs": 1}).fit(x)
        assert fitted.history_.reliability.ok, fitted.history_.reliability


def test_an_atom_on_the_edge_of_the_support_is_flagged():
    with pytest.warns(UserWarning, match="the value 0 in 40% of the rows"):
        fitted = FlowDensity(**FAST, support=(0, 1)).fit(atom(0.0, 200))
    assert not fitted.history_.reliability.ok


def test_repeated_rows_are_noted_and_stay_on_one_side():
    x = np.repeat(rows(150), 4, axis=0)
    fitted = FlowDensity(**FAST).fit(x)
    assert any("75% of the rows repeat others" in note for note in fitted.history_.reliability.notes)
    training, validation = split_rows(x, 0.1, 0)
    assert sorted([*training, *validation]) == list(range(600)) and len(validation) == 60
    assert not set(training // 4) & set(validation // 4)


@pytest.mark.parametrize(("n", "fraction"), [(2, 0.1), (10, 0.9), (10, 0.99), (5, 0.0)])
def test_split_leaves_rows_to_train_on(n, fraction):
    training, validation = split_rows(rows(n), fraction, 0)
    assert len(training) >= 1 and len(training) + len(validation) == n and (len(validation) >= 1) == (fraction > 0)
    training, validation = split_rows(np.ones((n, 2)), fraction, 0)
    assert len(training) >= 1


def test_values_outside_the_support_are_refused_and_those_on_its_edge_noted():
    x = np.random.default_rng(0).uniform(size=(200, 2))
    x[3, 1] = 1.5
    with pytest.raises(
        ValueError, match=r"column 1 has 1 of 200 values outside \(0, 1\), the first 1\.5 in row 3\. Widen support="
    ):
        FlowDensity(**FAST, support=(0, 1)).fit(x)
    x[3, 1] = 1.0
    fitted = FlowDensity(**FAST, support=(0, 1)).fit(x)
    assert any("1 values of column 1 lie exactly on the edge" in note for note in fitted.history_.reliability.notes)
    x[3, 1] = 4.0
    turned = FlowDensity(**FAST, support="circular").fit(x)
    assert any("1 angles of column 1 outside" in note for note in turned.history_.reliability.notes)


def test_constant_conditions_are_noted():
    X, y = pairs(200)
    X[:, 0] = 2.0
    fitted = ConditionalFlow(**FAST).fit(X, y)
    assert any("column 0 constant, so nothing can depend on it" in note for note in fitted.history_.reliability.notes)
    assert np.isfinite(fitted.log_prob(X, y)).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [(np.ones(3), r"shape \(200,\)"), (np.full(200, np.nan), "Expected finite sample_weight"), (-np.ones(200), "at least 0")],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**FAST).fit(rows(200), sample_weight=weights)
    with pytest.raises(ValueError, match=message):
        ConditionalFlow(**FAST).fit(*pairs(200), sample_weight=weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_members": 0}, "Expected n_members to be a whole number above 0"),
        ({"hidden": 16}, r"Expected hidden to be a sequence of widths such as \(64, 64\); got 16"),
        ({"hidden": (16, 0)}, "Expected hidden widths to be a whole number above 0; got 0"),
        ({"layers": 1.5}, "Expected layers to be a whole number above 0; got 1.5"),
        ({"device": "foo"}, "Expected device to be 'auto' or a device of torch such as 'cpu' or 'cuda:0'; got 'foo'"),
        ({"validation_fraction": 1.0}, r"Expected validation_fraction in \[0, 1\); got 1\.0"),
        ({"dtype": "float16"}, "Expected dtype 'float32' or 'float64'"),
        ({"schedule": "step"}, "Expected schedule to be one of"),
        ({"random_state": -1}, "Expected random_state to be a non-negative int"),
        ({"support": [(0, 1)]}, "Expected one support entry for each of the 3 columns; got 1"),
        ({"support": {"a": (0, 1)}}, "needs named columns: pass a DataFrame"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**{**FAST, **settings}).fit(rows(200))


def test_nan_and_wrong_width_at_evaluation(density):
    with pytest.raises(ValueError, match="Expected finite values in X; got NaN or inf"):
        density.log_prob(with_column(np.nan))
    with pytest.raises(ValueError, match="X has 2 features, but FlowDensity is expecting 3 features"):
        density.log_prob(rows(5, 2))
    with pytest.raises(ValueError, match="Expected n_samples to be a whole number above 0; got -1"):
        density.sample(-1)


def test_unreliable_fits_warn():
    with pytest.warns(UserWarning, match="without one finite loss"), np.errstate(all="ignore"):
        fitted = FlowDensity(**{**FAST, "learning_rate": 1e30}).fit(rows(300))
    assert not fitted.history_.reliability.ok
    assert np.isfinite(fitted.log_prob(rows(20))).all()


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


def test_the_split_knows_no_units_and_keeps_old_rows_on_their_side():
    rows = np.random.default_rng(0).normal(size=(1000, 2))
    training, validation = split_rows(rows, 0.1, 0)
    for other in (rows * [1e6, -1e-6], np.hstack([rows, rows[:, :1] ** 2])):
        np.testing.assert_array_equal(split_rows(other, 0.1, 0)[1], validation)
    longer = split_rows(np.vstack([rows, rows[:500] + 1]), 0.1, 0)[1]
    assert np.isin(longer[longer < 1000], training).sum() < 15        # a tenth of the rows, drawn anew, would be 90
