"""What moves the chains of a posterior known up to a constant."""

import torch

from sbi_flows.distributions import BoxUniform
from sbi_flows.inference.target_posterior import _kernel, _sample
from sbi_flows.samplers import Mixed, RandomWalk
from sbi_flows.targets import posterior


def test_many_parameters_follow_gradients():
    assert isinstance(_kernel(5)[0], RandomWalk) and isinstance(_kernel(8)[0], Mixed)
    d = 8
    target = posterior(lambda x: -0.5 * ((x - 1) / 0.1).square().sum(-1), BoxUniform([-5.0] * d, [5.0] * d))
    chains = _sample(target, 1000, torch.Generator().manual_seed(0), 2000)
    assert chains.reliability.ok, str(chains.reliability)
    assert chains.stats["n_gradients"].sum() > 0
    assert abs(chains.samples.reshape(-1, d).mean(0) - 1).max() < 5 * 0.1 / 20  # effective size above 400, as the verdict asks for
