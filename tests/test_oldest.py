"""The constraints of ``make oldest``: each lower bound of pyproject.toml, and torch as pinned."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script():
    spec = importlib.util.spec_from_file_location("oldest", ROOT / "scripts" / "oldest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_lower_bound_is_a_constraint():
    lines = script().constraints()
    text = (ROOT / "pyproject.toml").read_text()
    for line in lines:
        name, version = line.split("==")
        assert name == "torch" or f'"{name}>={version}"' in text
    assert next(line for line in lines if line.startswith("torch==")) in (ROOT / "constraints.txt").read_text()
    assert {"numpy", "pandas", "zarr", "pytest"} <= {line.split("==")[0] for line in lines}


def test_a_requirement_without_a_lower_bound_is_refused(tmp_path, monkeypatch):
    module = script()
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["numpy"]\n[project.optional-dependencies]\nzarr = []\ndev = []\n')
    monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"name>=version in pyproject\.toml; got 'numpy'"):
        module.constraints()
