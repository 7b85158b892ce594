"""Distances, their likelihood against published anchors, evidences against quadrature, and bad input."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, optimize
from typer.testing import CliRunner

from sbi_flows import FlowSampler, datasets, load_chains
from sbi_flows.cli.app import app
from sbi_flows.physics.cosmology import (
    MODELS,
    BAOComparison,
    BAOData,
    ComovingIntegral,
    bao_target,
    compare_bao,
    expansion_rate,
    get_cosmology,
    grid_evidence,
)
from sbi_flows.physics.cosmology.distances import SPEED_OF_LIGHT
from sbi_flows.physics.cosmology.parameters import as_draws, best_fit, likeliest, moments
from sbi_flows.results import Chains, WeightedSamples
from sbi_flows.targets import check_gradient

FILES = [name for name in datasets.names() if name.startswith("desi_dr2_bao/")]
needs_data = pytest.mark.skipif(
    any(datasets.where(name) is None for name in FILES), reason="the files desi_dr2_bao of the registry are not on this machine"
)
# ln Z, smallest chi-squared: FACTS 9, computed there by other means.
ANCHORS = {"lcdm": (-7.347, 10.271), "wcdm": (-9.753, 9.041), "w0wacdm": (-8.978, 5.619)}


def made_up() -> BAOData:
    """Four kinds of row out of order of redshift, with correlated errors."""
    covariance = np.diag([0.04, 0.1, 0.02, 0.3])
    covariance[0, 1] = covariance[1, 0] = -0.02
    return BAOData([2.33, 2.33, 0.3, 0.7], ("DM_over_rs", "DH_over_rs", "DV_over_rs", "DM_over_rs"), [38.9, 8.6, 8.0, 17.3], covariance)


def rows(target, n=5, seed=0):
    return target.prior.sample(n, torch.Generator().manual_seed(seed)).double()


# --- Distances ----------------------------------------------------------------------------------------------------------------


def test_distances_against_adaptive_quadrature_over_the_whole_prior():
    z = np.array([0.295, 0.51, 0.706, 0.934, 1.321, 1.484, 2.33])
    low, high = MODELS["w0wacdm"].prior.low, MODELS["w0wacdm"].prior.high
    corners = torch.cartesian_prod(*(torch.stack([low[j], high[j]]) for j in (0, 2, 3)))
    omega_m, w0, wa = torch.cat([corners, rows(bao_target("w0wacdm", made_up()), 6)[:, [0, 2, 3]]]).unbind(1)
    rate, integral = ComovingIntegral(z)(omega_m, w0, wa)
    for i in range(len(omega_m)):
        om, a, b = (float(p[i]) for p in (omega_m, w0, wa))

        def e(x, om=om, a=a, b=b):
            return math.sqrt(om * (1 + x) ** 3 + (1 - om) * (1 + x) ** (3 * (1 + a + b)) * math.exp(-3 * b * x / (1 + x)))

        exact = [integrate.quad(lambda x: 1 / e(x), 0, end, epsabs=0, epsrel=1e-11, limit=200)[0] for end in z]
        np.testing.assert_allclose(integral[i], exact, rtol=1e-9)
        np.testing.assert_allclose(rate[i], [e(end) for end in z], rtol=1e-12)


def test_einstein_de_sitter_and_de_sitter():
    integral = ComovingIntegral([3.0, 1.0])
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    np.testing.assert_allclose(integral(one, -one, zero)[1][0], 2 * (1 - 1 / np.sqrt([4.0, 2.0])), rtol=1e-12)
    np.testing.assert_allclose(integral(zero, -one, zero)[1][0], [3.0, 1.0], rtol=1e-12)
    assert expansion_rate(zero, 0.3 * one, -one, one).item() == pytest.approx(1.0)


def test_rows_of_each_kind_and_the_likelihood_as_it_is_written():
    data = made_up()
    target = bao_target("w0wacdm", data)
    theta = torch.tensor([[0.3, 10000.0, -0.8, -0.5]], dtype=torch.float64)
    omega_m, h, w0, wa = theta.unbind(1)
    rate, integral = (value[0].numpy() for value in ComovingIntegral(data.redshifts)(omega_m, w0, wa))
    scale = SPEED_OF_LIGHT / h.item()
    across, along = scale * integral, scale / rate
    expected = [across[0], along[1], (data.redshifts[2] * across[2] ** 2 * along[2]) ** (1 / 3), across[3]]
    np.testing.assert_allclose(target.distances(theta)[0], expected, rtol=1e-12)
    off = np.array(expected) - data.values
    chi2 = off @ np.linalg.solve(data.covariance, off)
    assert target.chi2(theta).item() == pytest.approx(chi2, rel=1e-10)
    log_l = -0.5 * chi2 - 0.5 * np.linalg.slogdet(2 * np.pi * data.covariance)[1]
    assert target.log_likelihood(theta).item() == pytest.approx(log_l, rel=1e-10)
    assert target.log_prob(theta).item() == pytest.approx(log_l - math.log(0.98 * 1e4 * 4 * 5), rel=1e-10)


def test_models_are_nested_and_outside_the_prior_there_is_nothing():
    data = made_up()
    theta = rows(bao_target("lcdm", data))
    minus_one, zero = torch.full((5, 1), -1.0, dtype=torch.float64), torch.zeros((5, 1), dtype=torch.float64)
    chi2 = bao_target("lcdm", data).chi2(theta)
    torch.testing.assert_close(bao_target("wcdm", data).chi2(torch.cat([theta, minus_one], 1)), chi2)
    torch.testing.assert_close(bao_target("w0wacdm", data).chi2(torch.cat([theta, minus_one, zero], 1)), chi2)
    assert bao_target("lcdm", data).log_prob(torch.tensor([[1.2, 1e4], [0.3, 4000.0]])).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("model", MODELS)
def test_gradient(model):
    target = bao_target(model, made_up())
    check_gradient(target, rows(target), rtol=1e-5)


# --- The published data -------------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("model", MODELS)
def test_smallest_chi_squared(model):
    target = bao_target(model)
    scale = np.array([1.0, 1e4, 1.0, 1.0])[: target.features]

    def chi2(u):
        return float(target.chi2(torch.from_numpy(u * scale)[None]))

    start = np.array([0.3, 1.0, -0.8, -0.8])[: target.features]
    found = optimize.minimize(chi2, start, method="Nelder-Mead", options={"maxiter": 3000, "xatol": 1e-6, "fatol": 1e-8})
    assert found.fun == pytest.approx(ANCHORS[model][1], abs=1e-3)


@needs_data
@pytest.mark.parametrize(("model", "panels"), [("lcdm", None), ("wcdm", (60, 12)), ("w0wacdm", (12, 6, 6))])
def test_evidence_by_quadrature(model, panels):
    found = grid_evidence(bao_target(model), panels)
    assert found.log_z == pytest.approx(ANCHORS[model][0], abs=1e-3)
    if model == "lcdm":
        np.testing.assert_allclose(found.mean, [0.2978, 10152], rtol=1e-3)
        np.testing.assert_allclose(found.std, [0.0086, 74], rtol=1e-2)
        assert found.error < 1e-9


@needs_data
def test_sampler_and_chains_against_quadrature():
    """Two parameters: each ln Z within four of its errors (false alarm 1.3e-4 in all), and the errors are small."""
    result = compare_bao(["lcdm"], routes=("sampler", "chains", "grid"), n_effective=1000, random_state=3)
    exact = result.evidences["grid", "lcdm"].log_z
    for route in ("sampler", "chains"):
        found = result.evidences[route, "lcdm"]
        assert found.reliability.ok and abs(found.log_z - exact) < 4 * found.log_z_err < 0.1
    assert result.reliability.ok
    table = result.to_dataframe()
    assert list(table["log_bf"]) == [0.0] * 3 and (table["seconds"] > 0).all()
    # A thousand draws: means within 4.4 of their errors, sds within 6 of 2.2 % (false alarm below 1e-4 in all).
    exact_moments = result.moments["grid", "lcdm"]
    for route in ("sampler", "chains"):
        own = result.moments[route, "lcdm"]
        assert (abs(own.mean - exact_moments.mean) < 4.4 * exact_moments.std / np.sqrt(1000)).all()
        assert (abs(own.std / exact_moments.std - 1) < 0.13).all()


def test_grid_against_quadrature_of_the_density_itself():
    """The closed form along H0 r_d against two-dimensional quadrature of the target's own density."""
    target = bao_target("lcdm", made_up())
    nodes, weights = np.polynomial.legendre.leggauss(400)
    om, h = 0.5 + 0.49 * nodes, 10000 + 5000 * nodes
    points = torch.cartesian_prod(torch.from_numpy(om), torch.from_numpy(h))
    mass = (target.log_prob(points).exp().numpy().reshape(400, 400) * weights[:, None] * weights).sum() * 0.49 * 5000
    assert grid_evidence(target).log_z == pytest.approx(math.log(mass), abs=1e-6)


