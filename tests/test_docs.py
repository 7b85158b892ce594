"""What README.md and docs/ show runs: every block of Python, every command, every name of a tutorial.

By default long fits are cut short: ``SHORTER`` lists each piece of a page that is replaced, and with what. ``-m slow`` runs the pages
as they are.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from sbi_flows.cli.app import EXAMPLES, main
from tests.chain_files import files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SHORTER = {
    "README.md": {
        "size=(10_000, 2)": "size=(1000, 2)",
        "FlowDensity(support=(-5, 5))": "FlowDensity(support=(-5, 5), layers=1, max_epochs=2)",
        "import NPE, diagnose": "import NPE, ConditionalFlow, diagnose",
        "NPE(prior, random_state=0)": "NPE(prior, ConditionalFlow(layers=1, max_epochs=2), random_state=0)",
        "prior.sample(4000,": "prior.sample(300,",
        "prior.sample(500,": "prior.sample(60,",
        "posterior.sample(10_000)": "posterior.sample(100)",
        "FlowSampler(log_likelihood, prior, random_state=0)": "FlowSampler(log_likelihood, prior, n_effective=200, random_state=0)",
        "sampler.sample(10_000)": "sampler.sample(100)",
    },
    "start.md": {
        "import NPE, simulate": "import NPE, ConditionalFlow, simulate",
        "NPE(prior, random_state=0)": "NPE(prior, ConditionalFlow(layers=1, max_epochs=2), random_state=0)",
        "prior.sample(4000)": "prior.sample(300)",
    },
    "scikit-learn.md": {
        "size=(2000,": "size=(200,",
        "FlowDensity(random_state=0)": "FlowDensity(layers=1, max_epochs=2, random_state=0)",
        "ConditionalFlow(random_state=0)": "ConditionalFlow(layers=1, max_epochs=2, random_state=0)",
        '"layers", 1, 6': '"layers", 1, 2',
        "        random_state=0,\n    )": "        max_epochs=2,\n        random_state=0,\n    )",
        "n_trials=20": "n_trials=2",
    },
}
# What a page leaves to the reader to have imported.
BEFORE = {"architecture.md": "from abc import ABC\nfrom torch import nn\n"}
# Commands that are no command of ours, and one whose default networks take minutes: `tests/physics` runs it with small ones.
NOT_RUN = ("make ", "pip install ", "sbi-flows pta timing ")


def blocks(page, language):
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def code(page):
    return BEFORE.get(page.name, "") + "\n".join(blocks(page, "python"))


def shortened(page):
    text = code(page)
    for long, short in SHORTER.get(page.name, {}).items():
        assert long in text, f"{page.name} no longer has {long!r}: change SHORTER"
        text = text.replace(long, short)
    return text


def execute(text, page):
    if "import optuna" in text:
        optuna = pytest.importorskip("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    said = io.StringIO()
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(said):
        exec(compile(text, page.name, "exec"), names)
    return said.getvalue(), names


WITH_CODE = [pytest.param(page, id=page.name) for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE)
@pytest.mark.filterwarnings("ignore:[A-Z].*:UserWarning")  # of fits cut short
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = shortened(page)
    if importlib.util.find_spec("optuna") is None:
        text = text.partition("import optuna")[0]  # CI has no Optuna; the rest of its page runs all the same
    execute(text, page)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE)
def test_python_runs_as_it_is_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said, names = execute(code(page), page)
    if page.name == "README.md":
        assert "Evidence(" in said.splitlines()[0] and said.splitlines()[0].endswith("ok")
        log_z = float(said.split("log_z=")[1].split()[0])
        assert f"{log_z:.3f}" in BLOCK.findall(page.read_text())[1][1], "the output that the README shows"
        assert names["posterior"].reliability.ok and names["sampler"].report_.reliability.ok
    if page.name == "start.md":
        assert names["posterior"].reliability.ok and Path("posterior.pdf").stat().st_size > 5000


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_every_block_is_of_a_kind_that_is_run(page):
    kinds = {kind for kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= {"python", "console", "text", "{toctree}"}, "a block of an unknown kind would be run by no test"


def commands(lines):
    return [line.split("  #")[0].strip() for line in lines if not line.startswith(NOT_RUN)]


def of_pages():
    lines = [line.removeprefix("$ ") for page in PAGES for body in blocks(page, "console") for line in body.splitlines()]
    return commands(lines)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that holds what the commands of the pages and of ``--help`` name."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("chains", "smbhb", "strings", "run1", "run2")):
        files.write_ptmcmc(Path(name), n=600, seed=number)
    Path("cobaya").mkdir()
    for root in (Path("cobaya/run"), Path("lcdm"), Path("w0wa")):
        files.write_cobaya(root)
    files.write_emcee_layout(Path("run.h5"), n_steps=2150)
    Path("montepython").mkdir()
    files.write_montepython(Path("montepython/run"))
    x, _, _ = files.draws(400)
    np.savetxt("draws.csv", np.column_stack([np.exp(x[:, 0]), x[:, 1]]), delimiter=",", header="mass,spin", comments="")
    np.savetxt("points.csv", np.column_stack([np.exp(x[:9, 0]), x[:9, 1]]), delimiter=",", header="mass,spin", comments="")


def run_command(command, monkeypatch, capsys):
    """As a shell would, ``> file`` included; the status must be one that a verdict has."""
    typed, _, target = command.partition(" > ")
    arguments = shlex.split(typed)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    output = capsys.readouterr()
    assert (end.value.code or 0) in (0, 1), f"{command}: {output.err}"
    assert output.out or "-o" in arguments
    if target:
        Path(target).write_text(output.out)


@pytest.mark.parametrize("command", of_pages())
def test_commands_of_the_pages_run(command, workplace, monkeypatch, capsys):
    assert command.startswith("sbi-flows "), "a command that no test knows how to run"
    if command == "sbi-flows evidence run.h5":
        command += " --bounds a=-5:5"
    run_command(command, monkeypatch, capsys)


@pytest.mark.slow
def test_examples_of_help_run(workplace, monkeypatch, capsys):
    """In their order: ``sample`` and ``density`` use what ``fit`` wrote."""
    for command in (line for lines in EXAMPLES.values() for line in lines):
        run_command(command.replace("gamma=0:7", "x1=-5:5"), monkeypatch, capsys)


def test_every_tutorial_is_listed_and_tested():
    names = sorted(path.stem for path in (ROOT / "tutorials").glob("*.py"))
    listed = (ROOT / "docs" / "tutorials.md").read_text()
    tests = (ROOT / "tests" / "test_tutorials.py").read_text()
    assert [name for name in names if f"{name}.py" not in listed] == []
    assert [name for name in names if f'"{name}"' not in tests] == []
    assert sorted(re.findall(r"`(\w+)\.py`", listed)) == names, "a tutorial that is gone"
