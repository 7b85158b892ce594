"""Two processes fit as one does: the same losses and weights within rounding; one that dies ends the other with a message and a file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_flow import ToyFlow
from training_cases import banana, parameters, split

from sbi_flows import NPE, ConditionalFlow
from sbi_flows.distributions import BoxUniform
from sbi_flows.training import ArraySource, train
from sbi_flows.training.processes import Processes, _Share

SCRIPT = """
import os, sys
sys.path[:0] = {folders!r}
import numpy as np, torch, torch.distributed as dist
torch.set_num_threads(1)
from test_processes import MEET, banana, fit, npe_fit, saved
rank, meeting, out, scenario = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=MEET(meeting), rank=rank, world_size=2)

def die(report):
    if rank == 1 and report.epoch == 4:
        os._exit(9)

if scenario == "killed":
    fit(out + ".checkpoint", callbacks=[die])
else:
    saved(fit(), out + f".whole{{rank}}")
    saved(fit(out + ".checkpoint"), out + f".resumed{{rank}}")
    saved(npe_fit(), out + f".npe{{rank}}")
    try:
        fit(x=banana(400 + 10 * rank))
    except ValueError as error:
        print("REFUSED", error)
    try:
        fit(x=banana(403)[::1 - 2 * rank].copy())
    except ValueError as error:
        print("ORDER REFUSED", error)
    try:
        fit(callbacks=[lambda report: rank == 1 and report.epoch == 2], say=True)
    except ValueError as error:
        print("REFUSED", error)
dist.destroy_process_group()
"""


def MEET(path):
    return f"file://{path}"


def fit(checkpoint=None, callbacks=(), x=None, say=False):
    """Float64, batches that two processes cannot halve (45 rows), 33 validation rows, two members, sample weights."""
    x = banana(403) if x is None else x
    weights = np.linspace(0.5, 1.5, len(x))
    n = len(x)
    source = ArraySource(x, weights=weights, train_rows=np.arange(n - 33), validation_rows=np.arange(n - 33, n), validation_batch_size=16)
    flows = [ToyFlow(seed=s).double() for s in range(2)]
    history = train(
        flows, source, max_epochs=8, batch_size=45, random_state=3, checkpoint=checkpoint, checkpoint_seconds=0, callbacks=callbacks
    )
    if say:
        print("EPOCHS", len(history.train_loss))
    return history, torch.stack([parameters(flow) for flow in flows])


def npe_fit():
    """The public face; each process starts from other weights of its own, were they not given those of the first."""
    prior = BoxUniform([-1.0], [1.0])
    theta = np.linspace(-0.99, 0.99, 300)[np.random.default_rng(0).permutation(300)][:, None]
    x = theta + 0.3 * np.random.default_rng(1).normal(size=theta.shape)
    npe = NPE(prior, ConditionalFlow(layers=1, hidden=(8,), max_epochs=3, dtype="float64"), random_state=0).fit(theta, x)
    return npe.history_, torch.cat([value.double().flatten() for value in npe.estimator_.flow_.state_dict().values()])


def saved(result, path):
    from safetensors.torch import save_file

    history, values = result
    losses = {"train": torch.tensor(history.train_loss), "validation": torch.tensor(history.validation_loss)}
    save_file({"values": values.contiguous(), **losses}, path)


def run_two(folder, scenario):
    """Both processes to their end: ``(status, what they said)`` of each."""
    script = folder / "fit.py"
    script.write_text(SCRIPT.format(folders=[str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1])]))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder / f"meeting-{scenario}"), str(folder / "fit"), scenario],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.filterwarnings("ignore:[A-Za-z].*:UserWarning")  # of few simulations
def test_two_processes_are_one_with_the_joint_batch_and_go_on_after_a_death(tmp_path):
    """In float64 only the order of sums differs: 1e-10 of losses of order one, 1e-9 of weights after 64 steps."""
    (status, said), (killed, _) = run_two(tmp_path, "killed")
    assert killed == 9 and status == 1
    assert "ConnectionError: Process 0 of 2 lost another one in the middle of a fit" in said and "checkpoint=" in said
    assert (tmp_path / "fit.checkpoint").exists()

    finished = run_two(tmp_path, "whole")
    assert [status for status, _ in finished] == [0, 0], finished[0][1] + finished[1][1]
    for _, said in finished:
        assert "REFUSED Expected the same data and settings in each of the 2 processes" in said
        assert "ORDER REFUSED Expected the same data" in said
        assert "EPOCHS 2" in said, "what one process's callback asks for ends the fit in all"
    for name, alone in (("whole", fit()), ("resumed", fit()), ("npe", npe_fit())):
        first, second = (load_file(tmp_path / f"fit.{name}{rank}") for rank in range(2))
        history, values = alone
        for key in first:
            assert torch.equal(first[key], second[key]), "both processes end with the same bits"
        np.testing.assert_allclose(first["train"], history.train_loss, rtol=0, atol=1e-10)
        np.testing.assert_allclose(first["validation"], history.validation_loss, rtol=0, atol=1e-10)
        np.testing.assert_allclose(first["values"], values, rtol=0, atol=1e-9)


# --- The parts, in this process -----------------------------------------------------------------------------------------------


def test_shares_are_the_batch():
    x = banana(103)
    source = ArraySource(x, context=x, weights=np.arange(1.0, 104.0), train_rows=np.arange(90), validation_rows=np.arange(90, 103))

    def batches(source, members):
        return [*source.epoch(members, 4, torch.Generator().manual_seed(0)), *source.validation(members)]

    for members in (1, 3):
        whole = batches(source, members)
        shares = [batches(_Share(source, rank, 3), members) for rank in range(3)]
        for k, batch in enumerate(whole):
            for part in range(3):
                axis = 0 if members == 1 else 1
                together = torch.cat([share[k][part] for share in shares], axis)
                assert sorted(together.flatten().tolist()) == sorted(batch[part].flatten().tolist())


def test_a_share_of_nothing_is_left_out():
    source = split(banana(20))  # two validation rows
    assert len(list(_Share(source, 2, 3).validation(1))) == 0
    assert _Share(source, 0, 3).description() == source.description()
    moved = _Share(source, 1, 3).to(torch.device("cpu"), torch.float64)
    assert next(moved.epoch(1, 2, torch.Generator().manual_seed(0))).x.dtype == torch.float64


def test_alone_nothing_is_changed():
    alone = Processes(torch.device("cpu"))
    assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    generator, gradient, losses = torch.Generator(), torch.ones(1, 2), torch.ones(1)
    assert alone.noise(generator, 3) is generator and alone.joint(gradient, losses, 5) is losses
    source = split(banana(20))
    assert alone.share(source) is source and alone.any(True) and not alone.any(False)


def test_noise_is_each_process_and_epochs_own():
    generator = torch.Generator().manual_seed(5)
    drawn = set()
    for rank in range(2):
        processes = Processes(torch.device("cpu"))
        processes.rank, processes.size = rank, 2
        drawn |= {float(torch.rand(1, generator=processes.noise(generator, epoch))) for epoch in range(3)}
    assert len(drawn) == 6


def test_batches_of_fewer_rows_than_processes():
    processes = Processes(torch.device("cpu"))
    processes.size = 8
    with pytest.raises(ValueError, match="at least 8 rows, one a process; got 5"):
        processes.agree({}, 5)


def test_another_choice_of_validation_rows_is_another_fit():
    x = banana(50)
    one, other = (ArraySource(x, train_rows=rows, validation_rows=rows[:5]) for rows in (np.arange(40), np.arange(10, 50)))
    assert one.description() != other.description()