@pytest.mark.parametrize(("factor", "values"), [(1e4, None), (1e6, None), (1.0, [30.0, 7.0, 6.4, 13.0])])
def test_grid_where_the_ends_of_the_prior_cut_the_gaussian(factor, values):
    """Hermite nodes lost what fell between the last inside and the end: .02 nats at 1e4, all at 1e6, with an error of 1e-4."""
    good = made_up()
    target = bao_target("lcdm", BAOData(good.redshifts, good.kinds, good.values if values is None else values, factor * good.covariance))
    nodes, weights = np.polynomial.legendre.leggauss(300)
    points = torch.cartesian_prod(torch.from_numpy(0.5 + 0.49 * nodes), torch.from_numpy(10000 + 5000 * nodes))
    log_l = target.log_likelihood(points).numpy().reshape(300, 300) - np.log(4)
    mass = (np.exp(log_l - log_l.max()) * weights[:, None] * weights).sum()
    found = grid_evidence(target)
    assert found.log_z == pytest.approx(math.log(mass) + log_l.max(), abs=1e-6) and found.error < 1e-6


def test_a_grid_too_coarse_for_the_posterior_says_so():
    good = made_up()
    sharp = BAOData(good.redshifts, good.kinds, good.values, 1e-8 * good.covariance)
    found = compare_bao(["lcdm"], sharp, routes=("grid",)).evidences["grid", "lcdm"]
    assert not found.reliability.ok and "too coarse" in found.reliability.reasons[0]


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("model", ["wcdm", "w0wacdm"])
def test_smc_against_quadrature(model):
    """Within four errors (false alarm 6e-5 each), and these below a tenth."""
    found = compare_bao([model], routes=("smc",), random_state=1).evidences["smc", model]
    assert found.reliability.ok and abs(found.log_z - ANCHORS[model][0]) < 4 * found.log_z_err < 0.4


