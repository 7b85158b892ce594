"""The Gaussian likelihood of pulsar timing: against dense algebra, published anchors, its own simulator, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sbi_flows import datasets
from sbi_flows.physics.pta import DEFAULT_MODELS, PulsarArray, correlation_matrix, ng15_pulsars, synthetic_pulsars, timing_likelihood
from sbi_flows.physics.pta.timing_arrays import TEN
from sbi_flows.physics.pta.timing_correlations import CORRELATIONS

FILES = [name for name in datasets.names() if name.startswith("ng15_timing/")]
needs_data = pytest.mark.skipif(
    any(datasets.where(name) is None for name in FILES), reason="the files ng15_timing of the registry are not on this machine"
)


def rows(target, n=6, seed=0):
    return target.prior.sample(n, torch.Generator().manual_seed(seed)).double()


def small(n_pulsars=3, n_frequencies=6, seed=0):
    return synthetic_pulsars(n_pulsars, n_times=80, n_frequencies=n_frequencies, random_state=seed)


def dense(target, theta):
    """The formula as it is written: phi inverted, one matrix of all coefficients, in units of 1e-7 s."""
    array, p, m2 = target.array, target.n_pulsars, 2 * target.array.n_frequencies
    gamma = correlation_matrix(target.correlation, array.positions)
    own = 10 ** (2 * target.own_log10_rho(theta[None])[0].numpy() + 14)
    shared = 10 ** (2 * target.log10_rho(theta[None])[0].numpy() + 14)
    phi = np.zeros((p, m2, p, m2))
    for k in range(m2):
        phi[range(p), k, range(p), k] += own[:, k // 2]
        if k < 2 * target.n_bins:
            phi[:, k, :, k] += gamma * shared[k // 2]
    phi = phi.reshape(p * m2, -1)
    tnt = np.zeros((p, m2, p, m2))
    tnt[range(p), :, range(p), :] = array.tnt * 1e-14
    b = (array.tnr * 1e-7).ravel()
    s = tnt.reshape(p * m2, -1) + np.linalg.inv(phi)
    return 0.5 * (b @ np.linalg.solve(s, b) - np.linalg.slogdet(s)[1] - np.linalg.slogdet(phi)[1])


# --- The likelihood ---------------------------------------------------------------------------------------------------------------


@needs_data
def test_anchors():
    """Reference values computed by two independent codes, to the digits they have."""
    own = [-15.5, 3.0] * 10
    theta = torch.tensor([[-14.2, 3.2, *own], [-18.0, 3.2, *own]], dtype=torch.float64)
    hd, silent = timing_likelihood(correlation="hd").log_likelihood(theta).tolist()
    assert hd == pytest.approx(923.6377, abs=1e-3)
    assert silent == pytest.approx(202.7802, abs=1e-3)
    assert timing_likelihood(correlation="uncorrelated").log_likelihood(theta)[0].item() == pytest.approx(920.5590, abs=1e-3)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_likelihood_is_the_dense_formula(correlation):
    array = small()
    target = timing_likelihood(array, correlation, n_bins=4)
    theta = rows(target)
    theta[:, 0] = torch.linspace(-15, -13, len(theta))
    theta[:, 2::2] = theta[:, 2::2].clamp(-16, -12.5)  # where the inverse of phi is a number
    expected = [dense(target, row) for row in theta]
    np.testing.assert_allclose(target.log_likelihood(theta).numpy(), expected, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("model", DEFAULT_MODELS)
def test_every_source_has_a_likelihood_and_its_gradient(model):
    target = timing_likelihood(synthetic_pulsars(2, random_state=1), "hd", model)
    theta = rows(target, 4)
    values, gradient = target.log_prob_and_grad(theta)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_gradient_is_that_of_differences(correlation):
    target = timing_likelihood(small(), correlation, n_bins=4)
    theta = rows(target, 3)
    theta[:, 0] = torch.tensor([-13.0, -14.0, -15.0])
    _, gradient = target.log_prob_and_grad(theta)
    step = 1e-5
    for j in range(target.features):
        shift = step * torch.eye(target.features, dtype=torch.float64)[j]
        difference = (target.log_likelihood(theta + shift) - target.log_likelihood(theta - shift)) / (2 * step)
        torch.testing.assert_close(gradient[:, j], difference, rtol=1e-5, atol=1e-5)


def test_pulsars_apart_add_up():
    target = timing_likelihood(small(), "uncorrelated", n_bins=4)
    theta = rows(target, 40)
    apart = target.log_likelihood_apart(theta)
    assert apart.shape == (40, 3)
    torch.testing.assert_close(apart.sum(1), target.log_likelihood(theta), rtol=1e-12, atol=1e-9)
    # What a pulsar says by itself does not depend on the others' noise.
    theta[:, 4:] = rows(target, 40, seed=1)[:, 4:]
    torch.testing.assert_close(target.log_likelihood_apart(theta)[:, 0], apart[:, 0], rtol=1e-12, atol=1e-9)


def test_background_in_every_bin():
    """No noise is left above the background's bins."""
    target = timing_likelihood(small(2, 4), n_bins=4)
    theta = torch.tensor([[-13.5, 3.0, -14.0, 3.0, -13.5, 2.0]], dtype=torch.float64)
    assert target.log_likelihood(theta).item() == pytest.approx(dense(target, theta[0]), rel=1e-9)
    assert torch.isfinite(target.log_prob_and_grad(theta)[1]).all()


