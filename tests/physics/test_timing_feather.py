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
