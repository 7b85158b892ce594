"""Exchanges leave every temperature's density as it is; ln Z has an honest error; modes keep their masses."""

import math

import numpy as np
import pytest
import torch

from sbi_flows.distributions import BoxUniform, from_pair
from sbi_flows.flows import realnvp
from sbi_flows.samplers import parallel_tempering
from sbi_flows.samplers.exchange import Replicas, exchange, exchange_by_flows
from sbi_flows.targets import from_log_prob, posterior

POWERS = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)


def evaluate(x):
    """A flat base and a skewed likelihood whose tempered densities are normal: mean 1, variance 1 / power."""
    return torch.zeros(len(x), dtype=torch.float64), -0.5 * (x - 1).square().sum(-1)


def exact(n: int, generator) -> Replicas:
    x = 1 + torch.randn(3, n, 2, generator=generator, dtype=torch.float64) / POWERS.sqrt()[:, None, None]
    log_base, log_likelihood = (part.view(3, n) for part in evaluate(x.view(-1, 2)))
    return Replicas(x, log_base, log_likelihood)


@pytest.mark.parametrize("by_flows", [False, True])
def test_exchanges_leave_every_density_as_it_is(by_flows):
    """Exact draws stay exact: 12 moments to 4.5 standard errors, false alarms 1e-4. The flows are wrong on purpose."""
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    replicas = exact(n, generator)
    flows = [realnvp(2, layers=2, scaling="none", generator=generator).double().requires_grad_(False) for _ in range(3)]
    for flow in flows:
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    before = replicas.position
    for parity in (0, 1):
        if by_flows:
            replicas, rate = exchange_by_flows(replicas, POWERS, parity, flows, evaluate, generator)
        else:
            replicas, rate = exchange(replicas, POWERS, parity, generator)
        assert 0.01 < float(rate.mean()) < 0.99
    assert float((replicas.position != before).double().mean()) > 0.01
    pulls = (replicas.position - 1) * POWERS.sqrt()[:, None, None]
    assert float(pulls.mean(1).abs().max()) < 4.5 / math.sqrt(n)
    assert float((pulls.square().mean(1) - 1).abs().max()) < 4.5 * math.sqrt(2 / n)
    again = evaluate(replicas.position.view(-1, 2))[1].view(3, n)
    assert torch.allclose(again, replicas.log_likelihood)


def test_evidence_and_masses_of_modes():
    """Modes of .3 and .7 far apart, and ln Z, to four errors each (false alarms 2e-4); the masses' error is the ladders' spread."""
    modes = torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    log_mass = torch.log(torch.tensor([0.3, 0.7], dtype=torch.float64))
    target = posterior(
        lambda x: torch.logsumexp(log_mass - 0.5 * ((x[:, None] - modes) / 0.3).square().sum(-1), 1), BoxUniform([-5.0] * 2, [5.0] * 2)
    )
    result = parallel_tempering(target, n_steps=500, n_warmup=150, random_state=0)
    right = (result.chains.samples[..., 0] > 0).mean(1)
    assert abs(right.mean() - 0.7) < 4 * right.std(ddof=1) / math.sqrt(len(right))
    assert right.std(ddof=1) < 0.35  # ladders cross: stuck ones would show .46
    assert abs(result.evidence.log_z - math.log(2 * math.pi * 0.09 / 100)) < 4 * result.evidence.log_z_err
    assert result.evidence.log_z_err < 0.2


def test_flows_carry_exchanges_of_a_circular_parameter():
    """ln of the von Mises normaliser, to four errors (false alarms 1e-4); flows raise the rate of exchanges with the prior, .47, to .65."""
    prior = from_pair(
        lambda n, generator: 2 * math.pi * torch.rand(n, 1, generator=generator) - math.pi,
        lambda x: torch.full((len(x),), -math.log(2 * math.pi)),
        1,
        support=["circular"],
    )
    target = posterior(lambda x: 5 * torch.cos(x[:, 0] - 3), prior)
    alone, result = (parallel_tempering(target, n_steps=200, n_warmup=64, flow=flow, random_state=0) for flow in (None, "auto"))
    exact_log_z = math.log(float(np.i0(5.0)))
    assert abs(result.evidence.log_z - exact_log_z) < 4 * result.evidence.log_z_err < 0.2
    assert np.array_equal(alone.powers, result.powers)
    assert result.swap_rates[0] > alone.swap_rates[0] + 0.1


def test_every_evaluation_is_counted_and_seeds_repeat():
    n_rows = 0

    def log_likelihood(x):
        nonlocal n_rows
        n_rows += len(x)
        return -0.5 * (x / 0.3).square().sum(-1)

    target = posterior(log_likelihood, BoxUniform([-5.0], [5.0]))
    first = parallel_tempering(target, n_steps=50, n_warmup=20, random_state=1)
    assert first.n_evaluations == n_rows
    again = parallel_tempering(target, n_steps=50, n_warmup=20, random_state=1)
    assert np.array_equal(first.chains.samples, again.chains.samples)
    assert not first.reliability.ok  # fifty draws are too few, and it says so


def test_bad_input_is_told():
    box = BoxUniform([-1.0], [1.0])
    with pytest.raises(ValueError, match="with a prior"):
        parallel_tempering(from_log_prob(lambda x: -x.square().sum(1), 1))
    with pytest.raises(ValueError, match="zero at all"):
        parallel_tempering(posterior(lambda x: torch.full((len(x),), -math.inf), box))
    with pytest.raises(ValueError, match="at least 4"):
        parallel_tempering(posterior(lambda x: -x[:, 0] ** 2, box), n_ladders=2)
    with pytest.raises(ValueError, match="'auto' or None"):
        parallel_tempering(posterior(lambda x: -x[:, 0] ** 2, box), flow="nsf")


def test_a_likelihood_of_zero_over_part_of_the_prior_counts():
    """ln Z = ln .01: a box of a hundredth of the prior; four errors, a false alarm in 16 000."""
    prior = BoxUniform([-5.0, -5.0], [5.0, 5.0])
    target = posterior(lambda x: torch.where((x.abs() < 0.5).all(1), 0.0, -math.inf), prior)
    evidence = parallel_tempering(target, n_steps=200, n_warmup=100, random_state=0).evidence
    assert 0.01 < evidence.log_z_err < 0.3
    assert abs(evidence.log_z - math.log(0.01)) < 4 * evidence.log_z_err