def test_gradients_on_threads_are_those_of_one():
    target = timing_likelihood(small(), n_bins=4)
    theta = rows(target, 3000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        both = target.log_prob_and_grad(theta)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(both, target.log_prob_and_grad(theta), rtol=0, atol=0)


def test_rows_do_not_depend_on_their_neighbours():
    target = timing_likelihood(small(), n_bins=4)
    theta = rows(target, 40)
    alone = torch.cat([target.log_likelihood(row[None]) for row in theta])
    torch.testing.assert_close(target.log_likelihood(theta), alone, rtol=1e-12, atol=1e-9)


def test_corners_of_the_prior_are_numbers():
    """The loudest noise everywhere, whose covariance spans thirty decades, and none at all."""
    target = timing_likelihood(small(4), n_bins=6)
    low, high = [-18.0, 0.0] + [-20.0, 0.0] * 4, [-11.0, 7.0] + [-11.0, 7.0] * 4
    values = target.log_likelihood(torch.tensor([low, high], dtype=torch.float64))
    assert torch.isfinite(values).all()
    assert abs(float(values[0])) < 1e-3  # no signal: the likelihood is that of noise alone, which counts as zero
    assert float(values[1]) < -100


def test_a_silent_background_is_no_background():
    """Scalar-induced waves beyond twice their peak are exactly zero."""
    array = synthetic_pulsars(3, random_state=0)
    own = [-14.0, 3.0] * 3
    silent = timing_likelihood(array, "hd", "sigw_delta").log_likelihood(torch.tensor([[-11.0, 1.0, *own]], dtype=torch.float64))
    faint = timing_likelihood(array, "hd").log_likelihood(torch.tensor([[-30.0, 0.0, *own]], dtype=torch.float64))
    torch.testing.assert_close(silent, faint, rtol=0, atol=1e-6)


def test_a_background_that_overflows_is_impossible():
    target = timing_likelihood(synthetic_pulsars(2, random_state=0), "hd", "igw")
    theta = torch.tensor([[6.0, 0.0, 3.0, *[-14.0, 3.0] * 2], [2.0, -10.0, 0.0, *[-14.0, 3.0] * 2]], dtype=torch.float64)
    theta[0, 0] = 60.0
    values = target.log_likelihood(theta)
    assert values[0] == -math.inf
    assert torch.isfinite(values[1])
    with pytest.raises(ValueError, match=r"background below 1e9 s"):
        target.simulate(theta)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_own_noise_that_overflows_is_impossible_and_none_at_all_is_the_data_without_signal(correlation):
    target = timing_likelihood(small(3), correlation, n_bins=6)
    theta = torch.tensor([[-14.0, 3.0, 500.0, 3.0, *[-14.0, 3.0] * 2], [-400.0, 3.0] * 4, [-14.0, 3.0] * 4], dtype=torch.float64)
    for values in (target.log_likelihood(theta), target.log_likelihood_apart(theta).sum(1)):
        assert values[0] == -math.inf and abs(float(values[1])) < 1e-9 and torch.isfinite(values[2])
    with pytest.raises(ValueError, match=r"own noise of every pulsar below 1e9 s"):
        target.simulate(theta)
    theta[2, 3] = math.nan
    for function in (target.log_likelihood, target.log_likelihood_apart, target.simulate, target.chi_squared):
        with pytest.raises(ValueError, match="NaN in 1 rows, first in row 2: S0000_gamma"):
            function(theta)


def test_correlations_are_those_of_the_sky():
    positions = np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0]])
    hd = correlation_matrix("hd", positions)
    assert hd[0, 1] == pytest.approx(0.75 * math.log(0.5) - 0.125 + 0.5)
    assert hd[0, 2] == pytest.approx(0.25)
    np.testing.assert_allclose(correlation_matrix("dipole", positions)[0], [1, 0, -1], atol=1e-15)
    np.testing.assert_array_equal(correlation_matrix("monopole", positions), np.ones((3, 3)))
    np.testing.assert_array_equal(correlation_matrix("uncorrelated", positions), np.eye(3))


