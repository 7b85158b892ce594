"""How good the evidences are: coverage of the errors, verdicts on spoiled draws, and the `harmonic` package on the same samples.

    python -m benchmarks.evidence calibration [--repetitions 100] [--problems gaussian-5,gmm-9]
    python -m benchmarks.evidence wrong       [--repetitions 20]
    python -m benchmarks.evidence harmonic    --python .venv-harmonic/bin/python [--repetitions 10]

Every row is written as soon as it is there; a second run of the same command computes only what is missing (``--fresh`` starts
over), and ``--summary`` prints the tables from the rows at hand.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):        # run as a file: the folder above is not on the path yet
    sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results"
KINDS = ("clean", "shifted", "widened", "missing-mode")
WIDENED_BY = 1.5
HARMONIC_DRAWS, HARMONIC_CHAINS = 20_000, 100


# --- One repetition -----------------------------------------------------------------------------------------------------------


def repetition(task: tuple[str, str, int, int | None]) -> dict:
    """Evidence of one seeded set of draws; ``task`` is problem, kind, repetition, draws (None: the problem's own number)."""
    from benchmarks.evidence_problems import problem_named

    name, kind, number, n_draws = task
    problem = problem_named(name)
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    draws = spoil(problem, kind, problem.sample(n_draws or problem.n_draws, rng), rng)
    log_posterior = Counted(problem.log_posterior)
    row = {"problem": name, "kind": kind, "repetition": number, "n_draws": draws.size // problem.features, "truth": problem.log_z}
    return row | timed_evidence(problem, draws, log_posterior, seed=number)


def spoil(problem, kind: str, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from benchmarks.spoiled_draws import shifted, widened, without_a_mode

    if kind == "clean":
        return draws
    if kind == "shifted":
        return shifted(problem, draws, rng)
    if kind == "widened":
        return widened(problem, draws, WIDENED_BY)
    return without_a_mode(problem, draws, rng)


class Counted:
    """A log-posterior that counts the rows it is asked for."""

    def __init__(self, log_posterior: Callable[[np.ndarray], np.ndarray]):
        self.log_posterior, self.rows = log_posterior, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.rows += len(x)
        return self.log_posterior(x)


def timed_evidence(problem, draws: np.ndarray, log_posterior: Counted, seed: int) -> dict:
    """The default evidence; an error of the estimator is a row too, with its message, not an end of the benchmark."""
    from sbi_flows import evidence

    start = time.perf_counter()
    try:
        result = evidence(draws, log_posterior, prior=problem.prior, support=problem.support, random_state=seed)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        failed = {"log_z": np.nan, "log_z_err": np.nan, "method": "failed", "ess": np.nan, "pareto_k": np.nan, "ok": False}
        return failed | {"reasons": f"{type(error).__name__}: {error}", "evaluations": log_posterior.rows, "seconds": np.nan}
    return {
        "log_z": result.log_z,
        "log_z_err": result.log_z_err,
        "method": result.method,
        "ess": result.ess,
        "pareto_k": result.pareto_k,
        "ok": result.reliability.ok,
        "reasons": "; ".join(result.reliability.reasons),
        "evaluations": log_posterior.rows,
        "seconds": time.perf_counter() - start,
    }


# --- Many repetitions, kept in a file -----------------------------------------------------------------------------------------


def run_missing(tasks: Sequence[tuple], path: Path, workers: int, fresh: bool) -> pd.DataFrame:
    """Compute the tasks that ``path`` does not hold, a row appended as each ends; returns the rows of all tasks."""
    if fresh:
        path.unlink(missing_ok=True)
    known = read_rows(path)
    done = set() if known.empty else set(zip(known.problem, known.kind, known.repetition, strict=True))
    missing = [task for task in tasks if task[:3] not in done]
    warn_of_other_code(known)
    commit, start = commit_now(), time.perf_counter()
    for count, row in enumerate(in_processes(missing, workers), 1):
        append_row(path, row | {"commit": commit})
        minutes = (time.perf_counter() - start) / count * (len(missing) - count) / 60
        print(f"\r{count}/{len(missing)}  {row['problem']:16s} {minutes:5.1f} min left", end="", file=sys.stderr)
    if missing:
        print(file=sys.stderr)
    rows = read_rows(path)
    wanted = {task[:3] for task in tasks}
    return rows[[key in wanted for key in zip(rows.problem, rows.kind, rows.repetition, strict=True)]]


def in_processes(tasks: Sequence[tuple], workers: int) -> Iterator[dict]:
    """Rows in the order they end, from ``workers`` processes of one thread each."""
    if not tasks:
        return
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"        # read when the child imports its libraries
    with multiprocessing.get_context("spawn").Pool(workers, initializer=one_thread) as pool:
        yield from pool.imap_unordered(repetition, tasks, chunksize=1)


def one_thread() -> None:
    set_threads(1)


def set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def read_rows(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=True) if path.exists() else pd.DataFrame()


def append_row(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)


def commit_now() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def warn_of_other_code(known: pd.DataFrame) -> None:
    others = set() if known.empty else set(known.commit.astype(str)) - {commit_now()}
    if others:
        print(f"note: rows of other commits are kept ({', '.join(sorted(others))}); --fresh starts over", file=sys.stderr)


# --- Tables -------------------------------------------------------------------------------------------------------------------


def calibration_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a problem: coverage at one and two reported errors in percent, bias, RMSE, mean error, verdicts, cost."""
    rows = rows.assign(miss=rows.log_z - rows.truth)
    rows = rows.assign(pull=rows.miss / rows.log_z_err)
    lines = {}
    for name, group in rows.groupby("problem", sort=False):
        lines[name] = {
            "runs": len(group),
            "in 1 err %": 100 * (group.pull.abs() <= 1).mean(),        # a failed run is a NaN and counts as outside
            "in 2 err %": 100 * (group.pull.abs() <= 2).mean(),
            "bias": group.miss.mean(),
            "+-": group.miss.std() / np.sqrt(len(group)),
            "rmse": np.sqrt((group.miss**2).mean()),
            "mean err": group.log_z_err.mean(),
            "ok %": 100 * group.ok.mean(),
            "evaluations": group.evaluations.max(),
            "seconds": group.seconds.median(),
        }
    return pd.DataFrame(lines).T


def print_calibration(rows: pd.DataFrame) -> None:
    table = calibration_table(rows)
    whole = {"runs": "{:.0f}".format, "evaluations": "{:.0f}".format}
    print(table.to_string(formatters=whole, float_format=lambda v: f"{v:.3g}"))
    inside = ((rows.log_z - rows.truth).abs() <= rows.log_z_err).mean()
    spread = np.sqrt(inside * (1 - inside) / len(rows))
    print(f"\npooled: truth inside 1 error in {100 * inside:.1f} +- {100 * spread:.1f} % of {len(rows)} (wanted 66-71)")
    poor = table[(table["in 1 err %"] < 54) | (table["in 1 err %"] > 82) | (table["in 2 err %"] < 88)]
    print(f"outside 54-82 % in 1 error or below 88 % in 2: {', '.join(poor.index) or 'none'}")
    for reasons, count in rows.reasons[~rows.ok.astype(bool)].value_counts().head(5).items():
        print(f"  {count} x {reasons}")


def print_wrong(rows: pd.DataFrame) -> None:
    flagged = rows.assign(flagged=100.0 * ~rows.ok.astype(bool))
    table = flagged.pivot_table(index="problem", columns="kind", values="flagged", sort=False)
    print("flagged as not reliable, %")
    print(table[[kind for kind in KINDS if kind in table]].to_string(float_format=lambda v: f"{v:.0f}", na_rep=""))
    print("\nover all problems (wanted: clean at most 5, the others at least 95)")
    for kind, group in flagged.groupby("kind", sort=False):
        most = (group.evaluations - group.n_draws).max()
        print(f"  {kind:13s} {group.flagged.mean():5.1f} % of {len(group)}; at most {most} evaluations beyond the draws'")


# --- Against harmonic ---------------------------------------------------------------------------------------------------------


def run_harmonic(
    python: Path, repetitions: int, names: Sequence[str], flows: Sequence[str], path: Path, fresh: bool
) -> pd.DataFrame:
    """Ours and theirs on the same draws, one after the other, each free to use all cores."""
    if fresh:
        path.unlink(missing_ok=True)
    known = read_rows(path)
    done = set() if known.empty else set(zip(known.problem, known.peer, known.repetition, strict=True))
    for number in range(repetitions):
        for name in names:
            for peer in ("ours", *flows):
                if (name, peer, number) in done:
                    continue
                append_row(path, {"problem": name, "peer": peer, "repetition": number} | against(name, peer, number, python))
                print(f"\r{number + 1}/{repetitions} {name:14s} {peer:10s}", end="", file=sys.stderr)
    print(file=sys.stderr)
    rows = read_rows(path)
    return rows[rows.problem.isin(names) & rows.peer.isin(["ours", *flows]) & (rows.repetition < repetitions)]


def against(name: str, peer: str, number: int, python: Path) -> dict:
    from benchmarks.evidence_problems import problem_named

    problem = problem_named(name)
    draws = problem.sample(HARMONIC_DRAWS, np.random.default_rng([zlib.crc32(name.encode()), 1000 + number]))
    chains = draws.reshape(HARMONIC_CHAINS, -1, problem.features)        # exact draws: any cut makes chains
    if peer == "ours":
        row = timed_evidence(problem, chains, Counted(problem.log_posterior), seed=number)
        return {"truth": problem.log_z} | {key: row[key] for key in ("log_z", "log_z_err", "seconds")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "draws.npz"
        np.savez(file, samples=chains, log_posterior=problem.log_posterior(draws).reshape(chains.shape[:2]))
        command = [str(python.absolute()), str(ROOT / "benchmarks" / "harmonic_peer.py"), str(file), peer, str(number)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return {"truth": problem.log_z} | json.loads(answer.stdout.strip().splitlines()[-1])


def print_harmonic(rows: pd.DataFrame) -> None:
    rows = rows.assign(miss=rows.log_z - rows.truth)
    grouped = rows.groupby(["problem", "peer"], sort=False)
    table = pd.DataFrame(
        {
            "runs": grouped.size(),
            "bias": grouped.miss.mean(),
            "rmse": grouped.miss.apply(lambda m: np.sqrt((m**2).mean())),
            "mean err": grouped.log_z_err.mean(),
            "seconds": grouped.seconds.median(),
        }
    )
    ours = table.xs("ours", level="peer")
    table["rmse / ours"] = table["rmse"] / ours["rmse"].reindex(table.index.get_level_values("problem")).to_numpy()
    # Each run beside ours of the same repetition, so a busy machine cancels.
    seconds = rows.pivot_table(index=["problem", "repetition"], columns="peer", values="seconds")
    ratio = seconds.div(seconds["ours"], axis=0).groupby("problem").median().stack()
    table["seconds / ours"] = ratio.reindex(table.index)
    print(table.to_string(float_format=lambda v: f"{v:.4g}"))


# --- Command line -------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks.evidence_problems import HARMONIC_PROBLEMS, PROBLEMS, problem_named

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["calibration", "wrong", "harmonic"])
    parser.add_argument("--repetitions", type=int, help="default 100, 20 and 10")
    parser.add_argument("--problems", help="comma-separated names; all by default")
    parser.add_argument("--draws", type=int, help="draws a repetition; each problem's own number by default")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-harmonic/bin/python", help="interpreter that has harmonic")
    parser.add_argument("--flows", default="rqspline", help="flow models of harmonic: rqspline (the more exact one), realnvp")
    parser.add_argument("--threads", type=int, help="torch threads of ours in `harmonic`; torch's own choice by default")
    parser.add_argument("--kinds", default=",".join(KINDS), help="for `wrong`")
    parser.add_argument("--output", type=Path, help="file of rows; benchmarks/results/evidence_COMMAND.csv by default")
    parser.add_argument("--fresh", action="store_true", help="forget the rows at hand")
    parser.add_argument("--summary", action="store_true", help="only print the tables of the rows at hand")
    given = parser.parse_args(arguments)
    path = given.output or RESULTS / f"evidence_{given.command}.csv"
    listed = HARMONIC_PROBLEMS if given.command == "harmonic" else PROBLEMS
    names = [problem_named(n).name for n in given.problems.split(",")] if given.problems else [p.name for p in listed]
    printers = {"calibration": print_calibration, "wrong": print_wrong, "harmonic": print_harmonic}
    if given.summary:
        rows = read_rows(path)
        if rows.empty:
            raise SystemExit(f"No rows in {path} yet: run the command without --summary first.")
        rows = rows[rows.problem.isin(names)]
    elif given.command == "harmonic":
        set_threads(given.threads)
        rows = run_harmonic(given.python, given.repetitions or 10, names, given.flows.split(","), path, given.fresh)
    else:
        rows = run_missing(tasks_of(given, names), path, given.workers, given.fresh)
    printers[given.command](rows)


def tasks_of(given: argparse.Namespace, names: Sequence[str]) -> list[tuple]:
    """Repetition by repetition, so that a run cut short has seen every problem."""
    from benchmarks.evidence_problems import problem_named

    if given.command == "calibration":
        return [(name, "clean", r, given.draws) for r in range(given.repetitions or 100) for name in names]
    kinds = given.kinds.split(",")
    possible = [(n, k) for n in names for k in kinds if k != "missing-mode" or problem_named(n).modes is not None]
    return [(name, kind, r, given.draws) for r in range(given.repetitions or 20) for name, kind in possible]


if __name__ == "__main__":
    main()
