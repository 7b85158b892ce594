"""Constraints that install the oldest versions which pyproject.toml allows; ``make oldest`` runs the suite with them.

    python scripts/oldest.py > oldest.txt

torch stays at the version of constraints.txt: older ones without CUDA are not on the package index.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BOUND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[0-9.]+)")


def constraints() -> list[str]:
    """``name==version`` for each lower bound of the package and of pytest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["zarr"], *(line for line in extras["dev"] if line.startswith("pytest"))]
    lines = []
    for requirement in wanted:
        match = _BOUND.fullmatch(requirement)
        if match is None:
            raise ValueError(f"Expected a requirement of the form name>=version in pyproject.toml; got {requirement!r}.")
        lines.append(f"{match['name']}=={match['version']}")
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    (torch,) = [line for line in pinned if line.startswith("torch==")]
    return [torch if line.startswith("torch==") else line for line in lines]


if __name__ == "__main__":
    print("\n".join(constraints()))
