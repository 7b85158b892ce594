"""Continuous flows: exact divergences, honest errors also in strong fields, torus, losses, and a trained density that is right."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from properties import midpoints, randomise
from torch.func import functional_call, stack_module_state, vmap

from sbi_flows import ConditionalFlow, FlowDensity
from sbi_flows.bijections.paths import PATHS
from sbi_flows.flows import build, cnf, nsf
from sbi_flows.losses import Batch, denoising_score_matching, flow_matching
from sbi_flows.training import ArraySource, train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def strong(features=2, strength=3.0, context=0, support=None, **options):
    """A flow that bends hard: it moves points by about their own size several times over."""
    flow = cnf(features, context, layers=1, hidden=(24, 24), embedding=8, support=support, generator=generator(1), **options).double()
    net = flow.bijection.net
    with torch.no_grad():
        net.out_weight.copy_(strength / math.sqrt(net.out_weight.shape[1]) * normal(*net.out_weight.shape, seed=2))
    return flow


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("circular", [(), (1,), (0, 1, 2)])
def test_divergence_is_the_trace_of_the_jacobian(circular, path):
    support = ["circular" if i in circular else "real" for i in range(3)]
    flow = randomise(cnf(3, 2, hidden=(12, 10), path=path, support=support, generator=generator()).double(), 0.3).bijection
    x, context, t = normal(6, 3), normal(6, 2, seed=1), torch.tensor(0.3).double()
    velocity, divergence = flow.velocity_and_divergence(t, x, context)
    torch.testing.assert_close(velocity, flow.velocity(t, x, context), rtol=0, atol=1e-12)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda row, i=i: flow.velocity(t, row[None], context[i : i + 1])[0], x[i])
        torch.testing.assert_close(divergence[i], jacobian.trace(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("circular", [(0,), (0, 1)])
def test_the_field_lives_on_the_torus(circular):
    support = ["circular" if i in circular else "real" for i in range(2)]
    flow = strong(support=support).bijection
    x, turn = normal(9, 2), torch.zeros(2).double()
    turn[list(circular)] = 2 * math.pi
    torch.testing.assert_close(flow.velocity(torch.tensor(0.4), x), flow.velocity(torch.tensor(0.4), x + turn), rtol=0, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_preconditioning_is_exact_for_gaussian_data(path):
    """Data of unit variance: a net of zero is right, and what a net must predict has unit variance."""
    t = torch.linspace(0.01, 0.99, 7, dtype=torch.float64)
    alpha, sigma, d_alpha, d_sigma = PATHS[path].coefficients(t)
    drift, gain, scale = PATHS[path].preconditioning(t)
    # Regression of d_alpha data + d_sigma noise on alpha data + sigma noise.
    torch.testing.assert_close(drift, (alpha * d_alpha + sigma * d_sigma) / (alpha.square() + sigma.square()))
    rest = (d_alpha - drift * alpha).square() + (d_sigma - drift * sigma).square()
    torch.testing.assert_close(gain.square(), rest)
    torch.testing.assert_close(scale.square() * (alpha.square() + sigma.square()), torch.ones_like(t))
    flow = cnf(2, path=path).double()
    x = normal(50, 2)
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(x), rtol=0, atol=1e-6)


def reference(flow, x, times_finer):
    """The log-density on a grid so many times finer than the first."""
    fine = build(flow.spec).double()
    fine.load_state_dict(flow.state_dict())
    fine.bijection.tolerance, fine.bijection.steps = None, times_finer * flow.bijection.steps
    return fine.log_prob(x)


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_errors_are_honest_and_within_tolerance(strength):
    flow = strong(strength=strength)
    with torch.no_grad():
        x = flow.sample(150, generator=generator())
        log_prob, error = flow.log_prob(x), flow.log_prob_error(x)
        true = (log_prob - reference(flow, x, 40)).abs()
        moved = (flow.to_base(x)[0] - x).norm(dim=1).mean()
    assert moved > (0.2 if strength == 1 else 1)
    assert (error <= 1e-3).all()
    # The estimate is that of the poorer of two solutions: one row in fifty may be worse than it says, by a factor of three at most.
    assert (true <= error + 1e-9).double().mean() > 0.98 and (true <= 3 * error + 1e-9).all()


def test_too_few_steps_are_noticed():
    flow = strong(strength=5.0, steps=2)
    flow.bijection.tolerance = math.inf
    x = 2 * normal(100, 2)
    with torch.no_grad():
        error, true = flow.log_prob_error(x), (flow.log_prob(x) - reference(flow, x, 30)).abs()
    assert true.median() > 1e-2
    assert (true <= 3 * error).double().mean() > 0.95


def spread_of_draws(flow):
    """Midpoints over the box of 2000 draws and an eighth more at either end, and the area of a cell."""
    x = flow.sample(2000, generator=generator(7))
    low, high = x.amin(0), x.amax(0)
    axes = [midpoints(a - (b - a) / 8, b + (b - a) / 8, 70) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return axes, math.prod((axis[1] - axis[0]).item() for axis in axes)


def test_integral_is_one_in_a_strong_field():
    flow = strong(strength=2.0)
    axes, area = spread_of_draws(flow)
    with torch.no_grad():
        log_prob = flow.log_prob(torch.cartesian_prod(*axes))
    assert abs(log_prob.exp().sum().item() * area - 1) < 1e-3


def test_integral_is_one_on_a_circle_and_an_interval():
    flow = strong(strength=0.5, support=["circular", (-1, 2)])
    x, y = midpoints(-math.pi, math.pi, 90), midpoints(-7, 7, 90)
    inside, log_jacobian = -1 + 3 * torch.special.ndtr(y), math.log(3 / math.sqrt(2 * math.pi)) - 0.5 * y.square()
    with torch.no_grad():
        log_prob = flow.log_prob(torch.cartesian_prod(x, inside)).view(90, 90) + log_jacobian
        seam = flow.log_prob(torch.tensor([[-math.pi, 0.3], [math.pi, 0.3]], dtype=torch.float64))
    assert abs(log_prob.exp().sum().item() * (x[1] - x[0]).item() * (y[1] - y[0]).item() - 1) < 1e-3
    torch.testing.assert_close(seam[0], seam[1], rtol=0, atol=1e-9)


def test_a_row_alone_or_among_others():
    flow = strong(strength=1.5, context=1)
    x, context = normal(4096, 2), normal(4096, 1, seed=1)
    with torch.no_grad():
        among = flow.log_prob(x, context)
        for i in (0, 1234, 4095):
            assert abs(flow.log_prob(x[i : i + 1], context[i : i + 1]) - among[i]).item() < 1e-6


def test_draws_and_their_densities_come_from_one_solve():
    flow = strong(strength=2.0, support=["circular", "real"], tolerance=1e-6)
    calls = []
    inverse, forward = flow.bijection.inverse_and_log_det, flow.bijection.forward_and_log_det
    flow.bijection.inverse_and_log_det = lambda *a: calls.append("inverse") or inverse(*a)
    flow.bijection.forward_and_log_det = lambda *a: calls.append("forward") or forward(*a)
    x, log_prob = flow.sample_and_log_prob(300, generator=generator())
    assert calls == ["inverse"]
    torch.testing.assert_close(flow.log_prob(x).detach(), log_prob, rtol=0, atol=1e-4)
    assert (x[:, 0].abs() <= math.pi).all()


def test_chosen_steps_hold_the_tolerance_and_travel_with_the_weights():
    weak, hard = strong(strength=0.3), strong(strength=2.0)
    x = normal(80, 2)
    for flow in (weak, hard):
        flow.choose_steps(x)
        assert (flow.log_prob_error(x) <= 1e-3).all()
    assert weak.bijection.steps < hard.bijection.steps
    again = build(hard.spec).double()
    again.load_state_dict(hard.state_dict())
    assert again.bijection.steps == hard.bijection.steps and torch.equal(again.log_prob(x), hard.log_prob(x))


@pytest.mark.parametrize("loss", [flow_matching, denoising_score_matching, partial(flow_matching, time_exponent=2.0)])
def test_losses_under_stacked_members_draw_noise_of_their_own(loss):
    members = [randomise(cnf(2, 1, hidden=(8, 8), generator=generator(i)), 0.1) for i in range(3)]
    batch = Batch(normal(64, 2).float(), normal(64, 1, seed=1).float())
    parameters, buffers = stack_module_state(members)

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = members[0]

        def forward(self, batch, generator):
            return loss(self.flow, batch, generator)

    def one(p, b):
        names = ({f"flow.{k}": v for k, v in p.items()}, {f"flow.{k}": v for k, v in b.items()})
        return functional_call(Call(), names, (batch, generator_))

    generator_ = generator(3)
    each = vmap(one, randomness="different")(parameters, buffers)
    assert each.shape == (3, 64) and torch.isfinite(each).all() and not torch.equal(each[0], each[1])
    assert torch.equal(loss(members[0], batch, generator(3)), loss(members[0], batch, generator(3)))


def test_score_and_flow_matching_agree_on_the_best_net():
    """For unit normal data the zero net is best: then the velocity's spread is 1/(t^2 + (1-t)^2), and the noise's t^2 over that."""
    x = normal(50_000, 2).float()
    flow = cnf(2)
    t = midpoints(0, 1, 1000)
    spread = 1 / (t.square() + (1 - t).square())
    for loss, expected in ((flow_matching, spread.mean()), (denoising_score_matching, (t.square() * spread).mean())):
        rows = loss(flow, Batch(x), generator())
        assert abs(rows.mean() - expected) < 5 * rows.std() / math.sqrt(len(rows))  # false alarm 6e-7


def mixture(n, seed):
    """Two normals of standard deviation .4 at +-1.5, and which of them."""
    g = generator(seed)
    mode = (torch.rand(n, generator=g, dtype=torch.float64) < 0.3).double()
    x = 3 * mode - 1.5 + 0.4 * torch.randn(n, generator=g, dtype=torch.float64)
    return x[:, None], mode


def test_matching_learns_a_mixture():
    """A fit of 8000 rows: within .06 nats of the truth on average, modes weighed within 5 sigma and .02; errors are integration's."""
    x, _ = mixture(8000, 0)
    density = FlowDensity(flow="cnf", layers=1, hidden=(32, 32), max_epochs=30, random_state=0, device="cpu").fit(x.numpy())
    test, _ = mixture(2000, 1)
    modes = [w * torch.exp(-0.5 * ((test[:, 0] - m) / 0.4).square()) for w, m in ((0.7, -1.5), (0.3, 1.5))]
    truth = torch.log(sum(modes) / (0.4 * math.sqrt(2 * math.pi)))
    gap = truth.mean().item() - density.score(test.numpy())
    assert -0.02 < gap < 0.06
    assert density.history_.loss == "flow_matching" and density.history_.reliability.ok
    draws = density.sample(2000, random_state=0)
    assert abs((draws > 0).mean() - 0.3) < 5 * math.sqrt(0.21 / 2000) + 0.02
    assert (density.flow_.log_prob_error(test) <= 1e-3).all()


