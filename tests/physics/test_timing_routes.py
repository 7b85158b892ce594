"""Both routes to evidences from timing data: against integrals by the prior, files, many skies, and what is far from training."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.exceptions import NotFittedError

from sbi_flows.physics.pta import synthetic_pulsars, timing_likelihood
from sbi_flows.physics.pta.timing_compare import compare_timing
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.physics.pta.timing_npe import Effort, TimingNPE
from sbi_flows.physics.pta.timing_run import RouteEffort, finished
from sbi_flows.physics.pta.timing_skies import SkyEvidences, simulate_skies, sky_evidences
from sbi_flows.physics.pta.timing_summaries import PulsarSummaries

MODELS = ("smbhb", "power_law")
SMALL = Effort(n_simulations=1500, max_epochs=10, hidden=24, width=12, n_classified=1500)


@pytest.fixture(scope="module")
def array():
    """Two made-up pulsars with a sky of a background and noise that can be told."""
    pulsars = synthetic_pulsars(2, n_times=100, n_frequencies=14, random_state=0)
    target = timing_likelihood(pulsars)
    theta = torch.tensor([[-14.6, 4.0, -14.5, 3.0, -16.0, 2.0]], dtype=torch.float64)
    return pulsars.with_data(target.simulate(theta, torch.Generator().manual_seed(3))[0].numpy())


@pytest.fixture(scope="module")
def network(array):
    return TimingNPE(array, MODELS, effort=SMALL).fit()


def integral(target, n=60_000):
    """ln Z and its error from draws of the prior."""
    theta = target.prior.sample(n, torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_like = target.log_likelihood(theta)
    shares = torch.exp(log_like - log_like.max())
    ess = shares.sum() ** 2 / shares.square().sum()
    return float(log_like.logsumexp(0)) - math.log(n), float(ess) ** -0.5


@pytest.mark.parametrize("model", MODELS)
def test_evidence_of_the_network_is_the_integral(network, array, model):
    """Within four standard errors of both: false alarm 6e-5 each, if the weights can be believed, which is asserted."""
    expected, error = integral(network.target(model, array))
    weighted = network.reweighted(model, array, 4000)
    assert weighted.reliability.ok, weighted.reliability
    assert abs(weighted.log_z - expected) < 4 * math.hypot(error, weighted.log_z_err)
    assert weighted.names == network.target(model, array).names


def test_a_sky_far_from_training_is_flagged(network, array):
    assert network.posterior("power_law", array).reliability.ok
    far = network.posterior("power_law", array.with_data(1e6 * array.tnr))
    assert not far.reliability.ok
    for tnr in (array.tnr[::-1], 0 * array.tnr, array.tnr / 10):
        reasons = network.posterior("power_law", array.with_data(tnr)).reliability.reasons
        assert any("chi-squared" in reason for reason in reasons)
        assert not network.probabilities(array.with_data(tnr)).reliability.ok
    line = array.tnr.copy()
    line[0] += array.tnt[0][:, 21] * 1e-2  # ten milliseconds at one frequency of one pulsar: the loudest noise of the prior is .03
    reasons = network.reweighted("power_law", array.with_data(line), 500).reliability.reasons
    assert any("chi-squared" in reason for reason in reasons)
    reasons = network.reweighted("power_law", array, 500).reliability.reasons
    assert not any("chi-squared" in reason for reason in reasons)


def test_many_skies_in_one_call(network, array):
    skies = simulate_skies(network, array, 12, random_state=1)
    assert skies.tnr.shape == (12, 2, 28)
    found = sky_evidences(network, array, skies, n_samples=400)
    assert found.log_z.shape == (12, 2)
    alone = sky_evidences(network, array, skies.tnr[3:4], n_samples=400)
    assert alone.labels is None
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    assert 0 <= found.won() <= 1
    assert found.calibration().n == 12
    own = found.ranks[np.arange(12), found.labels]
    assert ((own >= 0) & (own <= 1)).all()
    assert found.rank_p_values().shape == (6,)
    assert list(found.to_dataframe().columns[:3]) == ["sky", "model", "log_z"]
    with pytest.raises(ValueError, match=r"skies of shape \(m, 2, 28\)"):
        sky_evidences(network, array, skies.tnr[0])
    with pytest.raises(ValueError, match="without labels"):
        alone.won()


def test_evidences_of_many_skies_are_integrals(network, array):
    """Two skies against draws of the prior, within four standard errors of both: false alarm 6e-5 each."""
    skies = simulate_skies(network, array, 2, random_state=4).tnr
    found = sky_evidences(network, array, skies, models=["power_law"], n_samples=4000)
    assert found.reliable.all()
    for i, sky in enumerate(skies):
        expected, error = integral(network.target("power_law", array.with_data(sky)), 30_000)
        assert abs(found.log_z[i, 0] - expected) < 4 * math.hypot(error, found.log_z_err[i, 0])


def test_skies_that_no_source_makes_are_not_reliable(network, array):
    skies = np.stack([array.tnr, 0 * array.tnr, array.tnr / 10])
    found = sky_evidences(network, array, skies, n_samples=1000)
    assert found.reliable[0].any()
    assert not found.reliable[1:].any()
    trusted = dataclasses.replace(found, ess=np.ones((3, 2)), pareto_k=np.zeros((3, 2)))
    np.testing.assert_array_equal(trusted.reliable, [[True, True], *[[False, False]] * 2])
    assert (found.chi_squared_p[1:] < 1e-4).all()
    assert "chi_squared_p" in found.to_dataframe()


def test_probabilities_that_are_wrong_are_told():
    """Sure of the wrong source half of the time."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    log_z = np.stack([np.zeros(400), np.where(rng.random(400) < 0.5, 2.0, -2.0)], axis=1)
    nothing = np.zeros((400, 2))
    assert SkyEvidences(MODELS, log_z, nothing, nothing, nothing, 100, None, labels).calibration().p_value < 1e-6


