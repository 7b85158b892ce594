"""Feather files of times of arrival: statistics against dense matrices, and what is missing is named."""

import json

import numpy as np
import pytest

from sbi_flows.physics.pta import timing_likelihood
from sbi_flows.physics.pta.timing_feather import read_feathers

pyarrow = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")

NOISE = {"A_x_efac": 1.2, "A_x_log10_t2equad": -6.3, "A_x_log10_ecorr": -6.1, "A_y_efac": 0.9, "A_y_log10_tnequad": -6.5}
POSITIONS = {"A": [0.6, 0.0, 0.8], "B": [0.0, 1.0, 0.0]}


def pulsar(name, seed, n=120, start=4.6e9):
    """Epochs of four times of arrival within half a second, of two backends in turn, and a timing model with a column twice."""
    rng = np.random.default_rng(seed)
    epochs = np.sort(rng.uniform(0, 3e8, n // 4))
    times = start + np.repeat(epochs, 4) + 0.1 * np.tile(np.arange(4), n // 4)
    x = (times - times.mean()) / 1e8
    columns = {
        "toas": times,
        "toaerrs": rng.uniform(2e-7, 1e-6, n),
        "residuals": 1e-6 * rng.normal(size=n),
        "backend_flags": np.repeat(np.where(np.arange(n // 4) % 2, "x", "y"), 4),
    }
    columns |= {f"Mmat_{i}": column for i, column in enumerate([np.ones(n), 1e5 * x, x**2, 2 * x**2, np.zeros(n)])}
    return columns, {"name": name, "pos": POSITIONS[name]}


def written(path, columns, facts):
    table = pyarrow.table({name: pyarrow.array(list(values)) for name, values in columns.items()})
    feather.write_feather(table.replace_schema_metadata({"json": json.dumps(facts)}), str(path))
    return path


def test_statistics_are_those_of_the_dense_matrices(tmp_path):
    columns, facts = pulsar("A", 0)
    array = read_feathers([written(tmp_path / "A.feather", columns, facts)], noise=NOISE, n_frequencies=5)
    x, errors = columns["backend_flags"] == "x", columns["toaerrs"]
    variance = np.where(x, 1.2**2 * (errors**2 + 10**-12.6), 0.9**2 * errors**2 + 10**-13.0)
    epoch = np.repeat(np.arange(len(errors) // 4), 4)
    dense = np.diag(variance) + 10**-12.2 * ((epoch[:, None] == epoch) & x[:, None] & x)
    inverse = np.linalg.inv(dense)
    model = np.stack([columns[f"Mmat_{i}"] for i in range(3)], axis=1) / [1.0, 1e5, 1.0]
    marginal = inverse - inverse @ model @ np.linalg.solve(model.T @ inverse @ model, model.T @ inverse)
    times = columns["toas"] - columns["toas"].min()
    assert array.span == times.max()
    phase = 2 * np.pi * times[:, None] * np.arange(1, 6) / times.max()
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=-1).reshape(len(times), -1)
    expected = basis.T @ marginal @ basis
    np.testing.assert_allclose(array.tnt[0], expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    expected = basis.T @ marginal @ columns["residuals"]
    np.testing.assert_allclose(array.tnr[0], expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_all_pulsars_have_one_origin_of_time_and_the_order_of_rows_does_not_matter(tmp_path):
    a, b = pulsar("A", 0), pulsar("B", 1, start=4.55e9)
    paths = [written(tmp_path / f"{facts['name']}.feather", columns, facts) for columns, facts in (a, b)]
    both = read_feathers(paths, noise={}, n_frequencies=6)
    assert both.names == ("A", "B") and both.span > 3e8
    shuffled = np.random.default_rng(0).permutation(120)
    mixed = written(tmp_path / "mixed.feather", {name: np.asarray(column)[shuffled] for name, column in a[0].items()}, a[1])
    again = read_feathers([mixed, paths[1]], noise={}, n_frequencies=6)
    np.testing.assert_allclose(again.tnt, both.tnt, rtol=1e-6, atol=1e-8 * both.tnt.max())
    alone = read_feathers(paths[:1], noise={}, n_frequencies=6)
    assert abs(alone.tnt[0] - both.tnt[0]).max() > 0.1 * both.tnt.max(), "another span and another origin"
    assert np.isfinite(timing_likelihood(both, n_bins=4).log_likelihood(timing_likelihood(both, n_bins=4).prior.sample(3)).numpy()).all()


def test_the_noise_of_the_file_is_used(tmp_path):
    columns, facts = pulsar("A", 0)
    inside = read_feathers([written(tmp_path / "a.feather", columns, {**facts, "noisedict": NOISE})])
    given = read_feathers([written(tmp_path / "b.feather", columns, facts)], noise=NOISE)
    np.testing.assert_array_equal(inside.tnt, given.tnt)


def test_an_empty_noisedict_of_a_file_is_none(tmp_path):
    """Only the user may say that there is no noise beyond the errors."""
    columns, facts = pulsar("A", 0)
    path = written(tmp_path / "A.feather", columns, {**facts, "noisedict": {}})
    with pytest.raises(ValueError, match=r"no noisedict, or an empty one.*noise=\{\}"):
        read_feathers([path])
    assert read_feathers([path], noise={}).names == ("A",)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("A_x_log10_equad", -6.0, "A_x_log10_equad, which would be left out.*log10_tnequad if it is added after EFAC"),
        ("A_x_t2equad", 1e-6, "got A_x_t2equad"),
        ("A_x_log10_t2quad", -6.0, "got A_x_log10_t2quad"),
        ("A_X_log10_ecorr", -6.5, "got A_X_log10_ecorr"),
        ("A_x_efac", "2", "A_x_efac in noise to be a number above 0; got '2'"),
        ("A_x_efac", float("nan"), "A_x_efac in noise to be a number above 0; got nan"),
        ("A_x_log10_ecorr", 1e-6, "A_x_log10_ecorr in noise to be log10 of seconds"),
    ],
)
def test_no_noise_is_dropped_without_a_word(tmp_path, key, value, message):
    columns, facts = pulsar("A", 0)
    with pytest.raises(ValueError, match=message):
        read_feathers([written(tmp_path / "A.feather", columns, facts)], noise={**NOISE, key: value})


def test_noise_that_does_not_enter_is_told_and_own_red_noise_is_expected(tmp_path):
    columns, facts = pulsar("A", 0)
    path = written(tmp_path / "A.feather", columns, facts)
    plain = read_feathers([path], noise={**NOISE, "A_red_noise_log10_A": -13.0, "A_rednoise_gamma": 3.0, "B_z_log10_equad": -6.0})
    with pytest.warns(UserWarning, match="3 entries of the noise do not enter .A_dm_gp_gamma, A_z_efac, A_z_log10_ecorr"):
        more = read_feathers([path], noise={**NOISE, "A_dm_gp_gamma": 2.0, "A_z_efac": 1.0, "A_z_log10_ecorr": -6.0})
    np.testing.assert_array_equal(plain.tnt, more.tnt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"toas": c["toas"] / 86400}, r"toas in seconds.*A\.feather span .*MJD"),
        (lambda c: {"toas": c["toas"] * 1e3}, "toas in seconds"),
        (lambda c: {"toaerrs": c["toaerrs"] * 1e7}, "toaerrs in seconds.*microseconds"),
        (lambda c: {"Mmat_1": None}, "lacks the columns Mmat_1"),
        (lambda c: {"Mmat_fd": np.ones(120)}, "lacks the columns Mmat_5.*It has Mmat_fd"),
        (lambda c: {name: column[:0] for name, column in c.items()}, "has no rows"),
    ],
)
def test_units_and_columns_are_looked_at(tmp_path, change, message):
    columns, facts = pulsar("A", 0)
    changed = {name: column for name, column in {**columns, **change(columns)}.items() if column is not None}
    with pytest.raises(ValueError, match=message):
        read_feathers([written(tmp_path / "A.feather", changed, facts)], noise={})


def test_metadata_that_are_none(tmp_path):
    columns, facts = pulsar("A", 0)
    path = written(tmp_path / "A.feather", columns, facts)
    table = feather.read_table(path)
    feather.write_feather(table.replace_schema_metadata({"json": "{bad"}), str(path))
    with pytest.raises(ValueError, match=r"Expected JSON in the metadata of A\.feather"):
        read_feathers([path], noise={})
    with pytest.raises(ValueError, match=r"pos in the metadata of A\.feather to be three numbers"):
        read_feathers([written(path, columns, {**facts, "pos": [1, 0]})], noise={})
    with pytest.raises(ValueError, match="Pass it in a list"):
        read_feathers(str(path))


def test_what_is_missing_is_named(tmp_path):
    columns, facts = pulsar("A", 0)
    path = written(tmp_path / "A.feather", columns, facts)
    with pytest.raises(ValueError, match=r"no noisedict.*A_y_efac.*noise=\{\}"):
        read_feathers([path])
    with pytest.raises(ValueError, match="Expected A_y_efac in noise"):
        read_feathers([path], noise={"A_x_efac": 1.0})
    with pytest.raises(ValueError, match=r"lacks the columns toaerrs, Mmat_0 and pos in its metadata"):
        kept = {name: column for name, column in columns.items() if name != "toaerrs" and not name.startswith("Mmat")}
        read_feathers([written(tmp_path / "less.feather", kept, {"name": "A"})], noise={})
    with pytest.raises(ValueError, match="errors above 0"):
        read_feathers([written(tmp_path / "zero.feather", {**columns, "toaerrs": np.zeros(120)}, facts)], noise={})
    (tmp_path / "text.feather").write_text("no feather")
    with pytest.raises(ValueError, match=r"text\.feather cannot be read"):
        read_feathers([tmp_path / "text.feather"])
    with pytest.raises(ValueError, match="there is no"):
        read_feathers([tmp_path / "absent.feather"])
    with pytest.raises(ValueError, match="got none"):
        read_feathers([])