def test_routes_that_disagree_are_not_reliable():
    found = compare_bao(["lcdm"], made_up(), routes=("grid",))
    right = found.evidences["grid", "lcdm"]
    assert found.reliability.ok
    wrong = type(right)(right.log_z + 0.1, 0.02, "bridge", 1.0, 0.1, right.reliability, right.by_method)
    both = BAOComparison({("grid", "lcdm"): right, ("sampler", "lcdm"): wrong}, {("grid", "lcdm"): 1.0, ("sampler", "lcdm"): 1.0}, {})
    assert not both.reliability.ok and "5.0 joint errors" in both.reliability.reasons[0]


def test_table_is_written(tmp_path):
    path = compare_bao(["lcdm", "wcdm"], made_up(), routes=("grid",)).write(tmp_path / "new")
    assert path.read_text().startswith("route,model,log_z") and len(path.read_text().splitlines()) == 3


def test_the_target_goes_into_the_sampler_by_its_public_face():
    sampler = FlowSampler(target=bao_target("lcdm", made_up()), n_effective=200, method="local", random_state=0).fit()
    assert sampler.chains_.names == ("Omega_m", "H0_rd")


@needs_data
@pytest.mark.parametrize("model", MODELS)
def test_best_fit_from_afar(model):
    """From the middle of the prior and from near its corner, as from a draw."""
    target = bao_target(model)
    low, high = target.prior.low.numpy(), target.prior.high.numpy()
    found = best_fit(target, [low + 0.5 * (high - low), low + 0.9 * (high - low)])
    assert found.chi2 == pytest.approx(ANCHORS[model][1], abs=1e-3) and found.n_data == 13
    at = torch.tensor([list(found.parameters.values())], dtype=torch.float64)
    assert target.chi2(at).item() == pytest.approx(found.chi2, abs=1e-9)