@pytest.mark.parametrize("flow", ["cnf", "score"])
def test_conditional_estimators(flow, tmp_path):
    rng = np.random.default_rng(0)
    context = rng.normal(size=(3000, 1))
    y = np.exp(0.5 * context) * (1 + 0.2 * rng.normal(size=(3000, 1)))
    model = ConditionalFlow(flow=flow, layers=1, hidden=(32, 32), max_epochs=15, random_state=0, device="cpu").fit(context, y)
    draws = model.sample(np.array([[-1.0], [1.0]]), 2000, random_state=1)
    np.testing.assert_allclose(draws.mean(axis=(1, 2)), np.exp([-0.5, 0.5]), rtol=0.05)
    np.testing.assert_allclose(draws.std(axis=(1, 2)), 0.2 * np.exp([-0.5, 0.5]), rtol=0.3)
    model.save(tmp_path / "model")
    again = ConditionalFlow.load(tmp_path / "model")
    assert np.array_equal(again.log_prob(context[:50], y[:50]), model.log_prob(context[:50], y[:50]))
    assert again.history_.loss == {"cnf": "flow_matching", "score": "denoising_score_matching"}[flow]


def test_an_embedding_trains_along():
    x, mode = mixture(400, 0)
    embedding = torch.nn.Linear(1, 2)
    before = embedding.weight.detach().clone()
    model = ConditionalFlow(flow="cnf", layers=1, hidden=(8, 8), embedding=embedding, max_epochs=2, random_state=0, device="cpu")
    model.fit(mode.numpy()[:, None] + x.numpy(), x.numpy())
    assert not torch.equal(model.flow_.embedding.weight, before)


