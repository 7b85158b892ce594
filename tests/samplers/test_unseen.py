"""What samplers say of what they have not seen: holes in the likelihood, and modes that no draw of the prior is near."""

import math

import pytest
import torch

from sbi_flows.distributions import BoxUniform
from sbi_flows.samplers import parallel_tempering, smc
from sbi_flows.samplers.unseen import MUCH, reach, told
from sbi_flows.targets import posterior

BOX = BoxUniform([-5.0, -5.0], [5.0, 5.0])
SAMPLERS = {
    "smc": lambda target: smc(target, n_particles=200, flow=None, random_state=0),
    "tempering": lambda target: parallel_tempering(target, n_steps=60, n_warmup=60, random_state=0),
}


def holed(where, value=math.nan):
    return posterior(lambda x: torch.where(where(x), value, -0.5 * x.square().sum(1)), BOX)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", SAMPLERS)
def test_holes_where_the_posterior_is_spoil_the_evidence(name, value):
    """A sixth of the posterior cannot be computed: not ok, in the result and in its evidence, with the share of the proposals."""
    result = SAMPLERS[name](holed(lambda x: x[:, 0] > 1, value))
    for verdict in (result.reliability, result.evidence.reliability):
        assert any("proposals for the posterior (" in reason and "what lies there is missing" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("name", SAMPLERS)
def test_holes_far_from_the_posterior_are_noted(name):
    """A tenth of the prior, beyond four standard deviations, cannot be computed: the posterior lacks a mass of 3e-5."""
    verdict = SAMPLERS[name](holed(lambda x: x[:, 0] > 4)).evidence.reliability
    assert not any("what lies there is missing" in reason for reason in verdict.reasons)
    assert any("points in all" in note or "holes" in note for note in verdict.notes)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_no_draw_of_the_prior_can_see_is_noted(name):
    verdict = SAMPLERS[name](holed(lambda x: x[:, 0] > 9)).reliability
    (note,) = [note for note in verdict.notes if "may be missed" in note]
    assert "however large its mass" in note


def test_words():
    assert told(0, 100) == ([], [])
    assert told(int(1000 * MUCH), 1000)[0] == [] and "(0.6%)" in told(6, 1000)[1][0] and told(int(1000 * MUCH) + 1, 1000)[0] != []
    (reason,), notes = told(16, 100)
    assert "16 of 100 proposals (16.0%)" in reason and notes == []
    assert "one in less than 0.003 of it" in reach(1000)