def test_moments_and_files_of_draws_with_and_without_weights(tmp_path):
    """Draws of the prior, weighted by themselves or by their likelihood, against sums written out; files that read back."""
    target = bao_target("lcdm", made_up())
    theta = target.prior.sample(400, torch.Generator().manual_seed(0)).double()
    log_l = target.log_likelihood(theta).numpy()
    weighted = as_draws(WeightedSamples(theta.numpy(), log_l, target.names), target)
    weights = np.exp(log_l - log_l.max())
    mean = weights @ theta.numpy() / weights.sum()
    found = moments(weighted)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.std, np.sqrt(weights @ (theta.numpy() - mean) ** 2 / weights.sum()), rtol=1e-8)
    log_p = target.log_prob(theta).numpy().reshape(4, 100)
    plain = as_draws(Chains(theta.numpy().reshape(4, 100, 2), target.names, log_p), target)
    np.testing.assert_allclose(moments(plain).std, theta.numpy().std(axis=0), rtol=1e-10)
    np.testing.assert_array_equal(likeliest(plain), theta.numpy()[np.argmax(log_l)])
    np.testing.assert_array_equal(likeliest(weighted), likeliest(plain))
    BAOComparison({}, {}, {}, draws={("smc", "lcdm"): weighted, ("emcee", "lcdm"): plain}).write(tmp_path)
    again = load_chains(tmp_path / "draws-lcdm-smc.csv")
    np.testing.assert_array_equal(again.weights, weighted.weights)
    assert again.bounds["Omega_m"] == (0.01, 0.99)
    np.testing.assert_array_equal(load_chains(tmp_path / "draws-lcdm-emcee.csv").samples, plain.samples)


@needs_data
def test_command_tells_the_parameters(tmp_path):
    arguments = ["cosmology", "bao", "--models", "lcdm,wcdm", "--routes", "grid", "--output", str(tmp_path)]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"}).output
    assert "0.2978±0.0086" in shown and "10152±74" in shown and "-0.917±0.078" in shown
    assert "lcdm: 10.27 of 13 distances, at Omega_m 0.29746, H0_rd 10154" in shown
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    first, table = found["parameters"][0], pd.read_csv(tmp_path / "parameters.csv")
    assert (first["model"], first["parameter"], first["reliable"]) == ("lcdm", "Omega_m", True)
    assert first["mean"] == pytest.approx(table["mean"][0]) == pytest.approx(0.2978, abs=1e-4) and len(table) == 5
    assert found["best_fits"]["wcdm"]["chi2"] == pytest.approx(9.041, abs=1e-3) and set(found["best_fits"]["wcdm"]["at"]) >= {"w"}


