"""The command line on chains: documented keys, documented exit statuses, no traceback, nothing half written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from sbi_flows.cli.app import EXAMPLES, app, main
from tests.chain_files import files

WIDE = {"COLUMNS": "200"}


def run(monkeypatch, capsys, *arguments):
    """Exit status, standard output, standard error, of the command as a user starts it."""
    monkeypatch.setattr(sys, "argv", ["sbi-flows", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    return end.value.code or 0, output.out, output.err


def test_evidence_has_the_documented_keys_and_is_right(monkeypatch, capsys, tmp_path):
    files.write_ptmcmc(tmp_path / "run", n=2500)
    code, out, err = run(monkeypatch, capsys, "evidence", tmp_path / "run", "--burn", 0.2, "--json")
    result = json.loads(out)
    assert code == 0
    assert err == ""
    assert list(result)[:5] == ["log_z", "log_z_err", "method", "reliable", "reasons"]
    assert (result["reliable"], result["reasons"], result["n_draws"], result["format"]) == (True, [], 2000, "ptmcmc")
    # A fixed seed; at another, 4 errors would be passed 6 times in 100 000.
    assert abs(result["log_z"] - files.LOG_Z) < 4 * result["log_z_err"] < 0.1


def test_compare_ranks_models_and_an_unreliable_one_gives_status_one(monkeypatch, capsys, tmp_path):
    files.write_ptmcmc(tmp_path / "a", n=1000)
    files.write_polychord(tmp_path / "b")
    code, out, _ = run(monkeypatch, capsys, "compare", tmp_path / "a", tmp_path / "b", "--json")
    result = json.loads(out)
    assert code == 0
    assert set(result["models"]) == {"a", "b"}
    assert {row["model"] for row in result["comparison"]} == {"a", "b"}
    files.write_polychord(tmp_path / "b", n_dead=100)  # stopped far too early
    code, out, _ = run(monkeypatch, capsys, "compare", tmp_path / "a", tmp_path / "b", "--names", "good,bad")
    assert code == 1
    assert "the run stopped too early" in out
    code, _, err = run(monkeypatch, capsys, "compare", tmp_path / "a", tmp_path / "a")
    assert code == 2
    assert "Say --names" in err


def test_evidence_that_is_not_reliable_gives_status_one(monkeypatch, capsys, tmp_path):
    files.write_polychord(tmp_path / "run", n_dead=100)
    code, out, _ = run(monkeypatch, capsys, "evidence", tmp_path / "run", "--json")
    assert code == 1
    result = json.loads(out)
    assert result["reliable"] is False
    assert result["reasons"]


def test_flat_priors_complete_a_likelihood(monkeypatch, capsys, tmp_path):
    x, log_l, _ = files.draws(1500)
    path = tmp_path / "run.csv"
    np.savetxt(path, np.column_stack([x, log_l]), delimiter=",", header="a,b,lp", comments="")
    code, _, err = run(monkeypatch, capsys, "evidence", path)
    assert code == 2
    assert "--log-column" in err
    code, _, err = run(monkeypatch, capsys, "evidence", path, "--log-column", "likelihood")
    assert code == 2
    assert "ln likelihood alone" in err
    code, _, err = run(monkeypatch, capsys, "evidence", path, "--log-column", "likelihood", "--flat-prior")
    assert code == 2
    assert "a, b lack one" in err
    wrong = ("--bounds", "a=-1:1", "--bounds", "b=-5:5")
    code, _, err = run(monkeypatch, capsys, "evidence", path, "--log-column", "likelihood", "--flat-prior", *wrong)
    assert code == 2
    assert "Draws of a lie outside" in err
    ends = ("--bounds", "a=-5:5", "--bounds", "b=-5:5")
    code, out, _ = run(monkeypatch, capsys, "evidence", path, "--log-column", "likelihood", "--flat-prior", *ends, "--json")
    result = json.loads(out)
    assert abs(result["log_z"] - files.LOG_Z) < 4 * result["log_z_err"] < 0.1
    assert code == 0


def no_pars(folder):
    (folder / "pars.txt").unlink()


def cut(folder):
    path = folder / "chain_1.txt"
    path.write_text(path.read_text()[:-60])


def with_nan(folder):
    with (folder / "chain_1.txt").open("a") as file:
        file.write("nan 1 1 1 1 1\n")


def as_it_is(folder):
    pass


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (no_pars, [], "pars.txt"),
        (cut, [], "the file is truncated"),
        (with_nan, [], "hold NaN"),
        (as_it_is, ["--burn", "1.5"], "burn as a fraction"),
        (as_it_is, ["--burn", "5000"], "burn below 1000"),
        (as_it_is, ["--format", "spam"], "Expected format"),
        (as_it_is, ["--log-column", "lp"], "Expected log_column"),
        (as_it_is, ["--parameters", "gamma,spam"], "got spam"),
        (as_it_is, ["--bounds", "gamma"], "Expected --bounds name=low:high"),
        (as_it_is, ["--bounds", "gamma=3:1"], "Expected --bounds name=low:high"),
        (as_it_is, ["--bounds", "spam=0:1"], "got one of spam"),
    ],
)
def test_bad_input_ends_with_two_and_a_message(monkeypatch, capsys, tmp_path, damage, arguments, message):
    folder = files.write_ptmcmc(tmp_path / "run")
    damage(folder)
    code, out, err = run(monkeypatch, capsys, "evidence", folder, *arguments)
    assert code == 2
    assert message in err
    assert out == ""


@pytest.mark.parametrize(
    ("path", "message"), [("nothing", "No chains at"), (".", "it holds no chain_1.txt"), ("notes.md", "of no known format")]
)
def test_what_is_no_chain_ends_with_two(monkeypatch, capsys, tmp_path, path, message):
    (tmp_path / "notes.md").write_text("hello")
    code, _, err = run(monkeypatch, capsys, "diagnose", tmp_path / path)
    assert code == 2
    assert message in err


def test_diagnose_one_run_and_two(monkeypatch, capsys, tmp_path):
    files.write_getdist(tmp_path / "run")
    code, out, _ = run(monkeypatch, capsys, "diagnose", tmp_path / "run", "--json")
    result = json.loads(out)
    assert code == 0
    assert [row["parameter"] for row in result["parameters"]] == ["a", "b"]
    assert {"rhat", "ess_bulk", "ess_tail"} <= set(result["parameters"][0])
    x, _, _ = files.draws(1000, seed=7)
    x[:, 0] += 0.5
    np.savetxt(tmp_path / "other.csv", x, delimiter=",", header="a,b", comments="")
    code, out, _ = run(monkeypatch, capsys, "diagnose", tmp_path / "run", tmp_path / "other.csv", "--json")
    assert code == 1
    assert json.loads(out)["verdict"] == "DIFFER"
    drift = np.cumsum(np.random.default_rng(0).normal(size=(400, 1)), axis=0)
    np.savetxt(tmp_path / "drift.csv", drift, header="a", comments="")
    code, out, _ = run(monkeypatch, capsys, "diagnose", tmp_path / "drift.csv")
    assert code == 1
    assert "NOT RELIABLE" in out


def test_fit_sample_and_density(monkeypatch, capsys, tmp_path):
    x, _, log_p = files.draws(1500)
    np.savetxt(tmp_path / "rows.csv", x, delimiter=",", header="a,b", comments="")
    model = tmp_path / "model.safetensors"
    code, out, _ = run(monkeypatch, capsys, "fit", tmp_path / "rows.csv", "-o", model, "--bounds", "a=-6:", "--max-epochs", 3, "--json")
    result = json.loads(out)
    assert code == (0 if result["reliable"] else 1)
    assert result["columns"] == ["a", "b"]
    code, out, _ = run(monkeypatch, capsys, "sample", model, "-n", 50)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "a,b"
    assert len(lines) == 51
    assert all(float(line.split(",")[0]) > -6 for line in lines[1:])
    assert run(monkeypatch, capsys, "sample", model, "-n", 50)[1] == out  # the same seed
    code, _, _ = run(monkeypatch, capsys, "density", model, tmp_path / "rows.csv", "-o", tmp_path / "values.csv")
    assert code == 0
    values = np.loadtxt(tmp_path / "values.csv", skiprows=1)
    exact = log_p - files.LOG_Z
    assert np.mean(np.abs(values - exact)) < 0.2  # nats; a Gaussian start is right to about sqrt(d / n) already
    np.savetxt(tmp_path / "other.csv", x, delimiter=",", header="a,c", comments="")
    code, _, err = run(monkeypatch, capsys, "density", model, tmp_path / "other.csv")
    assert code == 2
    assert "lacks b" in err


def test_outputs_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    x, _, _ = files.draws(300)
    np.save(tmp_path / "rows.npy", x)
    code, _, err = run(monkeypatch, capsys, "fit", tmp_path / "rows.npy", "-o", tmp_path / "no" / "model")
    assert code == 2
    assert "does not exist" in err
    model = tmp_path / "model"
    assert run(monkeypatch, capsys, "fit", tmp_path / "rows.npy", "-o", model, "--max-epochs", 1)[0] in (0, 1)
    code, _, err = run(monkeypatch, capsys, "sample", model, "-o", tmp_path / "rows.xyz")
    assert code == 2
    assert "end in .csv or .parquet" in err

    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    # Root may write anywhere, so the refusal is made by hand.
    monkeypatch.setattr("sbi_flows._files.write_atomic", refuse)
    code, _, err = run(monkeypatch, capsys, "sample", model, "-o", tmp_path / "rows.csv")
    assert code == 2
    assert "Permission denied" in err
    assert run(monkeypatch, capsys, "sample", tmp_path / "rows.npy")[0] == 2
    np.save(tmp_path / "rows.npy", x[0])
    code, _, err = run(monkeypatch, capsys, "fit", tmp_path / "rows.npy", "-o", model)
    assert code == 2
    assert "shape (n, d)" in err


def test_datasets(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SBI_FLOWS_DATA", str(tmp_path))
    code, out, _ = run(monkeypatch, capsys, "datasets", "list", "--json")
    assert code == 0
    assert "sgwb_models/g_star.dat" in [row["name"] for row in json.loads(out)["datasets"]]
    code, _, err = run(monkeypatch, capsys, "datasets", "where", "spam")
    assert code == 2
    assert "Unknown dataset" in err
    (tmp_path / "bayes_examples").mkdir()
    (tmp_path / "bayes_examples" / "pima_indian.dat").write_text("1")
    code, out, _ = run(monkeypatch, capsys, "datasets", "where", "bayes_examples/pima_indian.dat")
    assert code == 0
    assert out.strip() == str(tmp_path / "bayes_examples" / "pima_indian.dat")
    code, _, err = run(monkeypatch, capsys, "datasets", "fetch", "bayes_examples/pima_indian.dat")
    assert code == 2
    assert "SHA-256" in err


def test_doctor(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "doctor", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["required"]["torch"]
    assert {"cores", "torch_threads", "gpu", "omp_num_threads", "optional", "reliable"} <= set(result)
    monkeypatch.setattr("sbi_flows.cli.doctor._REQUIRED", ("torch", "spam-and-eggs"))
    code, out, _ = run(monkeypatch, capsys, "doctor")
    assert code == 1
    assert "pip install spam-and-eggs" in out


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_has_examples_and_the_exit_status(command):
    shown = CliRunner().invoke(app, [command, "--help"], env=WIDE).output
    assert f"sbi-flows {command}" in shown
    assert "Exit status: 0" in shown


def test_importing_is_quick_and_quiet():
    """In a fresh process, warnings being errors: no torch, no numpy, and less than .3 s of processor time."""
    script = (
        "import sys, time\nstart = time.process_time()\nimport sbi_flows\nspent = time.process_time() - start\n"
        "assert not {'torch', 'numpy', 'logging'} & set(sys.modules), 'heavy imports'\nassert spent < 0.3, spent"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert ended.returncode == 0, ended.stderr
