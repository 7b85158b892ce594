"""Every side-by-side table, each peer in an environment of its own: what ``make bench`` runs.

    python -m benchmarks.all [--python python3.11] [--list] [--quick] [evidence flows ...]

Environments are made below ``.cache/bench`` from ``benchmarks/requirements-*.txt`` and ``constraints.txt``, once. Each benchmark computes
what its file of results lacks and leaves the rest; delete a file in ``benchmarks/results/`` to measure it anew. ``RUN.md`` beside them
then says when, on which machine and with which versions each was run last. The tables of ``docs/benchmarks.md`` are written from those
files by hand, with what was missed and why: numbers without their story are not copied there.

``--quick`` runs each table's smallest piece, a minute or so of an idle core each, to see that the command works here: in a copy of this
folder below ``.cache/bench/quick`` without results, so that no row of it is ever taken for a measurement.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
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
    by the option ``told``. ``quick`` are the arguments of its smallest piece.
    """

    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    peer: str | None = None
    inside: bool = False
    told: str = "--python"


TABLES = {
    "evidence": Table("evidence", ("calibration",), ("calibration", "--problems", "gaussian-5", "--repetitions", "1", "--workers", "1")),
    "evidence-wrong": Table("evidence", ("wrong",), ("wrong", "--problems", "gaussian-5", "--repetitions", "1", "--workers", "1")),
    "evidence-harmonic": Table(
        "evidence", ("harmonic",), ("harmonic", "--problems", "gaussian-5", "--repetitions", "1"), peer="harmonic"
    ),
    "flows": Table("flows", ("--threads", "1"), ("--quick", "--threads", "1"), peer="flows", inside=True),
    "cnf": Table("cnf", ("--threads", "1"), ("--quick", "--threads", "1"), peer="flows", inside=True),
    "sbi": Table(
        "sbibm",
        ("--methods", "ours,sbi", "--threads", "1"),
        ("--methods", "ours,sbi", "--threads", "1", "--tasks", "gaussian_linear", "--simulations", "500"),
        peer="sbi",
    ),
    "samplers": Table(
        "samplers",
        (),
        ("--problems", "funnel-10", "--samplers", "smc", "dynesty static", "--seeds", "1"),
        peer="samplers",
        told="--peer-python",
    ),
    "funnel": Table("funnel", (), ("--seeds", "0", "--draws", "50")),
    "unnormalised": Table("unnormalised", (), ("--problems", "mixture-2", "--methods", "smc", "--seeds", "1")),
    "chain-writers": Table(
        "chain_writers", (), ("--problems", "gaussian-5", "--writers", "emcee,dynesty npz", "--seeds", "1"), peer="chains", inside=True
    ),
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


def command(table: Table, python: str, quick: bool = False) -> list[str]:
    """How one benchmark is called."""
    interpreter = str(environment(table.peer, python)) if table.peer else sys.executable
    here = interpreter if table.inside else sys.executable
    told = [table.told, interpreter] if table.peer and not table.inside else []
    return [here, "-m", f"benchmarks.{table.module}", *(table.quick if quick else table.arguments), *told]


def without_results() -> Path:
    """A folder with a fresh copy of the benchmarks, and of nothing that was measured."""
    folder = ENVIRONMENTS / "quick"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    (folder / "benchmarks" / "results").mkdir()
    return folder


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
    parser.add_argument("--quick", action="store_true", help="each table's smallest piece, to see that it runs; nothing is kept")
    given = parser.parse_args()
    unknown = [name for name in given.tables if name not in TABLES]
    if unknown:
        parser.error(f"expected tables among {', '.join(TABLES)}; got {', '.join(unknown)}")
    failed = []
    folder = without_results() if given.quick and not given.list else ROOT
    wheels = sorted(ROOT.glob("sbibm-*.whl"))
    wheel = {"SBIBM_WHEEL": str(wheels[0])} if wheels else {}
    for name in given.tables or TABLES:
        table = TABLES[name]
        if given.list:
            arguments = table.quick if given.quick else table.arguments
            print(f"{name}: python -m benchmarks.{' '.join((table.module, *arguments))}, environment: {table.peer or 'this'}")
            continue
        call = command(table, given.python, given.quick)
        began = time.monotonic()
        path = os.pathsep.join(dict.fromkeys([str(folder), str(ROOT)]))
        status = subprocess.run(call, cwd=folder, env={**wheel, **os.environ, "PYTHONPATH": path}, check=False).returncode
        seconds = time.monotonic() - began
        if given.quick:
            print(f"{name}: {'runs' if status == 0 else f'FAILED with status {status}'}, {seconds:.0f} s", flush=True)
        else:
            record(name, call, seconds, status)
        failed += [name] if status else []
    if failed:
        sys.exit(f"These ended with an error: {', '.join(failed)}")


if __name__ == "__main__":
    main()