@needs_data
def test_command(tmp_path):
    shown = CliRunner().invoke(app, ["cosmology", "bao", "--models", "lcdm", "--routes", "grid", "--output", str(tmp_path), "--json"])
    found = json.loads(shown.output)
    assert shown.exit_code == 0 and found["reliable"] and found["evidences"][0]["log_z"] == pytest.approx(-7.347, abs=1e-3)
    assert (tmp_path / "bao.csv").is_file()
    shown = CliRunner().invoke(app, ["cosmology", "bao", "--models", "lcdm", "--routes", "grid"], env={"COLUMNS": "120"})
    assert "-7.347" in shown.output and "ok" in shown.output


# --- Bad input ----------------------------------------------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'w0wacdm'"):
        get_cosmology("w0wacmd")
    with pytest.raises(ValueError, match="Did you mean 'DM_over_rs'"):
        BAOData([0.5], ("DM_over_rd",), [13.0], [[0.1]])
    with pytest.raises(ValueError, match=r"routes among sampler.*got 'nuts'"):
        compare_bao(["lcdm"], made_up(), routes=("nuts",))
    with pytest.raises(ValueError, match="at least one model"):
        compare_bao([], made_up())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariance": np.eye(3)}, r"covariance \(4, 4\)"),
        ({"covariance": np.diag([1.0, 1.0, 1.0, -1.0])}, "positive definite"),
        ({"covariance": np.triu(np.ones((4, 4)))}, "symmetric"),
        ({"redshifts": np.array([0.0, 1.0, 1.0, 1.0])}, "positive redshifts"),
        ({"values": np.array([np.nan, 1.0, 1.0, 1.0])}, "finite values"),
    ],
)
def test_data_that_are_not_data(change, message):
    good = made_up()
    parts = {"redshifts": good.redshifts, "kinds": good.kinds, "values": good.values, "covariance": good.covariance}
    with pytest.raises(ValueError, match=message):
        BAOData(**(parts | change))


def test_files(tmp_path):
    mean, cov = tmp_path / "mean.txt", tmp_path / "cov.txt"
    mean.write_text("# z value kind\n0.5 13.6 DM_over_rs\n0.5 21.9 DH_over_rs\n")
    cov.write_text("0.03 -0.01\n-0.01 0.2\n")
    data = BAOData.from_files(mean, cov)
    assert data.kinds == ("DM_over_rs", "DH_over_rs") and data.covariance[0, 1] == -0.01
    mean.write_text("0.5 13.6 DM_over_rs\n0.5 21.9\n")
    with pytest.raises(ValueError, match="line 2: expected 'redshift value kind'"):
        BAOData.from_files(mean, cov)
    cov.write_text("0.03 what\n")
    mean.write_text("0.5 13.6 DM_over_rs\n")
    with pytest.raises(ValueError, match="square matrix of numbers"):
        BAOData.from_files(mean, cov)
    mean.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no rows"):
        BAOData.from_files(mean, cov)


def test_missing_data_name_the_entry_and_the_variable(monkeypatch, tmp_path):
    def unreachable(*given, **named):
        raise OSError("no network")

    monkeypatch.setenv("SBI_FLOWS_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(datasets.pooch, "retrieve", unreachable)
    with pytest.raises(ConnectionError, match=r"desi_dr2_bao/desi_gaussian_bao_ALL_GCcomb_mean.txt.*SBI_FLOWS_DATA"):
        bao_target("lcdm")


def test_grids_and_redshifts_that_are_none():
    target = bao_target("wcdm", made_up())
    with pytest.raises(ValueError, match="2 numbers of panels"):
        grid_evidence(target, (5,))
    with pytest.raises(ValueError, match="positive finite redshifts"):
        ComovingIntegral([0.5, -1.0])


@needs_data
def test_the_command_line_tells_the_priors():
    arguments = ["cosmology", "bao", "--models", "lcdm,wcdm", "--routes", "grid"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "wcdm: Omega_m 0.01 to 0.99, H0_rd 5000 to 15000, w -3 to 1" in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert found["priors"]["wcdm"] == {"Omega_m": [0.01, 0.99], "H0_rd": [5000.0, 15000.0], "w": [-3.0, 1.0]}
