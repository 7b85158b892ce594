"""Files of every format cut off at several places, through the command line: status two, a message that names the file, no traceback."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_formats import a_result, dynesty_content, write_dynesty

from sbi_flows import Chains, load_chains, save_chains
from sbi_flows.cli.app import main
from tests.chain_files import files


def la_forge(folder):
    x, log_l, log_p = files.draws()
    with h5py.File(folder / "core.h5", "w") as file:
        file["params"] = ["a", "b", "lnpost", "lnlike", "chain_accept", "pt_chain_accept"]
        file["chain"] = np.column_stack([x, log_p, log_l, np.full((len(x), 2), 0.3)])
    return folder / "core.h5"


def bilby_hdf5(folder):
    x, log_l, log_p = files.draws()
    with h5py.File(folder / "run.hdf5", "w") as file:
        for name, values in {"a": x[:, 0], "b": x[:, 1], "log_likelihood": log_l, "log_prior": log_p - log_l}.items():
            file[f"posterior/{name}"] = values
        file["search_parameter_keys"], file["parameter_labels"] = ["a", "b"], ["$a$", "b"]
        file["priors"] = json.dumps({"a": {"kwargs": {"minimum": -5, "maximum": 5}}})
        file["sampler"] = "emcee"
    return folder / "run.hdf5"


def ours(suffix):
    def write(folder):
        x, log_l, log_p = files.draws()
        chains = Chains(x[None], ("a", "b"), log_posterior=log_p[None], log_likelihood=log_l[None], bounds={"a": (-5.0, 5.0)})
        return save_chains(chains, folder / f"run{suffix}")

    return write


# The name of the format, how files of it are written into a folder, giving what the command is told, and the file that is cut.
CASES = {
    "ptmcmc": (files.write_ptmcmc, "chain_1.txt"),
    "la_forge": (la_forge, "core.h5"),
    "getdist": (lambda folder: files.write_getdist(folder / "run"), "run_1.txt"),
    "cobaya": (lambda folder: files.write_cobaya(folder / "run"), "run.2.txt"),
    "montepython": (files.write_montepython, "2026-01-01_1000__1.txt"),
    "emcee": (lambda folder: files.write_emcee_layout(folder / "run.h5", n_steps=200), "run.h5"),
    "dynesty npz": (lambda folder: write_dynesty(folder / "run.npz"), "run.npz"),
    "dynesty pickle": (lambda folder: write_dynesty(folder / "run.pkl"), "run.pkl"),
    "polychord, dead points": (lambda folder: files.write_polychord(folder / "run"), "run_dead-birth.txt"),
    "polychord, live points": (lambda folder: files.write_polychord(folder / "run"), "run_phys_live-birth.txt"),
    "bilby json": (lambda folder: a_result(folder)[0], "run_result.json"),
    "bilby hdf5": (bilby_hdf5, "run.hdf5"),
    "arviz": (ours(".nc"), "run.nc"),
    "csv": (ours(".csv"), "run.csv"),
    "parquet": (ours(".parquet"), "run.parquet"),
    "getdist, ours": (ours(".txt"), "run_1.txt"),
}


def half(data: bytes) -> bytes:
    """As far as possible from both ends; of a table, amid a number."""
    place = len(data) // 2
    while chr(data[place - 1]).isspace() or chr(data[place]).isspace():
        place += 1
    return data[:place]


CUTS = {"half": half, "the last bytes": lambda data: data[:-7], "nearly all": lambda data: data[:5], "all": lambda data: b""}


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["sbi-flows", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_cut_off(monkeypatch, capsys, tmp_path, name, cut):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    write, damaged = CASES[name]
    told = write(tmp_path)
    path = tmp_path / damaged
    path.write_bytes(CUTS[cut](path.read_bytes()))
    code, out, err = command(monkeypatch, capsys, "evidence", told)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert damaged in err.replace("\n", "")


SIDECARS = {
    "ptmcmc": (files.write_ptmcmc, "pars.txt"),
    "getdist": (lambda folder: files.write_getdist(folder / "run"), "run.paramnames"),
    "cobaya": (lambda folder: files.write_cobaya(folder / "run"), "run.updated.yaml"),
    "montepython": (files.write_montepython, "log.param"),
    "polychord": (lambda folder: files.write_polychord(folder / "run"), "run.paramnames"),
}


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_that_is_cut_off(monkeypatch, capsys, tmp_path, name):
    if name == "cobaya":
        pytest.importorskip("yaml")
    write, damaged = SIDECARS[name]
    told = write(tmp_path)
    path = tmp_path / damaged
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 3])
    code, out, err = command(monkeypatch, capsys, "evidence", told)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert damaged in err.replace("\n", "")


def test_a_part_of_an_archive_that_is_missing(monkeypatch, capsys, tmp_path):
    content = dynesty_content()
    del content["logl"]
    np.savez(tmp_path / "run.npz", **content)
    code, _, err = command(monkeypatch, capsys, "evidence", tmp_path / "run.npz")
    assert code == 2
    assert "logl" in err
    assert Path("run.npz").name in err


@pytest.mark.parametrize("place", ["  b:", "likelihood:"])
def test_cobayas_yaml_cut_at_the_end_of_a_line(tmp_path, place):
    """Then it still is YAML, of fewer parameters: an evidence in fewer dimensions would look as good as the right one."""
    pytest.importorskip("yaml")
    root = files.write_cobaya(tmp_path / "run")
    path = tmp_path / "run.updated.yaml"
    text = path.read_text()
    path.write_text(text[: text.index(place)])
    with pytest.raises(ValueError, match="block 'sampler'"):
        load_chains(root)


def test_cobayas_yaml_of_fewer_parameters(tmp_path):
    pytest.importorskip("yaml")
    root = files.write_cobaya(tmp_path / "run")
    path = tmp_path / "run.updated.yaml"
    path.write_text(path.read_text().replace("  b:\n    prior: [-5, 5]\n", ""))
    with pytest.raises(ValueError, match="columns b, of which"):
        load_chains(root)
