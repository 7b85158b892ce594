"""Where batches come from: arrays, files, simulators, iterators; every row once, errors told."""

import sys

import numpy as np
import pytest
import torch
from toy_flow import ToyFlow
from training_cases import FAST, banana, parameters

from sbi_flows.training import ArraySource, BlockSource, SimulatorSource, hdf5_arrays, rows_of, train, zarr_arrays


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


# --- Data on disk that are not whole ------------------------------------------------------------------------------------------


def verdict_of(x, context=None):
    return train(ToyFlow(), BlockSource(x, context, block_rows=64), max_epochs=1, batch_size=100, random_state=0).reliability


def test_rows_with_nan_are_named():
    x = banana(1000)
    x[300:303] = np.nan
    verdict = verdict_of(x)
    assert not verdict.ok and "3 of 1000 rows of x (the first in row 300)" in str(verdict) and "learning_rate" not in str(verdict)


def test_rows_that_were_never_written_are_told():
    x = banana(1000)
    x[500:] = 0
    assert "500 of 1000 rows of x are exactly 0 in every column" in str(verdict_of(x))
    assert verdict_of(banana(1000)).ok
    discrete = np.random.default_rng(0).integers(0, 3, size=(1000, 2)).astype(float)
    assert "were never written" not in str(verdict_of(discrete))


def test_chunks_that_are_missing_are_told(tmp_path):
    import h5py

    x = banana(1000)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        part = file.create_dataset("x", x.shape, chunks=(100, 2), dtype="f8")
        part[:700] = x[:700]
    assert "3 of 10 chunks of x were never written" in str(verdict_of(*hdf5_arrays(tmp_path / "f.h5", "x")))
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "f.zarr"), mode="w")
    part = group.create_array("x", shape=x.shape, chunks=(100, 2), dtype="f8")
    part[:700] = x[:700]
    assert "3 of 10 chunks of x were never written" in str(verdict_of(*zarr_arrays(tmp_path / "f.zarr", "x")))


@pytest.mark.parametrize("source", [ArraySource, BlockSource])
def test_weights_of_nan(source):
    with pytest.raises(ValueError, match="Expected finite weights; got NaN"):
        source(np.ones((100, 2)), weights=np.r_[np.nan, np.ones(99)])
