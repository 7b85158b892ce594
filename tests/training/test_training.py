"""The loop: it finds densities, keeps the best weights, repeats itself, and survives losses that are not finite."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_flow import ToyFlow
from training_cases import FAST, banana, parameters, split

from sbi_flows.losses import nll
from sbi_flows.training import ArraySource, train
from sbi_flows.training.schedules import SCHEDULES


def test_training_finds_the_density():
    flow = ToyFlow()
    history = train(flow, split(banana(2000)), max_epochs=30, batch_size=64, learning_rate=1e-2, random_state=0)
    exact = 2 * (0.5 * np.log(2 * np.pi) + 0.5)
    assert history.reliability.ok
    assert history.validation_loss[history.best_epoch[0], 0] < exact + 0.25 < history.validation_loss[0, 0]
    assert history.stopped == "max_epochs"
    assert history.train_loss.shape == history.validation_loss.shape == (30, 1)
    assert not any(p.grad is not None for p in flow.parameters())


def test_best_validation_weights_are_restored():
    flow, x = ToyFlow(), banana(500)
    history = train(flow, split(x), learning_rate=0.3, schedule="constant", max_epochs=15, batch_size=50, random_state=0)
    rows = torch.tensor(x[450:], dtype=torch.float32)
    best = history.best_epoch[0]
    assert best == np.argmin(history.validation_loss[:, 0]) < 14
    torch.testing.assert_close(-flow.log_prob(rows).mean().item(), history.validation_loss[best, 0], rtol=1e-5, atol=1e-5)


def test_kept_weights_are_the_running_average():
    x, seen = banana(300), []

    def record(report):
        seen.append(None)

    flows = [ToyFlow(), ToyFlow()]
    steps = {**FAST, "max_epochs": 1, "batch_size": 30, "callbacks": [record]}
    train(flows[0], ArraySource(x), averaging=0.0, **steps)
    train(flows[1], ArraySource(x), averaging=0.9, **steps)
    start = parameters(ToyFlow())
    last, averaged = ((parameters(flow) - start).norm() for flow in flows)
    assert seen and 0 < averaged < last


@pytest.mark.parametrize(
    ("n_rows", "batch", "epochs"), [(100, 64, 100), (1000, 64, 62), (10_000, 256, 26), (100_000, 1024, 18), (10**7, 1024, 10)]
)
def test_automatic_lengths(n_rows, batch, epochs):
    from sbi_flows.training.lengths import n_epochs, steps_per_epoch

    n_steps = steps_per_epoch(n_rows, "auto")
    assert n_steps == max(1, round(n_rows / batch)) and n_epochs(n_rows, n_steps, "auto") == epochs


def test_weights_before_training_are_kept_when_training_only_harms():
    flow, x = ToyFlow(), np.zeros((100, 2))
    before = parameters(flow).clone()
    x[:90] += 30  # what is learned from the training rows moves away from the validation rows
    history = train(flow, split(x), patience=3, max_epochs=20, batch_size=10, random_state=0)
    assert torch.equal(parameters(flow), before)
    assert history.best_epoch[0] == -1 and history.stopped == "early stopping" and len(history.learning_rate) == 3
    assert "did not lower the validation loss" in history.reliability.notes[0]


def test_same_seed_same_bits():
    flows = [ToyFlow(), ToyFlow(), ToyFlow()]
    for flow, seed in zip(flows, (0, 0, 1), strict=True):
        train(flow, split(banana(400)), **{**FAST, "random_state": seed})
    assert torch.equal(parameters(flows[0]), parameters(flows[1]))
    assert not torch.equal(parameters(flows[0]), parameters(flows[2]))


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train([ToyFlow(), ToyFlow(seed=1)], split(banana(300)), **FAST)
    assert torch.equal(torch.rand(3), expected)


def test_without_validation_the_last_weights_stay():
    history = train(ToyFlow(), ArraySource(banana(300)), **FAST)
    assert history.best_epoch[0] == 3
    assert np.isnan(history.validation_loss).all()


def test_weights_act_as_repeated_rows():
    x = np.concatenate([banana(300), banana(300) + np.array([4.0, 0.0])])
    weights = np.repeat([3.0, 1.0], 300)
    light, repeated = ToyFlow(), ToyFlow()
    steps = {"max_epochs": 60, "learning_rate": 1e-2, "random_state": 0}
    train(light, ArraySource(x, weights=weights), batch_size=600, **steps)
    train(repeated, ArraySource(np.repeat(x, weights.astype(int), axis=0)), batch_size=1200, **steps)
    torch.testing.assert_close(parameters(light), parameters(repeated), rtol=2e-3, atol=2e-3)


def test_zero_weight_rows_do_not_matter():
    x = banana(200)
    spoiled = np.concatenate([x, np.full((200, 2), 50.0)])
    flow, reference = ToyFlow(), ToyFlow()
    steps = {"max_epochs": 10, "learning_rate": 1e-2, "random_state": 0}
    train(flow, ArraySource(spoiled, weights=np.repeat([1.0, 0.0], 200)), batch_size=400, **steps)
    train(reference, ArraySource(x), batch_size=200, **steps)
    torch.testing.assert_close(parameters(flow), parameters(reference), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule):
    rate = SCHEDULES[schedule]
    values = [rate(done) for done in np.linspace(0, 1, 101)]
    assert max(values) == pytest.approx(1.0) and min(values) > 0
    assert schedule == "constant" or values[-1] == pytest.approx(1e-3)


def test_callbacks_see_every_epoch_and_may_stop():
    seen = []

    def stop_after_two(report):
        seen.append(report)
        return report.epoch == 2

    history = train(ToyFlow(), split(banana(300)), callbacks=[stop_after_two], **FAST)
    assert [r.epoch for r in seen] == [1, 2] and history.stopped == "callback"
    assert seen[1].validation_loss == history.validation_loss[1]


def test_interrupted_fit_leaves_best_weights():
    def interrupt(report):
        if report.epoch == 2:
            raise KeyboardInterrupt

    flow = ToyFlow()
    before = parameters(flow).clone()
    with pytest.raises(KeyboardInterrupt):
        train(flow, split(banana(300)), callbacks=[interrupt], **FAST)
    assert not torch.equal(parameters(flow), before)
    flow.log_prob(torch.zeros(3, 2)).sum().backward()  # the flow is an ordinary module again


def test_progress_bar(capsys):
    train(ToyFlow(), split(banana(300)), progress=True, **FAST)
    assert "4/4" in capsys.readouterr().err


def spoiled_loss(every):
    calls = []

    def loss(flow, batch, generator):
        calls.append(None)
        rows = nll(flow, batch, generator)
        return rows * torch.nan if torch.is_grad_enabled() and len(calls) % every == 0 else rows

    return loss


def test_bad_steps_are_skipped_and_counted():
    flow = ToyFlow()
    history = train(flow, split(banana(1000)), loss=spoiled_loss(4), max_epochs=4, batch_size=50, random_state=0)
    assert 15 <= history.n_skipped <= 18
    assert torch.isfinite(parameters(flow)).all() and np.isfinite(history.train_loss).all()
    assert not history.reliability.ok and "were skipped" in history.reliability.reasons[0]


def test_a_wholly_bad_epoch_ends_the_fit_with_the_best_weights():
    flow = ToyFlow()
    before = parameters(flow).clone()
    history = train(flow, split(banana(300)), loss=spoiled_loss(1), **FAST)
    assert torch.equal(parameters(flow), before)
    assert history.stopped == "non-finite losses" and not history.reliability.ok
    assert "without one finite loss" in str(history.reliability)


def test_validation_rows_without_density_are_reported():
    def loss(flow, batch, generator):
        rows = nll(flow, batch, generator)
        return torch.where((batch.x[:, 0] > 5) & (not torch.is_grad_enabled()), torch.inf, rows)

    x = banana(300)
    x[290] = 6.0
    history = train(ToyFlow(), split(x), loss=loss, **FAST)
    assert "1 validation rows have no finite density" in history.reliability.reasons[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "Expected schedule to be one of 'one-cycle', 'cosine', 'constant'; got 'linear'"),
        ({"max_epochs": 0}, "Expected max_epochs to be a whole number above 0; got 0"),
        ({"batch_size": 2.5}, "Expected batch_size to be a whole number above 0"),
        ({"learning_rate": -1.0}, "Expected learning_rate to be a number above 0"),
        ({"patience": 0}, "Expected patience"),
        ({"clip_norm": float("nan")}, "Expected clip_norm"),
        ({"averaging": 1.0}, r"Expected averaging in \[0, 1\), a share of the steps so far; got 1\.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        train(ToyFlow(), split(banana(100)), **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("members", [1, 3])
def test_a_step_on_the_gpu_waits_for_nothing(members):
    from sbi_flows.training.loop import _Fit

    device = torch.device("cuda")
    flows = [ToyFlow(seed=s).to(device) for s in range(members)]
    source = split(banana(2000), weights=np.ones(2000)).to(device, torch.float32)
    settings = {"learning_rate": 1e-3, "schedule": "one-cycle", "weight_decay": 0.0, "clip_norm": 1.0, "averaging": 0.1}
    fit = _Fit(flows, source, nll, settings, torch.Generator(device).manual_seed(0), None)
    sums = torch.zeros(2, members, dtype=torch.float64, device=device)
    batches = source.epoch(members, 5, fit.generator)
    fit._step(next(batches), 1e-3, sums)  # the first step may initialise libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            fit._step(batch, 1e-3, sums)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (sums[1] == 5).all()


@pytest.mark.gpu
def test_training_on_the_gpu():
    flow = ToyFlow().to("cuda")
    history = train(flow, split(banana(2000)), max_epochs=20, batch_size=64, learning_rate=1e-2, random_state=0)
    assert history.validation_loss[-1, 0] < history.validation_loss[0, 0]


def test_adamw_is_torch_s():
    from sbi_flows.training.adamw import AdamW

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    ours, theirs = start.clone(), start.clone().requires_grad_()
    optimizer, reference = AdamW(ours, 0.1), torch.optim.AdamW([theirs], betas=(0.9, 0.99), weight_decay=0.1)
    for n in range(1, 40):
        gradient, rate = torch.randn(2, 50, generator=generator, dtype=torch.float64), 0.01 * n / (n + 3)
        optimizer.step(gradient, rate, n)
        theirs.grad, reference.param_groups[0]["lr"] = gradient, rate
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-13, atol=1e-13)


def test_a_fit_does_not_import_torch_s_compiler():
    # Its import takes longer than a fit of thousands of rows.
    code = (
        "import sys, numpy as np; from sbi_flows import FlowDensity; "
        "FlowDensity(max_epochs=1).fit(np.random.default_rng(0).normal(size=(300, 2))); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