def test_validation_noise_is_the_same_every_epoch():
    x = normal(400, 2).numpy()
    flow = cnf(2, layers=1, hidden=(8, 8))
    source = ArraySource(x, train_rows=np.arange(200), validation_rows=np.arange(200, 400))
    history = train(flow, source, loss=flow_matching, max_epochs=4, learning_rate=1e-12, weight_decay=0.0, random_state=0)
    assert np.ptp(history.validation_loss) < 1e-5 and np.ptp(history.train_loss) > 1e-4


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: cnf(2, hidden=(16,)), "two hidden layers"),
        (lambda: cnf(2, path="curved"), "straight"),
        (lambda: cnf(2, steps=0), "integration step"),
        (lambda: cnf(2, layers=0), "at least one layer"),
        (lambda: flow_matching(cnf(2), Batch(torch.zeros(4, 2)), generator(), time_exponent=-1.0), "time_exponent"),
        (lambda: denoising_score_matching(cnf(1, support="circular"), Batch(torch.zeros(4, 1)), generator()), "circular"),
        (lambda: cnf(2).log_prob(torch.zeros(2)), r"x\[None\]"),
    ],
)
def test_messages(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_only_continuous_flows_have_a_velocity():
    with pytest.raises(TypeError, match="continuous flow"):
        nsf(2).velocity(torch.tensor(0.5), torch.zeros(1, 2))