def test_classifier_beside_the_evidences(network, array):
    """Both are right about the same odds; 1500 simulations teach the classifier some."""
    by_network = network.probabilities(array).probabilities
    log_z = [network.reweighted(model, array, 3000).log_z for model in MODELS]
    expected = 1 / (1 + math.exp(log_z[1] - log_z[0]))
    assert abs(by_network["smbhb"] - expected) < 0.3


@pytest.mark.slow
def test_other_subsets_of_the_pulsars():
    """Trained on pairs of four pulsars, asked about a pair that it is given in another order."""
    four = synthetic_pulsars(4, n_times=100, n_frequencies=14, random_state=1)
    network = TimingNPE(four, ["power_law"], n_pulsars=2, effort=Effort(4000, 8, 24, 12, 0)).fit()
    assert network.classifier_ is None
    pair = four.subset([3, 1])
    expected, error = integral(network.target("power_law", pair))
    weighted = network.reweighted("power_law", pair, 4000)
    assert abs(weighted.log_z - expected) < 4 * math.hypot(error, weighted.log_z_err) + 0.05
    with pytest.raises(ValueError, match="Expected 2 pulsars"):
        network.posterior("power_law", four)
    with pytest.raises(ValueError, match="sources that the network knows"):
        network.posterior("igw", pair)
    with pytest.raises(ValueError, match="no classifier"):
        network.probabilities(pair)
    with pytest.raises(ValueError, match="n_pulsars from 1"):
        TimingNPE(four, ["power_law"], n_pulsars=5)


def test_networks_that_are_not_fitted_or_of_parts_of_pulsars(array):
    for n_pulsars in (1.9, True):
        with pytest.raises(ValueError, match="n_pulsars to be a whole number"):
            TimingNPE(array, MODELS, n_pulsars=n_pulsars)
    unfitted = TimingNPE(array, MODELS)
    for ask in (lambda: unfitted.posterior("smbhb", array), lambda: sky_evidences(unfitted, array, array.tnr[None])):
        with pytest.raises(NotFittedError, match="call fit"):
            ask()


