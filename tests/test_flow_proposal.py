"""The proposals of ``FlowSampler``: normalised densities that are too thin nowhere."""

import math

import pytest
import torch

from sbi_flows.distributions import BoxUniform
from sbi_flows.flow_sampling.fitting import ProposalFit


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def _bent_proposal(support):
    """A flow proposal fitted to a thousand draws: one column bounded, the other as told."""
    draws = torch.stack([torch.rand(1000, generator=_seeded(3)), torch.randn(1000, generator=_seeded(4)) * 0.3], -1).double()
    return ProposalFit([draws.view(10, 100, 2)], [(0.0, 1.0), support], 0).proposal, draws


@pytest.mark.parametrize("support", ["real", "circular"])
def test_a_defended_proposal_is_a_density_with_wider_tails(support):
    plain, _ = _bent_proposal(support)
    defended = plain.defended(None)
    x = defended.sample(20_000, generator=_seeded(5))
    # The mean of q_plain / q_defended over draws of the latter is one; bounded by 1 / 0.9, so its error is known: five of them.
    ratio = (plain.log_prob(x) - defended.log_prob(x)).exp()
    assert float(ratio.max()) <= 1 / 0.9 + 1e-6
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(len(x))
    far = torch.tensor([[0.5, 2.5 if support == "real" else 0.0], [1 - 1e-6, 0.0]], dtype=torch.float64)
    gain = defended.log_prob(far) - plain.log_prob(far)
    assert float(gain[1]) > 1.0
    assert float(gain[0]) > (3.0 if support == "real" else -0.2)


def test_a_prior_among_proposals_bounds_how_long_a_chain_waits():
    plain, _ = _bent_proposal("real")
    prior = BoxUniform([0.0, -9.0], [1.0, 9.0])
    defended = plain.defended(prior)
    x = prior.sample(5000, _seeded(6)).double()
    assert float((prior.log_prob(x) - defended.log_prob(x)).exp().max()) <= 10 + 1e-6
    assert float((plain.defended(None).log_prob(x) - defended.without_prior().log_prob(x)).abs().max()) == 0
