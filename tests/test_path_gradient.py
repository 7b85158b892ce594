"""Path gradients: the same mean as the plain ones, no noise where the flow is right, the scores of every bijection exact."""

import pytest
import torch
from torch import Tensor

from sbi_flows.flows import maf, nsf, realnvp
from sbi_flows.losses import Batch, forward_kl, nll, reverse_kl

FLOWS = {
    "affine-coupling": lambda d: realnvp(d, layers=3, generator=torch.Generator().manual_seed(1)),
    "spline-coupling": lambda d: nsf(d, layers=3, autoregressive=False, generator=torch.Generator().manual_seed(1)),
    "spline-autoregressive": lambda d: nsf(d, layers=2, generator=torch.Generator().manual_seed(1)),
    "affine-autoregressive": lambda d: maf(d, layers=2, generator=torch.Generator().manual_seed(1)),
    "supports": lambda d: nsf(
        d, layers=3, autoregressive=False, support=[(0, 1), "circular", "real"][:d], generator=torch.Generator().manual_seed(1)
    ),
    "mixture-base": lambda d: nsf(
        d, layers=2, autoregressive=False, base={"name": "mixture", "components": 3}, generator=torch.Generator().manual_seed(1)
    ),
}


def flow_of(name: str, d: int = 3):
    flow = FLOWS[name](d).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        if name != "supports":
            mixed = torch.randn(d, d, generator=generator, dtype=torch.float64)
            flow.fit_scaling(torch.randn(200, d, generator=generator, dtype=torch.float64) @ mixed)
    return flow


def score(flow, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(flow.log_prob(x).sum(), x)[0]


@pytest.mark.parametrize("name", FLOWS)
def test_scores_come_with_the_pass(name):
    flow = flow_of(name)
    z = flow.base.sample(20, torch.Generator().manual_seed(3)).double()
    x, log_det, found = flow.from_base_with_score(z)
    torch.testing.assert_close(x, flow.from_base(z)[0])
    torch.testing.assert_close(log_det, flow.from_base(z)[1])
    torch.testing.assert_close(found, score(flow, x), rtol=1e-6, atol=1e-6)
    # And back: the flow's own score becomes the base's.
    back, _, at_base = flow.to_base_with_score(x.detach(), found)
    torch.testing.assert_close(back, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(at_base, flow.base_score(z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_no_noise_where_the_flow_is_right(name):
    flow, twin = flow_of(name), flow_of(name)
    twin.requires_grad_(False)
    z = flow.base.sample(16, torch.Generator().manual_seed(4)).double()
    x = flow.from_base(z)[0].detach()
    for loss, batch in ((reverse_kl(twin.log_prob), Batch(z)), (forward_kl, Batch(x, score(twin, x)))):
        layers = list(flow.bijection.parameters())  # a mixture learns by likelihood
        gradients = torch.autograd.grad(loss(flow, batch, torch.Generator()).sum(), layers, allow_unused=True)
        assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-5
    plain = torch.autograd.grad(nll(flow, Batch(x), torch.Generator()).sum(), list(flow.parameters()))
    assert max(float(g.abs().max()) for g in plain) > 1


def test_the_mean_is_that_of_the_plain_gradients():
    """Of the divergences from a normal, by 40000 points in 20 blocks, whose spread is the error of the difference of the means. Its square
    over that of its error has a mean of one, were it zero; few numbers dominate it, and 2.25 has a false alarm of some 1e-3."""
    flow, n, blocks = nsf(2, layers=2, autoregressive=False, generator=torch.Generator().manual_seed(1)).double(), 2000, 20
    with torch.no_grad():
        noise = torch.Generator().manual_seed(2)
        for parameter in flow.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64))
    parameters = list(flow.parameters())
    z = flow.base.sample(n * blocks, torch.Generator().manual_seed(5)).double()
    x = torch.randn(n * blocks, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def target(points):
        return -0.5 * points.square().sum(-1)

    def plain_reverse(flow, batch, generator):
        points, log_det = flow.from_base(batch.x)
        return flow.base.log_prob(batch.x) - log_det - target(points)

    cases = ((reverse_kl(target), plain_reverse, z, None), (forward_kl, nll, x, -x))
    for path, plain, rows, context in cases:
        differences = []
        for block in range(blocks):
            piece = slice(block * n, (block + 1) * n)
            batch = Batch(rows[piece], None if context is None else context[piece])
            each = [torch.autograd.grad(loss(flow, b, torch.Generator()).mean(), parameters)
                    for loss, b in ((path, batch), (plain, Batch(batch.x)))]  # fmt: skip
            differences.append(torch.cat([(a - b).flatten() for a, b in zip(*each, strict=True)]))
        found = torch.stack(differences)
        error = found.std(0) / blocks**0.5
        assert float(found.mean(0).norm() / error.norm()) < 1.5


def test_values_are_those_of_the_divergence():
    flow = flow_of("affine-coupling")
    z = flow.base.sample(10, torch.Generator().manual_seed(7)).double()
    x = flow.from_base(z)[0].detach()
    loss = reverse_kl(lambda points: -points.square().sum(-1))
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            torch.testing.assert_close(loss(flow, Batch(z), torch.Generator()).detach(), (flow.log_prob(x) + x.square().sum(-1)).detach())
            torch.testing.assert_close(forward_kl(flow, Batch(x, -x), torch.Generator()).detach(), -flow.log_prob(x).detach())


def test_impossible_and_violent_rows_do_not_spoil_a_step():
    flow = flow_of("affine-coupling")
    z = flow.base.sample(50, torch.Generator().manual_seed(8)).double()

    def target(x):
        rough = torch.where(x[:, 0] > 1, -1e30 * x[:, 1].square(), -x.square().sum(-1))
        return torch.where(x[:, 0] < -1, -torch.inf, rough)

    gradients = torch.autograd.grad(reverse_kl(target)(flow, Batch(z), torch.Generator()).mean(), list(flow.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert max(float(g.abs().max()) for g in gradients) < 1e6


def test_scores_are_needed_forward():
    with pytest.raises(ValueError, match="Expected a batch whose context holds the score"):
        forward_kl(flow_of("affine-coupling"), Batch(torch.zeros(3, 3)), torch.Generator())
