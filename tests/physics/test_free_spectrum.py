"""The likelihood: interpolation, the grid's ends, reading a folder, bad folders."""

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator

from sbi_flows.physics.pta import FreeSpectrum, FreeSpectrumLikelihood, embedded_free_spectrum, pta_target


@pytest.fixture
def toy() -> FreeSpectrum:
    rng = np.random.default_rng(0)
    return FreeSpectrum.from_arrays([1e-9, 2e-9, 3e-9], np.linspace(-9, -5, 41), rng.normal(size=(1, 3, 41)))


def write(folder, spectrum, **changes):
    arrays = {"freqs": spectrum.frequencies, "log10rhogrid": spectrum.grid, "density": spectrum.log_density[None], **changes}
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_interpolation_is_the_monotone_cubic(toy):
    x = np.random.default_rng(1).uniform(-8.9, -5.1, size=(200, 3))
    expected = sum(PchipInterpolator(toy.grid, toy.log_density[k])(x[:, k]) for k in range(3))
    found = FreeSpectrumLikelihood(toy)(torch.from_numpy(x)).numpy()
    inner = ((x > -8.9) & (x < -5.1)).all(axis=1)  # scipy treats the two outermost cells differently
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-10)


def test_it_passes_through_the_grid_and_never_overshoots(toy):
    likelihood = FreeSpectrumLikelihood(toy)
    at_grid = likelihood(torch.from_numpy(np.stack([toy.grid] * 3, axis=1))).numpy()
    np.testing.assert_allclose(at_grid, toy.log_density.sum(axis=0), atol=1e-9)
    fine = np.linspace(-9, -5, 4001)
    values = np.stack([FreeSpectrumLikelihood(toy.first(1))(torch.from_numpy(fine[:, None])).numpy()])
    assert values.max() <= toy.log_density[0].max() + 1e-12
    assert values.min() >= toy.log_density[0].min() - 1e-12


def test_below_the_grid_the_first_value_above_minus_infinity(toy):
    likelihood = FreeSpectrumLikelihood(toy)
    below = likelihood(torch.full((1, 3), -30.0, dtype=torch.float64))
    assert float(below) == pytest.approx(toy.log_density[:, 0].sum())
    above = torch.tensor([[-6.0, -4.99, -6.0]], dtype=torch.float64)
    assert float(likelihood(above)) == -np.inf


def test_nan_stays_nan(toy):
    assert torch.isnan(FreeSpectrumLikelihood(toy)(torch.tensor([[-6.0, float("nan"), -6.0]], dtype=torch.float64))).all()


def test_a_folder_reads_back_with_any_number_of_bins_and_grid(tmp_path, toy):
    again = FreeSpectrum.from_folder(write(tmp_path / "toy", toy))
    np.testing.assert_array_equal(again.log_density, toy.log_density)
    assert again.span == pytest.approx(1e9)
    assert len(again.first(2).frequencies) == 2


def test_zeros_of_the_density_become_the_floor(toy):
    values = toy.log_density.copy()
    values[1, :5] = -np.inf
    read = FreeSpectrum.from_arrays(toy.frequencies, toy.grid, values)
    assert read.log_density[1, 0] == toy.log_density[values > -np.inf].min()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": np.zeros((1, 3, 40))}, r"got \(3,\), \(41,\) and \(1, 3, 40\)"),
        ({"density": np.zeros((3, 2, 41))}, r"and \(3, 2, 41\)"),
        ({"freqs": np.array([1e-9, 2e-9])}, r"Expected in .* frequencies"),
        ({"freqs": np.array([3e-9, 2e-9, 1e-9])}, "ascending frequencies"),
        ({"freqs": np.array([0.0, 2e-9, 3e-9])}, "positive, ascending"),
        ({"log10rhogrid": np.linspace(-9, -5, 41) ** 3}, "equally spaced"),
        ({"density": np.full((1, 3, 41), np.nan)}, r"bin\(s\) 1, 2, 3"),
        ({"density": np.full((1, 3, 41), -np.inf)}, "-inf"),
    ],
)
def test_a_wrong_folder_says_what_is_wrong(tmp_path, toy, changes, message):
    with pytest.raises(ValueError, match=message):
        FreeSpectrum.from_folder(write(tmp_path / "toy", toy, **changes))


def test_a_missing_or_damaged_file_is_named(tmp_path, toy):
    folder = write(tmp_path / "toy", toy)
    (folder / "freqs.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"freqs\.npy is not a readable"):
        FreeSpectrum.from_folder(folder)
    (folder / "freqs.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"freqs\.npy missing"):
        FreeSpectrum.from_folder(folder)


def test_too_many_bins_are_refused():
    with pytest.raises(ValueError, match="between 1 and 14 bins"):
        embedded_free_spectrum().first(15)


def test_posterior_outside_the_prior_is_minus_infinity():
    target = pta_target("domain_walls")
    inside = target.prior.sample(3000, None).numpy()
    outside = inside + np.array([0, 0, 5.0, 0])
    assert np.all(target.log_posterior(outside) == -np.inf)
    expected = target.log_likelihood(torch.from_numpy(inside)).numpy() + target.prior_log_prob(inside)
    np.testing.assert_allclose(target.log_posterior(inside), expected, rtol=1e-12)
    both = torch.from_numpy(np.concatenate([inside[:2], outside[:2]])).requires_grad_()
    values = target.log_prob(both)
    assert torch.isinf(values[2:]).all()
    assert torch.isfinite(torch.autograd.grad(values[:2].sum(), both)[0]).all()
