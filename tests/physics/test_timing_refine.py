"""Draws of the timing likelihood weighted pulsar by pulsar: against integrals by the prior, and what rough draws may do to them."""

import math

import numpy as np
import pytest
import torch

from sbi_flows.physics.pta import synthetic_pulsars, timing_likelihood
from sbi_flows.physics.pta.timing_compare import compare_timing
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.physics.pta.timing_refine import Rounds, refined
from sbi_flows.physics.pta.timing_run import RouteEffort
from sbi_flows.reliability import Reliability
from sbi_flows.results import WeightedSamples


@pytest.fixture(scope="module")
def array():
    """Two made-up pulsars with a sky of a background and noise that can be told."""
    pulsars = synthetic_pulsars(2, n_times=100, n_frequencies=14, random_state=0)
    theta = torch.tensor([[-14.6, 4.0, -14.5, 3.0, -16.0, 2.0]], dtype=torch.float64)
    return pulsars.with_data(timing_likelihood(pulsars).simulate(theta, torch.Generator().manual_seed(3))[0].numpy())


@pytest.fixture(scope="module")
def by_prior(array):
    """Draws of the prior weighted by the likelihood, of each source."""

    def made(model, n=25_000):
        target = timing_likelihood(array, spectrum=model)
        theta = target.prior.sample(n, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return WeightedSamples(theta.numpy(), target.log_likelihood(theta).numpy(), target.names)

    return {model: made(model) for model in ("smbhb", "power_law")}


def cube(array, model, width=None):
    target = timing_likelihood(array, spectrum=model)
    return Cube(target, target.model.prior.features if width is None else width)


@pytest.mark.parametrize("model", ["smbhb", "power_law"])
def test_evidence_and_moments_are_those_of_the_prior(array, by_prior, model):
    """Seven numbers within four and a half standard errors: false alarm 5e-5."""
    expected, found = by_prior[model], refined(cube(array, model), n_samples=3000)
    assert found.reliability.ok, found.reliability
    assert found.ess > 300
    errors = [abs(found.log_z - expected.log_z) / math.hypot(found.log_z_err, expected.log_z_err)]
    for a, b in zip(found.samples.T, expected.samples.T, strict=True):
        mean = [column @ draws.weights for column, draws in ((a, found), (b, expected))]
        variance = [
            np.sum(draws.weights**2 * (column - m) ** 2) for column, draws, m in zip((a, b), (found, expected), mean, strict=True)
        ]
        errors.append(abs(mean[0] - mean[1]) / math.sqrt(sum(variance)))
    assert max(errors) < 4.5


def test_rough_draws_may_be_wrong(array, by_prior):
    """Proposals from draws of a corner, with nothing learned after: slower, not wrong, as a tenth comes from the prior."""
    rough = np.tile([0.9, 0.9, 0.5, -12.0, 6.0, -12.0, 6.0], (50, 1)) + 0.01 * np.random.default_rng(0).normal(size=(50, 7))
    found = refined(cube(array, "power_law", 3), rough.clip(-13, 6.9), n_samples=5000, rounds=Rounds(most=0, candidates=4))
    expected = by_prior["power_law"]
    assert found.names == expected.names
    if found.reliability.ok:
        assert abs(found.log_z - expected.log_z) < 4.5 * math.hypot(found.log_z_err, expected.log_z_err)
    learned = refined(cube(array, "power_law", 3), rough.clip(-13, 6.9), n_samples=2000, rounds=Rounds(candidates=4))
    assert learned.ess / 2000 > 3 * found.ess / 5000
    assert abs(learned.log_z - expected.log_z) < 4.5 * math.hypot(learned.log_z_err, expected.log_z_err)


def test_more_candidates_leave_more_of_the_draws(array):
    """At the same number of draws."""
    few, many = (refined(cube(array, "power_law"), n_samples=1500, rounds=Rounds(600, 2, candidates=k)).ess for k in (1, 16))
    assert many > 1.5 * few


def test_same_seed_same_draws_and_verdicts_pass_on(array):
    rounds = Rounds(50, 1, candidates=2)
    one, two = (refined(cube(array, "smbhb"), n_samples=40, rounds=rounds, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(one.samples, two.samples)
    np.testing.assert_array_equal(one.log_weights, two.log_weights)
    source = Reliability.from_reasons(["a sky like no other"])
    assert "a sky like no other" in refined(cube(array, "smbhb"), n_samples=40, rounds=rounds, source=source).reliability.reasons


def test_what_cannot_be_refined(array):
    with pytest.raises(ValueError, match=r"rough draws of shape \(m, 6\)"):
        refined(cube(array, "power_law"), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="draws and candidates"):
        refined(cube(array, "power_law"), n_samples=0)


def test_importance_as_a_route(array, tmp_path):
    """Files come back as they were written, and nothing is computed twice."""
    effort = (None, RouteEffort(n_effective=150, max_draws=2000, block=1000))
    made = compare_timing(["smbhb", "power_law"], array, route="importance", output=tmp_path, effort=effort)
    said = []
    again = compare_timing(
        ["smbhb", "power_law"], array, route="importance", output=tmp_path, effort=effort, on_stage=lambda *text: said.append(text)
    )
    assert said == [(f"{model} by importance", "done (from an earlier run)") for model in ("smbhb", "power_law")]
    assert again.records() == made.records()
    assert all(record["reliable"] and record["ess"] > 150 for record in made.records())
    assert made.distances("power_law") is None
