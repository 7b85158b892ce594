"""Tables of spectra: reading, interpolation, other frequencies, damage."""

import h5py
import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from sbi_flows.physics.pta import DEFAULT_MODELS, SpectrumTable, embedded_free_spectrum
from sbi_flows.physics.pta.models import MODELS


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.h5"
    with h5py.File(path, "w") as file:
        file["parameter_names"] = np.array(["a", "b", "f"], dtype=object)
        file["a"], file["b"], file["f"] = [-2.0, 0.5], [1.0, 0.1], [-9.0, 0.25]
        file["spectrum"] = np.random.default_rng(0).normal(size=(5, 7, 9))
    return path


def test_interpolation_is_multilinear_and_axes_are_start_and_step(table):
    frequencies = np.array([1.3e-9, 2e-9, 9e-8])
    read = SpectrumTable.from_hdf5(table)
    rng = np.random.default_rng(1)
    theta = np.stack([rng.uniform(-2, 0, 50), rng.uniform(1, 1.6, 50)], axis=1)
    axes = [-2 + 0.5 * np.arange(5), 1 + 0.1 * np.arange(7), -9 + 0.25 * np.arange(9)]
    exact = RegularGridInterpolator(axes, read.values)
    expected = np.stack([exact(np.column_stack([theta, np.full(50, f)])) for f in np.log10(frequencies)], axis=1)
    np.testing.assert_allclose(read.at(frequencies)(torch.from_numpy(theta)).numpy(), expected, atol=1e-12)


def test_beyond_the_parameter_axes_it_is_constant(table):
    spectrum = SpectrumTable.from_hdf5(table).at(np.array([2e-9]))
    inside, outside = torch.tensor([[0.0, 1.6]]).double(), torch.tensor([[3.0, 9.0]]).double()
    torch.testing.assert_close(spectrum(outside), spectrum(inside))


def test_frequencies_outside_are_refused(table):
    with pytest.raises(ValueError, match="covers 1e-09 to 1e-07 Hz"):
        SpectrumTable.from_hdf5(table).at(np.array([2e-9, 2e-7]))


def test_damage_is_named(tmp_path, table):
    (tmp_path / "cut.h5").write_bytes(table.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cut\.h5 is not a table"):
        SpectrumTable.from_hdf5(tmp_path / "cut.h5")
    with h5py.File(table, "a") as file:
        del file["b"]
    with pytest.raises(ValueError, match=r"table\.h5 is not a table"):
        SpectrumTable.from_hdf5(table)


def test_the_full_tables_cover_the_data(full_data):
    frequencies = embedded_free_spectrum().frequencies
    for name in {MODELS[name].table for name in DEFAULT_MODELS} - {None}:
        table = SpectrumTable.from_hdf5(full_data / "sgwb_models" / f"{name}.h5")
        assert torch.isfinite(table.at(frequencies).values).all()
