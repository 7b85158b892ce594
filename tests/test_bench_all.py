"""``make bench`` names what is there: modules, their options, lists of requirements."""

import subprocess
import sys

import pytest

from benchmarks import all as bench
from benchmarks.all import ROOT, TABLES


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_called_as_their_modules_take_it(name, quick):
    table = TABLES[name]
    arguments = table.quick if quick else table.arguments
    source = (ROOT / "benchmarks" / f"{table.module}.py").read_text()
    options = [word for word in arguments if word.startswith("--")] + ([table.told] if table.peer and not table.inside else [])
    assert [option for option in options if f'"{option}"' not in source] == []
    words = [word for word in arguments if word.isalpha() and not quick]
    assert [word for word in words if f'"{word}"' not in source] == []
    assert table.peer is None or (ROOT / "benchmarks" / f"requirements-{table.peer}.txt").is_file()
    assert not table.inside or table.peer


def test_every_list_of_requirements_is_somebodys():
    lists = {path.stem.removeprefix("requirements-") for path in (ROOT / "benchmarks").glob("requirements-*.txt")}
    assert lists == {table.peer for table in TABLES.values()} - {None}


def test_unknown_tables_are_told():
    ended = subprocess.run([sys.executable, "-m", "benchmarks.all", "spam"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 2
    assert "got spam" in ended.stderr and "chain-writers" in ended.stderr


def test_a_quick_run_sees_and_leaves_no_results(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ENVIRONMENTS", tmp_path)
    folder = bench.without_results()
    assert (folder / "benchmarks" / "chain_writers.py").is_file()
    assert list((folder / "benchmarks" / "results").iterdir()) == []
    assert all(table.quick for table in TABLES.values())
