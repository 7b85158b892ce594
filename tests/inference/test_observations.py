"""Rows that a network can use, from observations of any units, tails and gaps."""

import json

import numpy as np
import pytest

from sbi_flows.inference.maps import ASINH, LINEAR, LOG, ROOT
from sbi_flows.inference.observations import Observations

N = 4000
RNG = np.random.default_rng(0)
COLUMNS = {
    "normal": (RNG.normal(size=N), LINEAR),
    "uniform": (RNG.uniform(size=N), LINEAR),
    "far from zero": (1e9 + RNG.normal(size=N), LINEAR),
    "Cauchy": (RNG.standard_cauchy(N), ASINH),
    "Student t of 2": (RNG.standard_t(2, N), ASINH),
    "log-normal": (np.exp(3 * RNG.normal(size=N)), LOG),
    "negative log-normal": (-np.exp(3 * RNG.normal(size=N)), LOG),
    "rare counts": (RNG.poisson(0.05, N).astype(float), None),
    "skewed counts": (RNG.poisson(RNG.gamma(0.3, 100.0, N)).astype(float), ROOT),
    "negative amounts and zeros": (-np.maximum(RNG.normal(size=N), 0.0) ** 3, ROOT),
    "heavy amounts and zeros": (np.exp(4 * RNG.normal(size=N)) * (RNG.random(N) < 0.6), ASINH),
    "log-Cauchy": (np.exp(np.clip(RNG.standard_cauchy(N), -600, 600)), LOG),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("factor", [1.0, 1e6, 1e-6])
def test_each_column_becomes_of_order_one_whatever_its_units(name, factor):
    x, kind = COLUMNS[name]
    x = x[:, None] * factor
    observations = Observations().fit(x)
    rows = observations.transform(x)
    assert kind is None or observations.first_maps()[0] == kind
    assert np.isfinite(rows).all() and np.abs(rows).max() < 12
    assert abs(rows.mean()) < 0.1 and 0.5 < rows.std() < 1.5
    plain = Observations().fit(x / factor).transform(x / factor)
    offset = np.abs(x).max() / np.std(x) if kind == LINEAR else 1
    np.testing.assert_allclose(rows, plain, rtol=0, atol=1e-14 * (10 + offset) + 1e-12)


def test_order_is_kept():
    x = COLUMNS["log-Cauchy"][0][:, None]
    rows = Observations().fit(x).transform(x)
    assert (np.diff(rows[np.argsort(x[:, 0]), 0]) >= 0).all()


def test_missing_values_and_constants():
    x = RNG.normal(size=(N, 3))
    x[:, 1] = 5.0
    x[::10, 2] = np.nan
    observations = Observations().fit(x)
    rows = observations.transform(x)
    assert rows.shape == (N, 3) == (N, observations.n_columns)
    np.testing.assert_array_equal(rows[:, 2], np.isnan(x[:, 2]))
    assert (rows[::10, 1] == 0).all()
    assert "x[1] the same in all simulations" in observations.notes[0] and "x[2] missing in up to 10.0%" in observations.notes[1]
    kept = Observations(keep_layout=True).fit(x)
    np.testing.assert_array_equal(kept.transform(x)[:, [0, 2, 3]], rows)
    assert (kept.transform(x)[:, 1] == 0).all()


def test_new_draws_of_the_same_distributions_are_not_called_strange():
    """A new draw lies beyond the range of 4000 by a tenth of that range in fewer than 1e-3 of cases (heavy tails included): of
    200 rows of 3 columns the expected number is below 0.6; three are allowed (false alarm 0.3 %)."""
    rng = np.random.default_rng(1)

    def draw(n):
        return np.stack([rng.normal(size=n), rng.standard_cauchy(n), np.exp(3 * rng.normal(size=n))], axis=1)

    observations = Observations().fit(draw(N))
    assert sum(bool(observations.reasons(row[None])) for row in draw(200)) <= 3
    assert "x_o lies outside the range of the simulations in x[0]" in observations.reasons(np.array([[9.0, 1.0, 1.0]]))[0]
    assert "x[2]" in observations.reasons(np.array([[0.0, 1.0, -1.0]]))[0]


def test_shapes_and_names():
    x = RNG.normal(size=(50, 2, 3))
    observations = Observations().fit(x)
    assert observations.transform(x).shape == (50, 6)
    assert observations.rows_of(x[0])[1] and not observations.rows_of(x[:4])[1]
    odd = x[:1].copy()
    odd[0, 1, 2] = 99
    assert "x[1, 2]" in observations.reasons(odd)[0]
    named = Observations().fit(x[:, 0], names=["u", "v", "w"])
    assert "'v'" in named.reasons(np.array([[0.0, 50.0, 0.0]]))[0]


def test_plain_data_give_the_same_again():
    x = np.column_stack([COLUMNS["Cauchy"][0], COLUMNS["log-normal"][0], np.ones(N)])
    x[::5, 0] = np.nan
    observations = Observations().fit(x)
    again = Observations.from_data(json.loads(json.dumps(observations.to_data())))
    np.testing.assert_array_equal(again.transform(x), observations.transform(x))
    assert again.notes == observations.notes and again.event_shape == (3,)


def test_a_constant_that_is_missing_at_times_tells_by_its_mask():
    x = np.column_stack([RNG.normal(size=N), np.where(RNG.random(N) < 0.5, 1.0, np.nan)])
    observations = Observations().fit(x)
    np.testing.assert_array_equal(observations.transform(x)[:, 1], np.isnan(x[:, 1]))
    assert "x[1] the same in all simulations that have it; whether they do is used" in observations.notes[0]
    assert not observations.reasons(x[:10]) and "x[1]" in observations.reasons(np.array([[0.0, 2.0]]))[0]
    only = Observations().fit(x[:, 1:])
    np.testing.assert_array_equal(only.transform(x[:, 1:]), np.isnan(x[:, 1:]))


def test_an_observation_that_misses_more_than_any_simulation_is_told():
    x = np.random.default_rng(5).normal(size=(N, 6))
    x[np.arange(N) % 2 == 0, 1] = np.nan
    x[np.arange(N) % 3 == 0, 4] = np.nan
    observations = Observations().fit(x)
    again = Observations.from_data(json.loads(json.dumps(observations.to_data())))
    both, nothing = x[:1].copy(), np.full((1, 6), np.nan)
    for each in (observations, again):
        assert not each.reasons(both)
        assert "x_o misses 6 of its 6 values where no simulation missed more than 2" in each.reasons(nothing)[0]


@pytest.mark.parametrize("keep_layout", [False, True])
def test_a_column_that_no_simulation_has(keep_layout):
    x = np.column_stack([RNG.normal(size=N), np.full(N, np.nan)])
    observations = Observations(keep_layout).fit(x)
    again = Observations.from_data(json.loads(json.dumps(observations.to_data())))
    for each in (observations, again):
        rows, single = each.rows_of(x[0], "x_o")
        assert single and not each.reasons(rows)
        assert each.reasons(np.array([[0.0, 3.0]]))[0].startswith("x_o lies outside the range of the simulations in x[1]")
        np.testing.assert_array_equal(each.transform(np.array([[0.5, 3.0]])), each.transform(np.array([[0.5, np.nan]])))
    assert observations.transform(x).shape == (N, 1 + keep_layout)


def test_masked_values_are_missing_and_no_rows_are_refused():
    x = np.ma.masked_greater(RNG.normal(size=(N, 2)), 1.5)
    observations = Observations().fit(x.filled(np.nan))
    rows, _ = observations.rows_of(x, "x_o")
    np.testing.assert_array_equal(rows, x.filled(np.nan))
    counts = np.ma.MaskedArray([[1, 2]], mask=[[False, True]])
    np.testing.assert_array_equal(observations.rows_of(counts)[0], [[1.0, np.nan]])
    with pytest.raises(ValueError, match=r"at least one observation in x_o; got none, an array of shape \(0, 2\)"):
        observations.rows_of(np.zeros((0, 2)), "x_o")


@pytest.mark.parametrize(("noise", "mapped"), [("normal", False), ("standard_cauchy", True)])
def test_parameters_from_rounds_do_not_bend_what_is_straight_given_them(noise, mapped):
    """A peak on a plateau, as the prior and a small part of it make: mapped by its marginal, left alone by what it is given theta."""
    rng = np.random.default_rng(0)
    theta = np.concatenate([rng.uniform(-1, 1, (400, 1)), rng.uniform(0.28, 0.32, (400, 1))])
    x = theta + 0.02 * getattr(rng, noise)(size=theta.shape)
    x[::7] = np.nan
    assert Observations().fit(x).first_maps()[0] == ASINH
    assert (Observations().fit(x, given=theta).first_maps()[0] == ASINH) == mapped


@pytest.mark.parametrize("n", [2000, 20_000])
def test_places_that_share_a_map_are_all_looked_at(n):
    """However many simulations there are: maps chosen from the first of two objects alone took the second's constant to 1e17."""
    x = np.empty((n, 2, 2))
    x[:, 0, 0], x[:, 1, 0] = 0.3, 0.7
    x[..., 1] = np.random.default_rng(0).normal([0.0, 50.0], size=(n, 2))
    rows = Observations(shared=[0]).fit(x).transform(x).reshape(n, 2, 2)
    assert np.abs(rows).max() < 10
    np.testing.assert_allclose(rows[:, 0].mean(0) + rows[:, 1].mean(0), 0.0, atol=0.05)
