"""Every side-by-side table, each peer in an environment of its own: what ``make bench`` runs.

    python -m benchmarks.all [--python python3.11] [--list] [evidence flows ...]

Environments are made below ``.cache/bench`` from ``benchmarks/requirements-*.txt`` and ``constraints.txt``, once. Each benchmark computes
what its file of results lacks and leaves the rest; delete a file in ``benchmarks/results/`` to measure it anew. ``RUN.md`` beside them
then says when, on which machine and with which versions each was run last. The tables of ``docs/benchmarks.md`` are written from those
files by hand, with what was missed and why: numbers without their story are not copied there.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".cache" / "bench"
RECORD = ROOT / "benchmarks" / "results" / "RUN.md"


@dataclass(frozen=True)
class Table:
    """One table: a module of ``benchmarks`` with its arguments, and whose environment it needs.

    ``peer`` names a ``requirements-PEER.txt``. The benchmark itself runs there if ``inside``, else here and is told the peer's interpreter
    by the option ``told``.
    """

    module: str
    arguments: tuple[str, ...] = ()
    peer: str | None = None
    inside: bool = False
    told: str = "--python"


TABLES = {
    "evidence": Table("evidence", ("calibration",)),
    "evidence-wrong": Table("evidence", ("wrong",)),
    "evidence-harmonic": Table("evidence", ("harmonic",), "harmonic"),
    "flows": Table("flows", ("--threads", "1"), "flows", inside=True),
    "cnf": Table("cnf", ("--threads", "1"), "flows", inside=True),
    "sbi": Table("sbibm", ("--methods", "ours,sbi", "--threads", "1"), "sbi"),
    "samplers": Table("samplers", (), "samplers", told="--peer-python"),
    "funnel": Table("funnel"),
    "unnormalised": Table("unnormalised"),
    "chain-writers": Table("chain_writers", (), "chains", inside=True),
}


def environment(peer: str, python: str) -> Path:
    """The interpreter of a peer's environment, made where it is not there."""
    folder = ENVIRONMENTS / peer
    interpreter = folder / "bin" / "python"
    done = folder / ".installed"
    if done.exists():
        return interpreter
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, "-e", str(ROOT)], check=True)
    # A peer's own pins may differ from ours: they are what it is measured with.
    subprocess.run([*pip[:-2], "-r", str(ROOT / "benchmarks" / f"requirements-{peer}.txt")], check=True)
    done.touch()
    return interpreter


def command(table: Table, python: str) -> list[str]:
    """How one benchmark is called."""
    interpreter = str(environment(table.peer, python)) if table.peer else sys.executable
    here = interpreter if table.inside else sys.executable
    told = [table.told, interpreter] if table.peer and not table.inside else []
    return [here, "-m", f"benchmarks.{table.module}", *table.arguments, *told]


def versions(interpreter: str) -> str:
    """What is installed beside an interpreter, for the record."""
    listed = subprocess.run([interpreter, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
    known = ("torch", "numpy", "zuko", "nflows", "sbi", "harmonic", "emcee", "dynesty", "pocomc", "cobaya", "getdist", "ptmcmcsampler")
    return ", ".join(line.replace("==", " ") for line in listed.split() if line.split("==")[0].lower() in known)


def record(name: str, call: list[str], seconds: float, status: int) -> None:
    """One line about a run."""
    if not RECORD.exists():
        RECORD.write_text("| table | when | machine | status | minutes | versions | command |\n|---|---|---|---|---|---|---|\n")
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    typed = " ".join(["python", *call[1:]])
    with RECORD.open("a") as file:
        file.write(f"| {name} | {when} | {machine} | {status} | {seconds / 60:.1f} | {versions(call[0])} | `{typed}` |\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; all by default")
    parser.add_argument("--python", default=sys.executable, help="interpreter that environments are made with")
    parser.add_argument("--list", action="store_true", help="print what would be run and run nothing")
    given = parser.parse_args()
    unknown = [name for name in given.tables if name not in TABLES]
    if unknown:
        parser.error(f"expected tables among {', '.join(TABLES)}; got {', '.join(unknown)}")
    failed = []
    for name in given.tables or TABLES:
        table = TABLES[name]
        if given.list:
            print(f"{name}: python -m benchmarks.{' '.join((table.module, *table.arguments))}, environment: {table.peer or 'this'}")
            continue
        call = command(table, given.python)
        began = time.monotonic()
        status = subprocess.run(call, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode
        record(name, call, time.monotonic() - began, status)
        failed += [name] if status else []
    if failed:
        sys.exit(f"These ended with an error: {', '.join(failed)}")


if __name__ == "__main__":
    main()
