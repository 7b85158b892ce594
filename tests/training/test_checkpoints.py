"""Fits that are killed go on to the same bits; a checkpoint of another fit is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_flow import ToyFlow
from training_cases import FAST, banana, parameters, split

from sbi_flows.training import ArraySource, BlockSource, digests, train

SCRIPT = """
import sys, time
sys.path[:0] = {folders!r}
import numpy as np, torch
torch.set_num_threads(1)
from training_cases import banana, parameters, split
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
    script.write_text(SCRIPT.format(folders=[str(folder) for folder in Path(__file__).parents[:2]]))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

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


def test_descriptions_know_order_context_and_weights():
    """A permutation leaves sums as they are, and a first block says nothing of the others."""
    x, weights = banana(600), np.linspace(0.5, 1.5, 600)
    late = x.copy()
    late[400] += 1e-6
    turned = x[::-1].copy(), weights[::-1].copy()
    data = {"same": (x, x, weights), "x": (late, x, weights), "order": (x, turned[0], weights), "weights": (x, x, turned[1])}
    for kind in (ArraySource, lambda *parts: BlockSource(*parts, block_rows=32)):
        expected = kind(x, x, weights).description()
        assert [name for name, parts in data.items() if kind(*parts).description() == expected] == ["same"]
    double, single = (ArraySource(x).to(torch.device("cpu"), dtype).description() for dtype in (torch.float64, torch.float32))
    assert double != single


def test_large_arrays_on_disk_are_known_by_sixteen_parts_and_all_their_weights(monkeypatch):
    monkeypatch.setattr(digests, "_READ_WHOLE", 2**10)  # 64 bytes a part: four rows of two numbers
    x = banana(1000)
    expected = digests.digest_on_disk(x)
    for row, seen in ((0, True), (999, True), (66, True), (30, False)):
        other = x.copy()
        other[row] += 1
        assert (digests.digest_on_disk(other) != expected) == seen
        assert digests.digest_on_disk(other, whole=True) != digests.digest_on_disk(x, whole=True)