def test_a_classifier_for_any_pulsars_knows_nothing_of_which_there_are():
    """Neither their order nor their choice: learned from other choices for each source, it said p = .00001, ok, of noise.

    Of skies without a signal that could tell the mean log-odds are then near zero; 2 would be a factor of seven.
    """
    eight = synthetic_pulsars(8, n_times=100, n_frequencies=14, random_state=1)
    network = TimingNPE(eight, MODELS, n_pulsars=2, effort=Effort(3000, 6, 16, 8, 1000)).fit()
    for pair in ([3, 1], [5, 6], [0, 7]):
        one, two = eight.subset(pair), eight.subset(pair[::-1])
        target = timing_likelihood(one)
        quiet = torch.tensor([[-17.5, 4.0, -16.0, 3.0, -16.0, 3.0]], dtype=torch.float64).expand(10, -1)
        skies = target.simulate(quiet, torch.Generator().manual_seed(0)).numpy()
        odds = [network.probabilities(one.with_data(sky)).probabilities["smbhb"] for sky in skies]
        turned = [network.probabilities(two.with_data(sky[::-1].copy())).probabilities["smbhb"] for sky in skies]
        np.testing.assert_allclose(odds, turned, atol=1e-4)
        assert abs(np.mean(special.logit(odds))) < 2


def test_files_give_back_the_same_network(network, array, tmp_path):
    network.save(tmp_path)
    again = TimingNPE(array, MODELS, effort=SMALL)
    assert again.restore(tmp_path)
    assert again.reweighted("smbhb", array, 200).log_z == network.reweighted("smbhb", array, 200).log_z
    assert again.probabilities(array).probabilities == network.probabilities(array).probabilities
    assert not TimingNPE(array, MODELS, effort=SMALL, random_state=1).restore(tmp_path)
    assert not again.restore(tmp_path / "nowhere")
    assert not TimingNPE(dataclasses.replace(array, tnt=array.tnt / 100), MODELS, effort=SMALL).restore(tmp_path)
    # Summaries are of the statistics asked about, though names are the same.
    other = dataclasses.replace(array, tnt=array.tnt / 100, tnr=array.tnr / 100)
    network.probabilities(array)
    assert network.probabilities(other).probabilities == again.probabilities(other).probabilities
    one = copy.copy(network)
    one.classifier_ = None
    one.save(tmp_path)
    assert not (tmp_path / "classifier.safetensors").exists()
    (tmp_path / "network.json").write_text("{bad")
    assert not again.restore(tmp_path)


def test_summaries_are_finite_in_the_corners_and_follow_their_pulsars(array):
    target = timing_likelihood(array)
    summaries = PulsarSummaries(target)
    low, high = torch.tensor([[-18.0, 0, -20, 0, -20, 0]]), torch.tensor([[-11.0, 7, -11, 7, -11, 7]])
    for theta in (low, high):
        assert np.isfinite(summaries(target.simulate(theta, torch.Generator().manual_seed(0)))).all()
    swapped = array.subset([1, 0])
    there = PulsarSummaries(timing_likelihood(swapped))(torch.from_numpy(swapped.tnr)[None])
    np.testing.assert_allclose(there[:, ::-1], summaries(torch.from_numpy(array.tnr)[None]), rtol=0, atol=1e-6)


def test_the_cube_is_uniform_under_the_prior(array):
    """Normal prior of black-hole binaries: median at the middle, quantiles by the covariance's root."""
    cube = Cube(timing_likelihood(array, spectrum="smbhb"), 3)
    rows = torch.full((1, 7), 0.5, dtype=torch.float64)
    prior = cube.target.model.prior
    torch.testing.assert_close(cube.to_user(rows)[0, :2], prior.mean)
    generator = torch.Generator().manual_seed(0)
    drawn = cube.to_user(torch.rand(20_000, 7, generator=generator, dtype=torch.float64))[:, :2]
    torch.testing.assert_close(drawn.T.cov(), prior.cholesky @ prior.cholesky.T, rtol=0.06, atol=0.01)
    with pytest.raises(ValueError, match="at most 1 parameters"):
        Cube(timing_likelihood(array), 1)


