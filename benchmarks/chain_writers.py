"""``sbi-flows evidence`` on files that the samplers themselves wrote, for likelihoods of known evidence.

    python -m venv .venv-chains        (see requirements-chains.txt)
    .venv-chains/bin/python -m benchmarks.chain_writers [--problems a,b] [--writers a,b] [--seeds 3] [--summary]

Each sampler runs as its documentation shows and writes its own files; the command reads them and is right when ln Z lies within two of
its errors. The rows "stopped early" are runs cut so short that they prove nothing: there the exit status must be 1. A row is written as
soon as it is there, and a second run of the same command computes only what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "chain_writers.csv"
LENGTH_IN_TAU = 50  # from where on emcee's documentation trusts its estimate of tau
KEEP_EVERY = 10  # steps of emcee: its backend opens the file anew for each that is kept


@dataclass(frozen=True)
class Problem:
    """A likelihood of rows ``(n, d)`` in a uniform prior on ``[-half, half]^d``, with its ``log_z`` and a ``start`` that is likely."""

    log_likelihood: Callable[[np.ndarray], np.ndarray]
    features: int
    half: float
    log_z: float
    start: float
    scale: float

    @property
    def log_prior(self) -> float:
        return -self.features * math.log(2 * self.half)

    def log_posterior(self, x: np.ndarray) -> np.ndarray:
        inside = (np.abs(x) < self.half).all(axis=1)
        return np.where(inside, self.log_likelihood(x) + self.log_prior, -np.inf)

    def one(self, x: np.ndarray) -> float:
        return float(self.log_likelihood(np.atleast_2d(x))[0])


def gaussian(features: int = 5, correlation: float = 0.8, half: float = 10.0) -> Problem:
    """A normal with neighbours correlated, ten of its widths from every edge: what the box cuts off is below 1e-20 of it."""
    places = np.arange(features)
    precision = np.linalg.inv(correlation ** np.abs(places[:, None] - places))
    log_norm = 0.5 * (np.linalg.slogdet(precision)[1] - features * math.log(2 * math.pi))

    def log_likelihood(x):
        return log_norm - 0.5 * np.einsum("ni,ij,nj->n", x, precision, x)

    return Problem(log_likelihood, features, half, -features * math.log(2 * half), start=0.0, scale=1.0)


def rosenbrock() -> Problem:
    """The bent valley in two columns on [-5, 5]; ln Z by quadrature (``tests/test_evidence_problems.py``)."""

    def log_likelihood(x):
        return -100.0 * (x[:, 1] - x[:, 0] ** 2) ** 2 - (1.0 - x[:, 0]) ** 2

    return Problem(log_likelihood, 2, 5.0, -5.804132, start=1.0, scale=0.1)


PROBLEMS = {"gaussian-5": gaussian, "rosenbrock-2": rosenbrock}


# --- The writers: each leaves files in a folder and says with which arguments the command reads them --------------------------------


def by_emcee(problem: Problem, folder: Path, seed: int, short: bool) -> list[str]:
    import emcee

    path = folder / "run.h5"
    walkers = 8 * problem.features
    backend = emcee.backends.HDFBackend(str(path))
    sampler = emcee.EnsembleSampler(walkers, problem.features, problem.log_posterior, backend=backend, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    state = problem.start + 0.1 * problem.scale * np.random.default_rng(seed).normal(size=(walkers, problem.features))
    if short:
        sampler.run_mcmc(state, 40)
        return [str(path)]
    tau = np.inf  # in kept steps
    while not sampler.iteration > LENGTH_IN_TAU * tau:
        state = sampler.run_mcmc(state, 500, thin_by=KEEP_EVERY)
        tau = float(np.max(sampler.get_autocorr_time(tol=0)))
    return [str(path), "--burn", "0.2"]


def by_cobaya(problem: Problem, folder: Path, seed: int, short: bool) -> list[str]:
    from cobaya.run import run

    names = [f"x{i}" for i in range(problem.features)]
    prior = {"prior": {"min": -problem.half, "max": problem.half}, "ref": problem.start, "proposal": problem.scale}
    stop = {"max_samples": 40} if short else {"Rminus1_stop": 0.002, "Rminus1_cl_stop": 0.05, "max_samples": 20_000}
    density = {"external": lambda **x: problem.one(np.array([x[name] for name in names])), "input_params": names}
    run(
        {
            "likelihood": {"known": density},
            "params": dict.fromkeys(names, prior),
            "sampler": {"mcmc": {**stop, "max_tries": 10_000, "seed": seed}},
            "output": str(folder / "run"),
        },
        no_mpi=True,
    )
    return [str(folder / "run"), "--burn", "0" if short else "0.2"]


def by_getdist(problem: Problem, folder: Path, seed: int, short: bool) -> list[str]:
    """Cobaya's chain, read and written again by GetDist as one table of weights, -ln posterior and parameters."""
    from getdist import loadMCSamples

    by_cobaya(problem, folder, seed, short)
    samples = loadMCSamples(str(folder / "run"), settings={"ignore_rows": 0 if short else 0.2}, no_cache=True)
    samples.saveAsText(str(folder / "table"), make_dirs=False)
    return [str(folder / "table")]


