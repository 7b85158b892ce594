"""Where nothing can be written: the reason in words, exit status 2, and what was there before is as it was."""

import ctypes
import os
import resource
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sbi_flows import FlowDensity, report, save_chains
from sbi_flows.cli.app import main
from sbi_flows.plots import save_figure
from sbi_flows.plots.canvas import new_figure
from sbi_flows.results import Chains
from sbi_flows.samplers import RandomWalk, run_chains
from sbi_flows.targets import from_log_prob

BEFORE = b"earlier output"
FULL = 2000  # bytes: the disk has room for less than any of our files
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2


@contextmanager
def full_disk():
    """Every file ends at ``FULL`` bytes, in the middle of a write, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def bound_by_permissions():
    """Permissions hold for this thread even where it runs as root, who may otherwise write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, before):
        pytest.skip("this system does not tell its capabilities")
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    if libc.capset(header, less):
        pytest.skip("this system does not let a process give up capabilities")
    try:
        yield
    finally:
        libc.capset(header, before)


@pytest.fixture(scope="module")
def fitted():
    return FlowDensity(flow="maf", layers=1, max_epochs=1, random_state=0).fit(np.random.default_rng(0).normal(size=(300, 2)))


@pytest.fixture(scope="module")
def chains():
    x = np.random.default_rng(0).normal(size=(4, 100, 2))
    return Chains(x, ("a", "b"), log_posterior=-0.5 * (x**2).sum(-1))


def figure():
    drawn = new_figure(2, 2)
    drawn.subplots().plot([0, 1])
    return drawn


def checkpointed(path, fitted, chains):
    target = from_log_prob(lambda x: -0.5 * x.square().sum(1), 2)
    run_chains(RandomWalk(), target, torch.zeros(4, 2, dtype=torch.float64), n_steps=30, n_warmup=30, random_state=0, path=path)


WRITES = {
    "model.safetensors": lambda path, fitted, chains: fitted.save(path),
    "chains.csv": lambda path, fitted, chains: save_chains(chains, path),
    "chains.nc": lambda path, fitted, chains: save_chains(chains, path),
    "page.html": lambda path, fitted, chains: report(chains, path),
    "figure.pdf": lambda path, fitted, chains: save_figure(figure(), path),
    "figure.png": lambda path, fitted, chains: save_figure(figure(), path),
}


def left(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", [name for name in WRITES if name != "chains.nc"])  # HDF5 asks for the room beforehand: see test_out
def test_a_disk_that_fills_up_leaves_what_was_there(name, tmp_path, fitted, chains):
    path = tmp_path / name
    path.write_bytes(BEFORE)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        WRITES[name](path, fitted, chains)
    assert left(tmp_path) == {name: BEFORE}


@pytest.mark.parametrize("name", WRITES)
def test_a_folder_that_must_not_be_written_in(name, tmp_path, fitted, chains):
    path = tmp_path / name
    path.write_bytes(BEFORE)
    tmp_path.chmod(0o555)
    try:
        with bound_by_permissions(), pytest.raises(PermissionError):
            WRITES[name](path, fitted, chains)
    finally:
        tmp_path.chmod(0o755)
    assert left(tmp_path) == {name: BEFORE}


@pytest.mark.parametrize("name", WRITES)
def test_a_folder_in_the_place_of_the_file(name, tmp_path, fitted, chains):
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=r"(?i)directory"):
        WRITES[name](tmp_path / name, fitted, chains)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_disk_that_fills_up_under_a_run_leaves_its_last_state(tmp_path):
    """HDF5 itself would end the interpreter here."""
    checkpointed(tmp_path / "run.h5", None, None)
    before = left(tmp_path)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        checkpointed(tmp_path / "other.h5", None, None)
    assert left(tmp_path) == before


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["sbi-flows", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()
    return end.value.code or 0, output.out, output.err


@pytest.mark.parametrize("trouble", ["full", "locked", "folder"])
def test_commands_end_with_two_and_say_why(trouble, monkeypatch, capsys, tmp_path, fitted):
    model, folder = tmp_path / "model", tmp_path / "out"
    fitted.save(model)
    folder.mkdir()
    rows = folder / "rows.csv"
    if trouble == "folder":
        rows.mkdir()
    else:
        rows.write_bytes(BEFORE)
    if trouble == "locked":
        folder.chmod(0o555)
    hindered = {"full": full_disk, "locked": bound_by_permissions, "folder": open_anyway}[trouble]
    try:
        with hindered():
            code, out, err = run(monkeypatch, capsys, "sample", model, "-n", 500, "-o", rows)
    finally:
        folder.chmod(0o755)
    assert (code, out) == (2, "")
    assert {"full": "File too large", "locked": "Permission denied", "folder": "Is a directory"}[trouble] in err
    assert "Traceback" not in err and len(err.splitlines()) == 1
    assert [path.name for path in folder.iterdir()] == ["rows.csv"]
    assert trouble == "folder" or rows.read_bytes() == BEFORE


@contextmanager
def open_anyway():
    yield
