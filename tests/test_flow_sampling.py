"""``FlowSampler``: exact answers, choices, verdicts, messages."""

import numpy as np

from sbi_flows import FlowSampler
from sbi_flows.distributions import BoxUniform


def test_thin_gaussian_in_a_box():
    # Mean of 4 parameters at 4.5 standard errors: false alarm below 3e-5.
    prior = BoxUniform([-8.0] * 2, [8.0] * 2, names=["a", "b"])
    sampler = FlowSampler(lambda x: -0.5 * x.square().sum(-1), prior, n_effective=1000, random_state=0).fit()
    draws = sampler.sample(1000, random_state=1)
    assert draws.shape == (1000, 2)
    assert np.all(np.abs(sampler.chains_.samples.mean((0, 1))) < 4.5 / np.sqrt(sampler.report_.ess))
    assert sampler.report_.reliability.ok, sampler.report_
    assert abs(sampler.evidence().log_z - np.log(2 * np.pi / 256)) < 4.5 * sampler.evidence().log_z_err
