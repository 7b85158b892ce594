"""Whole flows: inverses, densities that integrate to one, scaling, supports, stacked members, messages."""

import json
import math

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from sbi_flows.flows import build, maf, nsf, realnvp

FLOWS = {
    "realnvp": realnvp,
    "maf": maf,
    "nsf-autoregressive": nsf,
    "nsf-coupling": lambda *args, **options: nsf(*args, autoregressive=False, **options),
}
SUPPORTS = {
    "real": None,
    "circular": "circular",
    "interval": (-1, 2),
    "lower": (1, math.inf),
    "upper": (-math.inf, 1),
    "heavy": "heavy",
}


def randomised(flow, scale=0.05, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return flow


def small(name, d, c=0, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return randomised(FLOWS[name](d, c, layers=3, hidden=(16, 16), generator=generator, **options).double())


def rows(flow, n=40):
    c = flow.context_features
    generator = torch.Generator().manual_seed(5)
    context = torch.randn(n, c, generator=generator, dtype=torch.float64) if c else None
    return flow.sample(n, context, generator=generator), context


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(("d", "c"), [(1, 0), (1, 2), (3, 0), (5, 2)])
def test_inverse_and_log_det(name, support, d, c):
    flow = small(name, d, c, support=SUPPORTS[support])
    x, context = rows(flow)
    z, log_det = flow.to_base(x, context)
    back, log_det_back = flow.from_base(z, context)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)
    draws, log_prob = flow.sample_and_log_prob(len(x), context, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(draws, context), log_prob, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_stacked_members_are_the_members(name):
    members = [small(name, 3, 2, seed=s, support=["real", "circular", (0, 1)]) for s in range(3)]
    x, context = rows(members[0])
    parameters, buffers = stack_module_state(members)
    with torch.no_grad():
        alone = torch.stack([m.log_prob(x, context) for m in members])

    def log_prob(p, b):
        return functional_call(_LogProb(members[0]), {f"flow.{k}": v for k, v in {**p, **b}.items()}, (x, context))

    together = vmap(log_prob)(parameters, buffers)
    torch.testing.assert_close(together, alone)
    together.sum().backward()
    for i, member in enumerate(members):
        member.log_prob(x, context).sum().backward()
        for key, p in member.named_parameters():
            torch.testing.assert_close(parameters[key].grad[i], p.grad)


class _LogProb(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context):
        return self.flow.log_prob(x, context)


@pytest.mark.parametrize("name", FLOWS)
def test_spec_is_json_and_rebuilds(name):
    flow = small(name, 3, 1, support=[(0, math.inf), "circular", "heavy"], base={"name": "student-t", "df": 3})
    again = build(json.loads(json.dumps(flow.spec, allow_nan=False))).double()
    again.load_state_dict(flow.state_dict())
    x, context = rows(flow)
    assert torch.equal(again.log_prob(x, context), flow.log_prob(x, context))


def test_an_untrained_flow_is_the_gaussian_fit():
    x = torch.randn(2000, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 7
    flow = nsf(3).double().fit_scaling(x)
    mean, cov = x.mean(0), torch.cov(x.T, correction=0)
    expected = torch.distributions.MultivariateNormal(mean, cov).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_outside_the_support():
    flow = small("nsf-autoregressive", 2, support=[(0, 1), (0, math.inf)])
    x = torch.tensor([[0.5, 1.0], [2.0, 1.0], [0.5, -1.0], [0.5, math.inf], [math.nan, 1.0]]).double().requires_grad_()
    log_prob = flow.log_prob(x)
    assert torch.isfinite(log_prob[0]) and (log_prob[1:4] == -math.inf).all() and torch.isnan(log_prob[4])
    (grad,) = torch.autograd.grad(log_prob[0], x)
    assert torch.isfinite(grad[:4]).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: nsf(2).log_prob(torch.zeros(2)), r"x\[None\]"),
        (lambda: nsf(2).log_prob(torch.zeros(3, 3)), r"shape \(n, 2\)"),
        (lambda: nsf(2, 1).log_prob(torch.zeros(3, 2)), "conditional"),
        (lambda: nsf(2).log_prob(torch.zeros(3, 2), torch.zeros(3, 1)), "no context"),
        (lambda: nsf(2, 1).log_prob(torch.zeros(3, 2), torch.zeros(2, 1)), r"\(3, 1\) or \(1, 1\)"),
        (lambda: nsf(2, bins=1), "2 bins"),
        (lambda: nsf(2, base="cauchy"), "Expected base"),
        (lambda: nsf(2, scaling="zca"), "Expected scaling"),
        (lambda: nsf(0), "at least one column"),
        (lambda: nsf(2, hidden=()), "hidden layer"),
        (lambda: build({"architecture": "glow"}), "architecture"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()
