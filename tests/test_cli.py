"""The command line: bad input ends with a plain message and status 2, a run prints one table."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from sbi_flows import __version__
from sbi_flows.cli.app import app, main
from sbi_flows.cli.pta import _with_error
from sbi_flows.physics.pta import embedded_free_spectrum
from sbi_flows.plots import corner


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["sbi-flows", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()
    return end.value.code or 0, output.out, output.err


@pytest.fixture
def folder(tmp_path):
    """A small data set of another shape: 6 bins, another span, another grid."""
    data = embedded_free_spectrum()
    path = tmp_path / "data"
    path.mkdir()
    np.save(path / "freqs.npy", data.frequencies[:6] * 1.1)
    np.save(path / "log10rhogrid.npy", data.grid[::2])
    np.save(path / "density.npy", data.log_density[None, :6, ::2])
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "smbhb,power_lw"], "Did you mean 'power_law'"),
        (["--data", "no/such/folder"], "freqs.npy, log10rhogrid.npy, density.npy missing"),
        (["--bins", "15"], "embedded summary holds; got 15"),
        (["--bins", "0"], "between 1 and 14 bins"),
        (["--n-jobs", "0"], "n_jobs of at least 1"),
        (["--seed", "-1"], "seed of at least 0"),
        (["--models", ","], "at least one model"),
    ],
)
def test_bad_input_ends_with_two_and_no_traceback(monkeypatch, capsys, tmp_path, arguments, message):
    code, out, err = run_main(monkeypatch, capsys, "pta", "compare", "--output", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_wrong_shapes(monkeypatch, capsys, tmp_path, folder):
    np.save(folder / "density.npy", np.zeros((2, 6, 10)))
    code, _, err = run_main(monkeypatch, capsys, "pta", "compare", "--data", folder, "--output", tmp_path / "out")
    assert code == 2
    assert "(2, 6, 10)" in err
    np.save(folder / "density.npy", np.zeros((1, 6, 10)))
    _, _, err = run_main(monkeypatch, capsys, "pta", "compare", "--data", folder, "--output", tmp_path / "out")
    assert "density (1, n_bins, n_grid); got (6,)" in err
    assert "(1, 6, 10)" in err


def test_an_output_that_is_a_file(monkeypatch, capsys, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, _, err = run_main(monkeypatch, capsys, "pta", "compare", "--models", "smbhb", "--output", tmp_path / "out")
    assert code == 2
    assert "Cannot write results to" in err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(("sampler", "told"), [("emcee", "emcee"), ("flow", "FlowSampler")])
def test_other_data_run_quickly_with_fewer_bins_than_14(monkeypatch, capsys, tmp_path, folder, sampler, told):
    made = []

    def seen(sets, labels, **how):
        made.append(list(sets))
        return corner(sets, labels, **how)

    monkeypatch.setattr("sbi_flows.physics.pta.pipeline.corner", seen)
    arguments = ("--data", folder, "--models", "smbhb", "--quick", "--n-jobs", "1", "--output", tmp_path / "out", "--sampler", sampler)
    code, out, _ = run_main(monkeypatch, capsys, "pta", "compare", *arguments)
    assert code == 0
    assert "6 bins of 14.6 years" in out
    assert re.search(r"smbhb +-[.0-9]+±[.0-9]*[1-9] +reference ", out)
    assert "floor: what two samples of one distribution show" in out
    # The footnote and the figure name what was run.
    assert f"those of the\n{told} chains" in out and made == [[told, "flow fitted to them"]]
    assert "1 model finished" in out
    assert (tmp_path / "out" / "comparison.csv").is_file()


def test_models_and_version_are_listed():
    listed = CliRunner().invoke(app, ["pta", "models"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert "strings_meta_ls" in listed.output
    assert __version__ in CliRunner().invoke(app, ["--version"]).output


def test_help_needs_no_torch():
    script = "import sys; from sbi_flows.cli.app import app; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_shows_what_is_taken_where_nothing_is_given():
    shown = CliRunner().invoke(app, ["pta", "compare", "--help"], env={"COLUMNS": "200"}).output
    for default in ("NANOGrav 15-year, 14 bins", "ten models", "one a core"):
        assert f"[default: ({default})]" in shown


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-18.24163, 0.00042, "-18.2416±0.0004"),
        (-18.2416, 0.0123, "-18.242±0.012"),
        (3.5, 0.0, "3.500"),
        (3.5, None, "3.500"),
        (None, None, "-"),
    ],
)
def test_an_error_is_never_rounded_to_zero(value, error, text):
    assert _with_error(value, error) == text


@pytest.mark.parametrize(
    ("typed", "offered"),
    [(["ev"], ["evidence"]), (["pta", "co"], ["compare"]), (["evidence", "--bu"], ["--burn"]), (["datasets", ""], ["list", "fetch"])],
)
def test_the_shell_is_told_what_may_follow(typed, offered):
    """What bash asks on Tab, after ``sbi-flows --install-completion``."""
    script = "import sys; sys.argv[0] = 'sbi-flows'; from sbi_flows.cli import main; main()"
    asked = {"_SBI_FLOWS_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["sbi-flows", *typed]), "COMP_CWORD": str(len(typed))}
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert set(offered) <= set(ended.stdout.split())
    assert "pta" not in ended.stdout.split() or typed == [""]