@needs_data
def test_the_whole_array_fits():
    target = timing_likelihood("all")
    theta = torch.tensor([[-14.2, 3.2, *[-15.5, 3.0] * 67]], dtype=torch.float64)
    assert target.n_pulsars == 67
    assert torch.isfinite(target.log_likelihood(theta)).all()


# --- The simulator ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_simulated_skies_have_the_covariance_of_the_model(correlation):
    """Whitened by the model's covariance, skies are standard normal: false alarm below 1e-4 for all four together."""
    array = small(3, 4)
    target = timing_likelihood(array, correlation, n_bins=3)
    theta = torch.tensor([-13.5, 4.0, *[-13.5, 3.0] * 3], dtype=torch.float64)
    skies = target.simulate(theta.expand(2000, -1), torch.Generator().manual_seed(1)).numpy() * 1e-7
    own = 10 ** (2 * target.own_log10_rho(theta[None])[0].numpy() + 14)
    shared = 10 ** (2 * target.log10_rho(theta[None])[0].numpy() + 14)
    gamma, tnt = correlation_matrix(correlation, array.positions), array.tnt * 1e-14
    covariance = np.zeros((3, 8, 3, 8))
    for i in range(3):
        covariance[i, :, i] = tnt[i]
        for j in range(3):
            phi = np.zeros(8)
            phi[:6] = gamma[i, j] * np.repeat(shared, 2)
            phi += (i == j) * np.repeat(own[i], 2)
            covariance[i, :, j] += tnt[i] @ np.diag(phi) @ tnt[j]
    white = np.linalg.solve(np.linalg.cholesky(covariance.reshape(24, 24)), skies.reshape(2000, 24).T)
    products = white @ white.T / 2000
    limit = stats.norm.isf(1e-5 / (24 * 25))
    assert np.abs(products - np.eye(24)).max() < limit * math.sqrt(2 / 2000)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_chi_squared_of_true_skies(correlation):
    """Its mean over 200 skies is its count, within 4 standard errors: false alarm 6e-5 each."""
    target = timing_likelihood(small(), correlation, n_bins=4)
    theta = torch.tensor([-13.5, 4.0, *[-13.5, 3.0] * 3], dtype=torch.float64)
    skies = target.simulate(theta.expand(200, -1), torch.Generator().manual_seed(0)).numpy()
    found = [target.with_data(sky).chi_squared(theta[None]) for sky in skies]
    values, count = np.array([float(value) for value, _ in found]), found[0][1]
    assert abs(values.mean() - count) < 4 * math.sqrt(2 * count / 200)
    rows = theta + torch.linspace(0, 0.5, 19, dtype=torch.float64)[:, None]
    together, _ = target.chi_squared(rows)
    np.testing.assert_allclose(together, [float(target.chi_squared(row[None])[0]) for row in rows], rtol=1e-10)


@pytest.mark.parametrize("parameter", [0, 1, 2])
def test_simulator_and_likelihood_agree(parameter):
    """Ranks of one parameter, the others known, under its exact posterior on a grid: uniform over 500 skies; false alarm 3e-4 in all."""
    target = timing_likelihood(small(2, 4), n_bins=3)
    generator = torch.Generator().manual_seed(parameter)
    low, high = torch.tensor(target.support[parameter], dtype=torch.float64)
    truth = torch.tensor([-13.5, 3.0, -14.0, 3.0, -14.0, 3.0], dtype=torch.float64).repeat(500, 1)
    truth[:, parameter] = low + (high - low) * torch.rand(500, generator=generator, dtype=torch.float64)
    skies = target.simulate(truth, generator)
    n_grid = 64
    grid = low + (high - low) * (torch.arange(n_grid) + 0.5) / n_grid
    points = truth.repeat_interleave(n_grid, 0)
    points[:, parameter] = grid.repeat(500)
    log_like = target.log_likelihood_of(points, skies.repeat_interleave(n_grid, 0)).reshape(500, n_grid)
    weights = torch.softmax(log_like, 1)
    ends = torch.cat([torch.zeros(500, 1), weights.cumsum(1)], 1)
    position = ((truth[:, parameter] - low) / (high - low) * n_grid).clamp(max=n_grid - 1e-9)
    cell = position.long()[:, None]
    rank = ends.gather(1, cell)[:, 0] + (position - position.floor()) * weights.gather(1, cell)[:, 0]
    assert stats.kstest(rank.numpy(), "uniform").pvalue > 1e-4


