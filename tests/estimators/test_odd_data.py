"""What estimators say to data and settings that are hopeless, odd or only repeated."""

import numpy as np
import pandas as pd
import pytest
from small_fits import FAST, pairs, rows, with_column

from sbi_flows import ConditionalFlow, FlowDensity
from sbi_flows.estimators.base import split_rows
from sbi_flows.estimators.copies import row_keys


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


def test_the_split_knows_no_units_and_keeps_old_rows_on_their_side():
    rows = np.random.default_rng(0).normal(size=(1000, 2))
    training, validation = split_rows(rows, 0.1, 0)
    for other in (rows * [1e6, -1e-6], np.hstack([rows, rows[:, :1] ** 2])):
        np.testing.assert_array_equal(split_rows(other, 0.1, 0)[1], validation)
    longer = split_rows(np.vstack([rows, rows[:500] + 1]), 0.1, 0)[1]
    assert np.isin(longer[longer < 1000], training).sum() < 15        # a tenth of the rows, drawn anew, would be 90


def test_targets_in_another_order_are_refused():
    X, y = pairs(200)
    y = pd.DataFrame(y, columns=["u", "v"])
    model = ConditionalFlow(**FAST).fit(X, y)
    with pytest.raises(ValueError, match="Expected y with the columns of the fit, u, v; got in another order: v, u"):
        model.log_prob(X, y[["v", "u"]])
    np.testing.assert_array_equal(model.log_prob(X, y), model.log_prob(X, y.to_numpy()))


def test_a_huge_constant_column_makes_no_copies_of_rows():
    """Rounding in a projection that it dominated put all rows but one on the side of validation."""
    rows = np.random.default_rng(0).normal(size=(500, 3))
    rows[:, 1] = 4.7e17
    training, validation = split_rows(rows, 0.1, 0)
    assert (len(training), len(validation)) == (450, 50)


@pytest.mark.parametrize("seed", range(4))
def test_many_copies_of_one_row_train(seed):
    """Nine rows of ten are one row: they never take the training set away, whatever their lot."""
    x = np.vstack([rows(100), np.zeros((900, rows(1).shape[1]))])
    training, validation = split_rows(x, 0.1, seed)
    assert len(training) == 990 and (validation < 100).all()


def test_heavy_tails_hide_no_column_from_the_split():
    """Scaled by their largest value, all but the largest row had the sums of the binary column beside, and were copies."""
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=5000)
    one, two = np.r_[1e17, rng.normal(size=4999)], rng.normal(size=5000)
    two[[3, 9]] = 1e308, -1e308
    for x in (one, two, np.exp(12 * rng.normal(size=5000))):
        training, validation = split_rows(np.column_stack([x, label]), 0.1, 3)
        assert (len(training), len(validation)) == (4500, 500)
        np.testing.assert_array_equal(validation, np.sort(np.argsort(np.random.default_rng(3).random(5000), kind="stable")[:500]))
        assert abs(label[validation].mean() - 0.5) < 0.1  # 4.5 deviations: a false alarm in 1e5, and the seed is fixed


def test_keys_of_rows_are_those_of_their_values():
    rows = np.random.default_rng(0).integers(-2, 3, size=(20000, 4)).astype(float)
    rows[::7] *= -1.0  # some zeros are -0.0
    rows[::11, 2] = np.nan
    _, expected = np.unique(np.nan_to_num(rows + 0.0, nan=99.0), axis=0, return_inverse=True)
    _, found = np.unique(row_keys(rows, 5), return_inverse=True)
    assert len(np.unique(np.column_stack([expected.ravel(), found]), axis=0)) == expected.max() + 1 == found.max() + 1
