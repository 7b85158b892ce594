import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from properties import randomise
from toy_flow import ToyFlow

from sbi_flows.flows import maf, nsf, realnvp
from sbi_flows.losses import Batch, nll
from sbi_flows.training import ArraySource, BlockSource, SimulatorSource, hdf5_arrays, rows_of, train, zarr_arrays
from sbi_flows.training.schedules import SCHEDULES
from sbi_flows.training.stacking import StackedFlows


def banana(n, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 2))
    x[:, 1] += x[:, 0] ** 2
    return x


def split(x, **kwargs):
    n = len(x)
    return ArraySource(x, train_rows=np.arange(n - n // 10), validation_rows=np.arange(n - n // 10, n), **kwargs)


def parameters(flow):
    return torch.cat([p.detach().reshape(-1) for p in flow.parameters()])


FAST = {"max_epochs": 4, "batch_size": 100, "random_state": 0}


# ------------------------------------------------------------------------------------------------------------ what training does


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
    from sbi_flows.training.loop import _epochs, _steps_per_epoch

    n_steps = _steps_per_epoch(n_rows, "auto")
    assert n_steps == max(1, round(n_rows / batch)) and _epochs(n_rows, n_steps, "auto") == epochs


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


# ------------------------------------------------------------------------------------------------------------- non-finite losses


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


@pytest.mark.parametrize("members", [2, 3])
def test_one_bad_member_does_not_touch_the_others(members):
    flows = [ToyFlow(seed=s) for s in range(members)]
    with torch.no_grad():
        flows[1].w1.fill_(torch.nan)
    history = train(flows, split(banana(300)), **FAST)
    assert torch.isfinite(parameters(flows[0])).all() and history.best_epoch[0] >= 0
    assert f"1 of {members} members" in history.reliability.reasons[0]


def test_validation_rows_without_density_are_reported():
    def loss(flow, batch, generator):
        rows = nll(flow, batch, generator)
        return torch.where((batch.x[:, 0] > 5) & (not torch.is_grad_enabled()), torch.inf, rows)

    x = banana(300)
    x[290] = 6.0
    history = train(ToyFlow(), split(x), loss=loss, **FAST)
    assert "1 validation rows have no finite density" in history.reliability.reasons[0]


# ------------------------------------------------------------------------------------------------------------- members together


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


# --------------------------------------------------------------------------------------------------------------------- sources


def test_an_epoch_shows_every_row_once():
    source = ArraySource(np.arange(60.0)[:, None], train_rows=np.arange(50), validation_rows=np.arange(50, 60))
    batches = list(source.epoch(1, 5, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat([b.x for b in batches])[:, 0].tolist()) == list(range(50))
    assert [b.x[:, 0].tolist() for b in source.validation(1)] == [list(range(50, 60))]


def test_members_see_their_own_rows_only():
    rows = np.stack([np.arange(30), np.arange(20, 50)])
    source = ArraySource(np.arange(60.0)[:, None], train_rows=rows, validation_rows=np.array([[59], [0]]))
    x = torch.cat([b.x for b in source.epoch(2, 3, torch.Generator().manual_seed(0))], dim=1)
    assert [sorted(part[:, 0].tolist()) for part in x] == rows.tolist()
    assert next(source.validation(2)).x[:, 0, 0].tolist() == [59, 0]


def test_simulator_source_never_repeats():
    flow = ToyFlow()

    def simulate(n, generator):
        x = torch.randn(n, 2, generator=generator)
        return torch.stack([x[:, 0], x[:, 1] + x[:, 0] ** 2], dim=1)

    source = SimulatorSource(simulate, n_rows=1000)
    history = train(flow, source, max_epochs=10, batch_size=100, learning_rate=1e-2, random_state=0)
    assert history.validation_loss[-1, 0] < history.validation_loss[0, 0]
    batches = [b.x for b in source.epoch(1, 10, torch.Generator().manual_seed(0))]
    assert len(torch.unique(torch.cat(batches), dim=0)) == 1000


def test_rows_of_an_iterator():
    chunks = iter([(np.zeros((3, 2)), np.ones((3, 1))), (np.full((3, 2), 5.0), np.ones((3, 1)))])
    simulate = rows_of(chunks)
    batch = simulate(4, None)
    assert batch.x[:, 0].tolist() == [0, 0, 0, 5] and batch.context.shape == (4, 1)
    with pytest.raises(ValueError, match="Expected an endless iterator; it ended"):
        simulate(4, None)


def stored(kind, path, x, context):
    if kind == "memmap":
        np.save(path / "x.npy", x)
        np.save(path / "c.npy", context)
        return np.load(path / "x.npy", mmap_mode="r"), np.load(path / "c.npy", mmap_mode="r")
    if kind == "hdf5":
        import h5py

        with h5py.File(path / "f.h5", "w") as file:
            file["x"], file["c"] = x, context
        return hdf5_arrays(path / "f.h5", "x", "c")
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path / "f.zarr"), mode="w")
    group["x"], group["c"] = x, context
    return zarr_arrays(path / "f.zarr", "x", "c")


@pytest.mark.parametrize("kind", ["memmap", "hdf5", "zarr"])
def test_arrays_on_disk(tmp_path, kind):
    x = np.arange(1000.0)[:, None]
    source = BlockSource(*stored(kind, tmp_path, x, -x), block_rows=64, blocks_in_memory=4)
    batches = list(source.epoch(1, 8, torch.Generator().manual_seed(0)))
    seen = torch.cat([b.x for b in batches])[:, 0]
    held_out = torch.cat([b.x for b in source.validation(1)])[:, 0]
    assert len(batches) == 8 and all(len(b.x) == source.n_rows // 8 for b in batches)
    assert torch.equal(torch.cat([b.context for b in batches])[:, 0], -seen)
    assert len(torch.unique(seen)) == len(seen) >= source.n_rows - 7
    assert not set(seen.tolist()) & set(held_out.tolist()) and len(held_out) + source.n_rows == 1000
    assert (seen[1:] < seen[:-1]).float().mean() > 0.4  # shuffled
    sums = [torch.cat([b.x for b in source.epoch(1, 8, torch.Generator().manual_seed(s))])[:5, 0].tolist() for s in (0, 0, 1)]
    assert sums[0] == sums[1] != sums[2]
    assert len(source.sample(100).x) == 100


def test_training_from_disk_resumes_to_the_same_bits(tmp_path):
    np.save(tmp_path / "x.npy", banana(600).astype(np.float32))
    source = BlockSource(np.load(tmp_path / "x.npy", mmap_mode="r"), weights=np.ones(600), block_rows=32, blocks_in_memory=3)
    flows, steps = [ToyFlow(), ToyFlow()], {**FAST, "checkpoint_seconds": 0}

    def fail(report):
        if report.epoch == 3:
            raise RuntimeError("stop")

    train(flows[0], source, **steps)
    with pytest.raises(RuntimeError, match="stop"):
        train(ToyFlow(), source, checkpoint=tmp_path / "c", callbacks=[fail], **steps)
    train(flows[1], source, checkpoint=tmp_path / "c", **{**steps, "random_state": 77})
    assert torch.equal(parameters(flows[0]), parameters(flows[1]))


def test_disk_errors(tmp_path):
    stored("hdf5", tmp_path, np.zeros((5, 2)), np.zeros((5, 1)))
    with pytest.raises(ValueError, match=r"no 'theta'\. It holds 'c', 'x'"):
        hdf5_arrays(tmp_path / "f.h5", "theta")
    with pytest.raises(FileNotFoundError, match="Expected an HDF5 file"):
        hdf5_arrays(tmp_path / "no.h5", "x")
    with pytest.raises(FileNotFoundError, match="Expected a Zarr group"):
        zarr_arrays(tmp_path / "no.zarr", "x")
    with pytest.raises(ValueError, match="Expected context with one row for each of the 5 rows of x; got 4"):
        BlockSource(np.zeros((5, 2)), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"Expected validation_fraction in \[0, 1\); got 1"):
        BlockSource(np.zeros((5, 2)), validation_fraction=1)


def test_zarr_is_optional(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'sbi_flows\[zarr\]'"):
        zarr_arrays(tmp_path, "x")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": np.zeros(5)}, r"Expected x of shape \(n, d\); got \(5,\)\. For one column pass x\[:, None\]"),
        (
            {"x": np.zeros((5, 2)), "context": np.zeros((4, 1))},
            "Expected context with one row for each of the 5 rows of x; got 4",
        ),
        ({"x": np.zeros((5, 2)), "train_rows": [0, 9]}, r"Expected train_rows within 0 \.\. 4; got 0 \.\. 9"),
        ({"x": np.zeros((5, 2)), "train_rows": [0.5]}, "Expected train_rows to be row numbers"),
        ({"x": np.zeros((0, 2))}, "at least one training row"),
        ({"x": np.array([["a"]])}, "Expected x to hold real numbers"),
    ],
)
def test_array_source_errors(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ArraySource(**kwargs)


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


def test_row_indices_must_fit_the_members():
    with pytest.raises(ValueError, match=r"shape \(rows,\) or \(3, rows\) for 3 flows; got \(2, 10\)"):
        train([ToyFlow(), ToyFlow(), ToyFlow()], ArraySource(banana(20), train_rows=np.zeros((2, 10), int)), **FAST)


# ---------------------------------------------------------------------------------------------------------- checkpoint and resume

SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import numpy as np, torch
torch.set_num_threads(1)
from test_training import banana, parameters, split
from toy_flow import ToyFlow
from sbi_flows.training import train
from safetensors.torch import save_file

checkpoint, result, delay = sys.argv[1] or None, sys.argv[2], float(sys.argv[3])
flows = [ToyFlow(seed=s) for s in range(3)]
history = train(flows, split(banana(400)), max_epochs=12, batch_size=50, random_state=3,
                checkpoint=checkpoint, checkpoint_seconds=0, callbacks=[lambda report: time.sleep(delay)])
save_file({{"p": torch.stack([parameters(f) for f in flows]), "v": torch.tensor(history.validation_loss),
           "t": torch.tensor(history.train_loss), "steps": torch.tensor([history.n_steps])}}, result)
"""


def test_kill_dash_nine_and_resume_gives_the_same_bits(tmp_path):
    from safetensors.torch import load_file

    script, checkpoint = tmp_path / "fit.py", tmp_path / "fit.checkpoint"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def command(path, result, delay):
        return [sys.executable, str(script), str(path), str(tmp_path / result), str(delay)]

    uninterrupted = subprocess.Popen(command("", "whole", 0), env=environment)
    killed = subprocess.Popen(command(checkpoint, "killed", 0.2), env=environment)
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # some epochs further, at an arbitrary moment
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert checkpoint.exists() and not (tmp_path / "killed").exists()
    subprocess.run(command(checkpoint, "resumed", 0), env=environment, check=True)
    assert uninterrupted.wait() == 0
    whole, resumed = load_file(tmp_path / "whole"), load_file(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("after", [1, 3])
def test_resume_after_an_exception_gives_the_same_bits(tmp_path, after):
    def fail(report):
        if report.epoch == after:
            raise RuntimeError("the machine was needed elsewhere")

    whole, resumed = ToyFlow(), ToyFlow(seed=5)
    steps = {**FAST, "checkpoint_seconds": 0}
    expected = train(whole, split(banana(300)), **steps)
    with pytest.raises(RuntimeError, match="needed elsewhere"):
        train(ToyFlow(), split(banana(300)), checkpoint=tmp_path / "c", callbacks=[fail], **steps)
    history = train(resumed, split(banana(300)), checkpoint=tmp_path / "c", **{**steps, "random_state": 8})
    assert torch.equal(parameters(whole), parameters(resumed)) == (after > 1)  # nothing was saved before the first epoch's end
    assert (history.validation_loss == expected.validation_loss).all() == (after > 1)


def test_a_finished_checkpoint_gives_its_result_back(tmp_path):
    first, second = ToyFlow(), ToyFlow(seed=9)
    history = train(first, split(banana(300)), checkpoint=tmp_path / "c", **FAST)
    again = train(second, split(banana(300)), checkpoint=tmp_path / "c", **FAST)
    assert torch.equal(parameters(first), parameters(second))
    np.testing.assert_array_equal(history.validation_loss, again.validation_loss)
    assert again.stopped == "max_epochs" and again.seconds == history.seconds


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    train(ToyFlow(), split(banana(300)), checkpoint=tmp_path / "c", **FAST)
    with pytest.raises(ValueError, match=r"holds another fit: max_epochs was 4 and is 5.*Delete it to start afresh"):
        train(ToyFlow(), split(banana(300)), checkpoint=tmp_path / "c", **{**FAST, "max_epochs": 5})
    with pytest.raises(ValueError, match="source was"):
        train(ToyFlow(), split(banana(300, seed=1)), checkpoint=tmp_path / "c", **FAST)
    with pytest.raises(ValueError, match="does not fit the model it describes: values has shape"):
        train(ToyFlow(hidden=8), split(banana(300)), checkpoint=tmp_path / "c", **FAST)


# ------------------------------------------------------------------------------------------------------------------------- device


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
