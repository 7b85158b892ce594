"""Members trained together: each is what it would be alone, whichever way they are computed."""

from functools import partial

import numpy as np
import pytest
import torch
from properties import randomise
from toy_flow import ToyFlow
from training_cases import FAST, banana, parameters, split

from sbi_flows.flows import maf, nsf, realnvp
from sbi_flows.losses import Batch, nll
from sbi_flows.training import ArraySource, train
from sbi_flows.training.stacking import StackedFlows


@pytest.mark.parametrize("members", [2, 3])
def test_one_bad_member_does_not_touch_the_others(members):
    flows = [ToyFlow(seed=s) for s in range(members)]
    with torch.no_grad():
        flows[1].w1.fill_(torch.nan)
    history = train(flows, split(banana(300)), **FAST)
    assert torch.isfinite(parameters(flows[0])).all() and history.best_epoch[0] >= 0
    assert f"1 of {members} members" in history.reliability.reasons[0]


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("members", [2, 3])  # called in turn, and under vmap
def test_stacked_losses_and_gradients_are_those_of_each_member(members, context):
    flows = [ToyFlow(3, 2 * context, seed=s, dtype=torch.float64) for s in range(members)]
    x = torch.randn(members, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(x, x[..., :2].clone() if context else None, None)
    singly, gradients = [], []
    for m, flow in enumerate(flows):
        rows = nll(flow, Batch(x[m], None if batch.context is None else batch.context[m]), None)
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(rows.mean(), list(flow.parameters()))]))
        singly.append(rows.detach())
    stack = StackedFlows(flows, nll)
    together = stack.losses(batch, torch.Generator())
    stack.backward(together.mean(1))
    torch.testing.assert_close(together.detach(), torch.stack(singly))
    torch.testing.assert_close(stack.gradient, torch.stack(gradients))


STACKABLE = {
    "nsf": partial(nsf, layers=3, hidden=(8, 8), bins=4),
    "one hidden layer": partial(nsf, layers=2, hidden=(8,), bins=4),
    "coupling": partial(nsf, layers=2, hidden=(8, 6), bins=4, autoregressive=False),
    "maf": partial(maf, layers=2, hidden=(8, 8)),
    "realnvp on angles": partial(realnvp, layers=2, hidden=(8,), support=["real", "circular", (0, 1)]),
    "student-t": partial(nsf, layers=1, hidden=(8,), base={"name": "student-t", "df": 3}),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", STACKABLE)
def test_flows_together_are_flows_apart(name, context, shared):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 9, 3, generator=generator, dtype=torch.float64)
    x[0, 0, 2] = 1.5  # outside, where there is an end
    given = torch.randn(3, 9, context, generator=generator, dtype=torch.float64) if context else None
    flows = [randomise(STACKABLE[name](3, context, generator=generator).double(), 0.3, seed) for seed in range(3)]
    for flow in flows:
        flow.fit_scaling(x[1], None if given is None else given[1])
    batch = Batch(x[0], None if given is None else given[0], None) if shared else Batch(x, given, None)
    own = [batch] * 3 if shared else [Batch(x[m], None if given is None else given[m], None) for m in range(3)]
    singly, gradients = [], []
    for flow, rows in zip(flows, own, strict=True):
        losses = nll(flow, rows, generator)
        finite = torch.isfinite(losses)
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(losses[finite].sum(), list(flow.parameters()))]))
        singly.append(losses.detach())
    stack = StackedFlows(flows, nll)
    assert stack.how == "together"
    together = stack.losses(batch, generator)
    torch.testing.assert_close(together.detach(), torch.stack(singly))
    with torch.no_grad():
        torch.testing.assert_close(stack.losses(batch, generator), together.detach())
    stack.backward(torch.where(torch.isfinite(together), together, 0.0).sum(1))
    torch.testing.assert_close(stack.gradient, torch.stack(gradients))
    stack.write(stack.values + 1)
    torch.testing.assert_close(parameters(flows[2]), stack.values[2])


def test_flows_that_differ_in_more_than_parameters_are_mapped_or_called_in_turn():
    flows = [maf(2, layers=1, hidden=(4,)) for _ in range(3)]
    flows[1].fit_scaling(torch.randn(50, 2))
    assert StackedFlows(flows, nll).how == "vmap"
    assert StackedFlows(flows[:2], nll).how == "in turn"
    trained_base = [maf(2, layers=1, hidden=(4,), base="mixture") for _ in range(3)]
    assert StackedFlows(trained_base, nll).how == "vmap"


@pytest.mark.parametrize("members", [2, 3])
def test_members_together_are_members_apart(members):
    x = banana(400)
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(400), (members, 1)), axis=1)
    together, apart = ([ToyFlow(seed=s, dtype=torch.float64) for s in range(members)] for _ in range(2))
    steps = {
        "max_epochs": 5,
        "batch_size": 300,
        "random_state": 0,
        "clip_norm": 0.5,
    }  # one batch an epoch: its order is no matter
    history = train(together, ArraySource(x, train_rows=rows[:, :300], validation_rows=rows[:, 300:]), **steps)
    for m, flow in enumerate(apart):
        alone = train(flow, ArraySource(x, train_rows=rows[m, :300], validation_rows=rows[m, 300:]), **steps)
        torch.testing.assert_close(parameters(together[m]), parameters(flow))
        np.testing.assert_allclose(history.validation_loss[:, m], alone.validation_loss[:, 0])


def test_members_must_be_alike():
    with pytest.raises(ValueError, match="flow 1 differs from flow 0"):
        train([ToyFlow(2), ToyFlow(3)], split(banana(100)), **FAST)


def test_losses_may_draw_noise():
    def noisy(flow, batch, generator):
        return nll(flow, Batch(batch.x + 0.1 * torch.randn(batch.x.shape, generator=generator)), generator)

    histories = [train([ToyFlow(), ToyFlow(), ToyFlow()], split(banana(300)), loss=noisy, **FAST) for _ in range(2)]
    np.testing.assert_array_equal(histories[0].train_loss, histories[1].train_loss)


def test_row_indices_must_fit_the_members():
    with pytest.raises(ValueError, match=r"shape \(rows,\) or \(3, rows\) for 3 flows; got \(2, 10\)"):
        train([ToyFlow(), ToyFlow(), ToyFlow()], ArraySource(banana(20), train_rows=np.zeros((2, 10), int)), **FAST)