def test_comparison_writes_resumes_and_refuses_other_settings(array, tmp_path):
    effort = Effort(600, 10, 16, 8, 600), RouteEffort(200, 1000, 500)
    said = []
    made = compare_timing(MODELS, array, route="npe", output=tmp_path, effort=effort, on_stage=lambda *text: said.append(text))
    assert list(made.to_dataframe()["model"]) == list(MODELS)
    assert made.records()[0]["log_bf"] == 0
    for name in ("timing.json", "timing.csv", "report.html", "evidence_npe.png", "network/network.json", "models/smbhb/corner.png"):
        assert (tmp_path / name).is_file(), name
    json.loads((tmp_path / "timing.json").read_text())
    said.clear()
    again = compare_timing(MODELS, array, route="npe", output=tmp_path, effort=effort, on_stage=lambda *text: said.append(text))
    assert ("smbhb by npe", "done (from an earlier run)") in said
    assert not any("training" in stage for _, stage in said)
    assert [r["log_z"] for r in again.records()] == [r["log_z"] for r in made.records()]
    with pytest.raises(ValueError, match=r"other settings \(seed"):
        compare_timing(MODELS, array, route="npe", output=tmp_path, seed=1, effort=effort)
    network = (tmp_path / "network" / "network.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(network\)"):
        compare_timing(MODELS[1:], array, route="npe", output=tmp_path, effort=effort)
    assert (tmp_path / "network" / "network.json").read_bytes() == network
    quieter = dataclasses.replace(array, tnt=2 * array.tnt)
    with pytest.raises(ValueError, match=r"other settings \(data, network\)"):
        compare_timing(MODELS, quieter, route="npe", output=tmp_path, effort=effort)
    assert isinstance(made.records()[0]["probability_reliable"], bool)
    assert finished(tmp_path / "models" / "smbhb", "npe") is not None
    draws = tmp_path / "models" / "smbhb" / "npe.npz"
    draws.write_bytes(draws.read_bytes()[:500])
    assert finished(tmp_path / "models" / "smbhb", "npe") is None


def test_what_a_result_rests_on_is_told_apart(array):
    """Residuals, their errors, directions and the span; a network does not see the residuals."""
    others = [
        dataclasses.replace(array, tnt=array.tnt / 100),
        dataclasses.replace(array, positions=-array.positions),
        dataclasses.replace(array, span=array.span / 3),
    ]
    changed = array.with_data(2 * array.tnr)
    assert len({each.digest() for each in [array, changed, *others]}) == 5
    assert len({each.digest(residuals=False) for each in [array, changed, *others]}) == 4
    with pytest.raises(ValueError, match=r"Unknown pulsar '99'\. There are 2"):
        array.subset(["99"])


def test_settings_that_cannot_be_teach(array):
    with pytest.raises(ValueError, match="route"):
        compare_timing(MODELS, array, route="mcmc")
    with pytest.raises(ValueError, match="at least one model"):
        compare_timing([], array)
    with pytest.raises(ValueError, match="n_jobs of at least 1"):
        compare_timing(MODELS, array, n_jobs=0)


@pytest.mark.slow
def test_both_routes_agree(array, tmp_path):
    made = compare_timing(["power_law"], array, route="both", output=tmp_path, effort=(SMALL, RouteEffort(2000, 40_000, 5000)))
    distances, floor = made.distances("power_law")
    assert distances.max() < 0.05 + floor
    npe, sampler = (made.results["power_law", route] for route in ("npe", "sampler"))
    assert abs(npe.log_z - sampler.log_z) < 4 * math.hypot(npe.log_z_err, sampler.log_z_err)