def test_other_data_in_one_call_are_those_data():
    target = timing_likelihood(small(), n_bins=4)
    theta = rows(target, 3)
    skies = target.simulate(theta, torch.Generator().manual_seed(0))
    together = target.log_likelihood_of(theta, skies)
    each = torch.cat([target.with_data(sky.numpy()).log_likelihood(row[None]) for row, sky in zip(theta, skies, strict=True)])
    torch.testing.assert_close(together, each, rtol=1e-12, atol=1e-9)


# --- Arrays and bad input -----------------------------------------------------------------------------------------------------------


@needs_data
def test_the_ten_are_where_they_should_be():
    whole = ng15_pulsars("all")
    assert [whole.names.index(name) for name in TEN] == [4, 12, 26, 37, 47, 48, 50, 52, 57, 65]
    assert ng15_pulsars([4, "J2317+1439"]).names == ("J0030+0451", "J2317+1439")


def test_missing_data_name_the_entry_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SBI_FLOWS_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path / "cache")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(datasets.pooch, "retrieve", offline)
    from sbi_flows.physics.pta import timing_arrays

    timing_arrays._ng15.cache_clear()
    with pytest.raises(ConnectionError, match=r"ng15_timing/.*SBI_FLOWS_DATA"):
        timing_likelihood()


def test_an_unknown_pulsar_is_answered_by_the_nearest():
    array = PulsarArray(("J1909-3744", "J1713+0747"), np.eye(3)[:2], 1e8, np.eye(4)[None].repeat(2, 0), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"Unknown pulsar 'J1909-3747'. Did you mean J1909-3744\?"):
        array.subset(["J1909-3747"])
    with pytest.raises(ValueError, match=r"Did you mean J1713\+0747\?"):
        array.subset(["1713"])
    with pytest.raises(ValueError, match=r"number of a pulsar from 0 to 1; got 7"):
        array.subset([7])
    with pytest.raises(ValueError, match=r"one or more different pulsars"):
        array.subset([0, "J1909-3744"])


def test_tnt_with_negative_eigenvalues_is_refused():
    array = small(1)
    broken = array.tnt.copy()
    values, vectors = np.linalg.eigh(broken[0])
    for relative, wrong in ((-1e-12, False), (-1e-8, True)):
        values[0] = relative * values[-1]
        matrix = (vectors * values) @ vectors.T
        broken[0] = (matrix + matrix.T) / 2
        if not wrong:
            PulsarArray(array.names, array.positions, array.span, broken, array.tnr)
            continue
        with pytest.raises(ValueError, match=r"TNT of pulsar S0000 to have no negative eigenvalue beyond rounding"):
            PulsarArray(array.names, array.positions, array.span, broken, array.tnr)


def test_bad_arrays_and_settings_teach():
    array = small(2)
    with pytest.raises(ValueError, match=r"positions \(p, 3\)"):
        PulsarArray(array.names, array.positions[:1], array.span, array.tnt, array.tnr)
    with pytest.raises(ValueError, match=r"directions of length 1; that of S0001"):
        PulsarArray(array.names, array.positions * [[1], [2]], array.span, array.tnt, array.tnr)
    with pytest.raises(ValueError, match=r"finite statistics"):
        array.with_data(array.tnr * np.nan)
    with pytest.raises(ValueError, match=r"n_bins from 1 to 6"):
        timing_likelihood(array, n_bins=7)
    for n_bins in (1.5, True):
        with pytest.raises(ValueError, match="n_bins to be a whole number"):
            timing_likelihood(array, n_bins=n_bins)
    with pytest.raises(ValueError, match="correlation"):
        timing_likelihood(array, "quadrupole", n_bins=3)
    with pytest.raises(ValueError, match=r"Did you mean 'power_law'"):
        timing_likelihood(array, spectrum="powerlaw", n_bins=3)
