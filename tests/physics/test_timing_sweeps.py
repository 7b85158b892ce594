"""Sweeps under the uncorrelated likelihood: they leave the correlated posterior as it is, whatever power or space they are asked for in."""

import math

import numpy as np
import pytest
import torch

from sbi_flows import FlowSampler
from sbi_flows.physics.pta import synthetic_pulsars, timing_likelihood
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.physics.pta.timing_sweeps import Moves, PulsarSweeps
from sbi_flows.results import WeightedSamples
from sbi_flows.samplers import run_chains
from sbi_flows.targets import tempered, unconstrained


@pytest.fixture(scope="module")
def array():
    """Two made-up pulsars near each other, so that correlations count, with a loud background."""
    pulsars = synthetic_pulsars(2, n_times=100, n_frequencies=14, random_state=0)
    theta = torch.tensor([[-13.9, 4.0, -14.5, 3.0, -16.0, 2.0]], dtype=torch.float64)
    return pulsars.with_data(timing_likelihood(pulsars).simulate(theta, torch.Generator().manual_seed(3))[0].numpy())


def by_prior(target, power=1.0, n=20_000):
    """Draws of the prior weighted by the likelihood to a power."""
    theta = target.prior.sample(n, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        return WeightedSamples(theta.numpy(), power * target.log_likelihood(theta).numpy(), target.names)


def distances(chains, expected):
    """Means and variances of each parameter, over their errors: those of chains from the scatter of independent chains."""
    found = []
    for j in range(expected.samples.shape[1]):
        column, w = expected.samples[:, j], expected.weights
        centre = column @ w
        for value in (lambda v: v, lambda v, c=centre: (v - c) ** 2):
            mean = value(column) @ w
            error = math.sqrt(np.sum(w**2 * (value(column) - mean) ** 2))
            own = value(chains[..., j]).mean(1)
            found.append(abs(own.mean() - mean) / math.hypot(error, own.std(ddof=1) / math.sqrt(len(own))))
    return np.array(found)


@pytest.mark.parametrize("model", ["smbhb", "power_law"])
def test_chains_have_the_moments_of_the_posterior(array, model):
    """Twelve numbers within four and a half standard errors: false alarm 8e-5. A kernel that forgot the correlations would fail."""
    target = timing_likelihood(array, spectrum=model)
    expected = by_prior(target)
    chains = run_chains(PulsarSweeps(target), target, expected.resample(64, 0), n_steps=50, n_warmup=20, random_state=1)
    assert distances(chains.samples, expected).max() < 4.5
    assert chains.names == target.names


def test_correlations_are_what_ends_are_accepted_by(array):
    """Without them every end would be taken; with them some are not."""
    for correlation, low, high in (("uncorrelated", 0.999, 1.001), ("hd", 0.3, 0.995)):
        target = timing_likelihood(array, correlation)
        kernel = PulsarSweeps(target, sweeps=1)
        space = unconstrained(target)
        start = torch.from_numpy(by_prior(target, n=5000).resample(200, 0))
        state = kernel.init(space.from_user(start), space)
        _, info = kernel.step(state, space, torch.Generator().manual_seed(0))
        assert low < float(info.acceptance.mean()) < high


def test_a_tempered_density_is_left_as_it_is(array):
    """The kernel sweeps by the whole likelihood and is asked for its square root (false alarm 8e-5)."""
    target = timing_likelihood(array)
    expected = by_prior(target, 0.5)
    hot = tempered(target, 0.5)
    chains = run_chains(PulsarSweeps(target), hot, expected.resample(64, 0), n_steps=70, n_warmup=20, random_state=1)
    assert distances(chains.samples, expected).max() < 4.5


def test_there_and_back(array):
    for model in ("smbhb", "power_law", "igw"):
        target = timing_likelihood(array, spectrum=model)
        theta = target.prior.sample(50, torch.Generator().manual_seed(0)).double()
        moves = Moves(target)
        torch.testing.assert_close(moves.theta(moves.unit(theta)), theta, rtol=1e-9, atol=1e-9)
        cube = Cube(target, 4)
        torch.testing.assert_close(cube.to_user(cube.from_user(theta)), theta, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_flow_sampler_takes_it(array):
    target = timing_likelihood(array)
    expected = by_prior(target)
    sampler = FlowSampler(target=target, kernel=PulsarSweeps(target), method="local", n_effective=300, random_state=0).fit(
        expected.resample(500, 0)
    )
    assert sampler.report_.reliability.ok, sampler.report_.reliability
    assert abs(sampler.evidence().log_z - expected.log_z) < 4.5 * math.hypot(sampler.evidence().log_z_err, expected.log_z_err)


def test_only_for_timing_targets(array):
    with pytest.raises(TypeError, match="timing_likelihood"):
        PulsarSweeps(tempered(timing_likelihood(array), 0.5))
    with pytest.raises(ValueError, match="sweeps"):
        PulsarSweeps(timing_likelihood(array), sweeps=0)