def by_ptmcmc(problem: Problem, folder: Path, seed: int, short: bool) -> list[str]:
    from PTMCMCSampler.PTMCMCSampler import PTSampler

    def log_prior(x):
        return problem.log_prior if np.all(np.abs(x) < problem.half) else -np.inf

    covariance = np.diag(np.full(problem.features, problem.scale**2))
    sampler = PTSampler(problem.features, problem.one, log_prior, covariance, outDir=str(folder), verbose=False, seed=seed)
    steps = 1000 if short else 100_000
    sampler.sample(np.full(problem.features, problem.start), steps, burn=10_000, thin=10, writeHotChains=False)
    (folder / "pars.txt").write_text("".join(f"x{i}\n" for i in range(problem.features)))
    return [str(folder), "--burn", "0" if short else "0.25"]


def by_dynesty(problem: Problem, folder: Path, seed: int, short: bool, *, pickled: bool) -> list[str]:
    import pickle

    import dynesty

    def transform(u):
        return problem.half * (2 * u - 1)

    sampler = dynesty.NestedSampler(problem.one, transform, problem.features, nlive=500, rstate=np.random.default_rng(seed))
    sampler.run_nested(print_progress=False, **({"maxiter": 600} if short else {}))
    path = folder / ("run.pkl" if pickled else "run.npz")
    if pickled:
        path.write_bytes(pickle.dumps(sampler.results))
    else:
        np.savez(path, **sampler.results.asdict())
    return [str(path)]


WRITERS: dict[str, Callable[[Problem, Path, int, bool], list[str]]] = {
    "emcee": by_emcee,
    "cobaya": by_cobaya,
    "getdist": by_getdist,
    "ptmcmc": by_ptmcmc,
    "dynesty pickle": partial(by_dynesty, pickled=True),
    "dynesty npz": partial(by_dynesty, pickled=False),
}


# --- The command ---------------------------------------------------------------------------------------------------------------


def row(problem_name: str, writer: str, seed: int, short: bool) -> dict:
    """One run of a sampler and what the command says about its files."""
    problem = PROBLEMS[problem_name]()
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        arguments = WRITERS[writer](problem, Path(folder), seed, short)
        sampling = time.process_time() - began
        began = time.perf_counter()
        command = [sys.executable, "-m", "sbi_flows", "evidence", *arguments, "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        seconds = time.perf_counter() - began
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
    said = json.loads(ended.stdout)
    return {
        "problem": problem_name,
        "writer": writer,
        "seed": seed,
        "run": "stopped early" if short else "whole",
        "truth": problem.log_z,
        "log_z": said["log_z"],
        "log_z_err": said["log_z_err"],
        "method": said["method"],
        "draws": said["n_draws"],
        "status": ended.returncode,
        "reasons": " | ".join(said["reasons"]),
        "sampling_s": round(sampling, 1),
        "command_s": round(seconds, 1),
    }


def summary(rows: pd.DataFrame) -> str:
    """The table of ``docs/benchmarks.md``."""
    lines = ["| problem | written by | run | ln Z - truth, in errors | largest error | exit status |", "|---|---|---|---|---|---|"]
    for (problem, writer, run), group in rows.groupby(["problem", "writer", "run"], sort=False):
        off = (group.log_z - group.truth) / group.log_z_err
        shown = ", ".join(f"{value:+.1f}" for value in off.astype(float))
        status = ", ".join(str(value) for value in group.status)
        lines.append(f"| {problem} | {writer} | {run} | {shown} | {group.log_z_err.max():.2g} | {status} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--writers", default=",".join(WRITERS))
    parser.add_argument("--seeds", type=int, default=3, help="of the whole runs; those stopped early are made with the first alone")
    parser.add_argument("--summary", action="store_true", help="print the table of the rows at hand and run nothing")
    given = parser.parse_args()
    done = pd.read_csv(RESULTS, keep_default_na=False) if RESULTS.exists() else pd.DataFrame()
    have = set(zip(done.problem, done.writer, done.seed, done.run, strict=True)) if len(done) else set()
    wanted = [
        (problem, writer, seed, short)
        for problem in given.problems.split(",")
        for writer in given.writers.split(",")
        for short in (False, True)
        for seed in range(1, 2 if short else 1 + given.seeds)
        if (problem, writer, seed, "stopped early" if short else "whole") not in have
    ]
    for task in [] if given.summary else wanted:
        new = row(*task)
        print({key: new[key] for key in ("problem", "writer", "run", "seed", "log_z", "log_z_err", "status", "reasons")}, flush=True)
        pd.DataFrame([new]).to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)
    if RESULTS.exists():
        print(summary(pd.read_csv(RESULTS, keep_default_na=False)))


if __name__ == "__main__":
    main()
