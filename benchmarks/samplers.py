"""Evidences from the prior alone: accuracy and likelihood evaluations of `smc` beside dynesty, nautilus and pocoMC.

    python -m venv .venv-samplers && .venv-samplers/bin/pip install -r benchmarks/requirements-samplers.txt
    PYTHONPATH=. python benchmarks/samplers.py --problems rosenbrock-10 --seeds 10 --peer-python .venv-samplers/bin/python

Every run ends by its own stopping rule, in a process of its own, one after another; evaluations are counted in the likelihood. A line
is added to ``benchmarks/results/samplers.jsonl`` as each ends, and those that are there are not run again; the table
``benchmarks/results/samplers.md`` is written from all of them. Hours of one core for all of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.sampler_problems import PROBLEMS, BoxProblem
from sbi_flows import parallel_tempering, smc
from sbi_flows.distributions import BoxUniform
from sbi_flows.targets import Target, from_numpy, posterior

HERE = Path(__file__).parent
RUNS, TABLE = HERE / "results" / "samplers.jsonl", HERE / "results" / "samplers.md"
PEERS = ("nautilus", "nautilus, stopped", "pocoMC", "dynesty static", "dynesty dynamic")
OURS: dict[str, Callable] = {
    "smc": lambda target, seed: smc(target, random_state=seed),
    "smc, 4000 draws a flow": lambda target, seed: smc(target, n_particles=4000, random_state=seed),
    "smc, 12000 draws a flow": lambda target, seed: smc(target, n_particles=12_000, random_state=seed),
    "smc, no flow": lambda target, seed: smc(target, flow=None, random_state=seed),
    "parallel tempering": lambda target, seed: parallel_tempering(target, n_steps=5000, random_state=seed),
}


def target_of(problem: BoxProblem) -> Target:
    """The problem as our own samplers take it."""
    ends = [problem.half_width] * problem.features
    return posterior(from_numpy(problem.log_likelihood), BoxUniform([-end for end in ends], ends))


def run_ours(name: str, sampler: str, seed: int) -> dict:
    """One run of ours: what the peers' script prints for theirs, the verdict, and the worst error of a mode's mass."""
    problem = PROBLEMS[name]()
    began = time.process_time()
    result = OURS[sampler](target_of(problem), seed)
    record = {
        "problem": name,
        "sampler": sampler,
        "seed": seed,
        "log_z": result.evidence.log_z,
        "log_z_err": result.evidence.log_z_err,
        "n_evaluations": result.n_evaluations,
        "seconds": time.process_time() - began,
        "ok": result.reliability.ok,
        "reasons": list(result.reliability.reasons),
    }
    if hasattr(result, "powers"):
        record["stages"] = [[round(float(value), 6) for value in stage] for stage in zip(result.powers, result.acceptances, strict=True)]
    if problem.modes is not None and problem.masses is not None:
        if hasattr(result, "samples"):
            x, weights = result.samples.samples, result.samples.weights
        else:
            x = result.chains.samples.reshape(-1, problem.features)
            weights = np.full(len(x), 1 / len(x))
        record["mass_error"] = float(np.abs(weights @ problem.modes(x) - problem.masses).max())
    return record


def run(name: str, sampler: str, seed: int, peer_python: str | None) -> dict:
    """One run in a process of its own."""
    if sampler in OURS:
        command = [sys.executable, "-m", "benchmarks.samplers", "--one", name, sampler, str(seed)]
    else:
        command = [str(peer_python), str(HERE / "samplers_peer.py"), name, sampler, str(seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(runs: list[dict]) -> str:
    """Root mean squared error of ln Z and evaluations, by problem and sampler."""
    lines = [
        "| problem | sampler | seeds | RMSE of ln Z | error it states | worst mass error | evaluations | CPU s | calls itself reliable |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, sampler), rows in pd.DataFrame(runs).groupby(["problem", "sampler"]):
        rmse = np.sqrt(np.mean((rows.log_z - PROBLEMS[name]().log_z) ** 2))
        mass = rows.get("mass_error", pd.Series(dtype=float)).max()
        told = rows.get("ok", pd.Series(dtype=object)).dropna()
        lines.append(
            f"| {name} | {sampler} | {len(rows)} | {rmse:.3f} | {rows.log_z_err.mean():.3f} | {'' if np.isnan(mass) else f'{mass:.3f}'} | "
            f"{rows.n_evaluations.mean():.0f} | {rows.seconds.mean():.0f} | {f'{int(told.sum())} of {len(told)}' if len(told) else ''} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=["rosenbrock-10"], choices=list(PROBLEMS))
    parser.add_argument("--samplers", nargs="+", default=None, help="by default all of ours, and the peers where --peer-python is given")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--peer-python", default=None)
    parser.add_argument("--one", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(run_ours(options.one[0], options.one[1], int(options.one[2]))))
        return
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    done = {(r["problem"], r["sampler"], r["seed"]) for r in runs}
    samplers = options.samplers or [*OURS, *(PEERS if options.peer_python else ())]
    for seed in range(options.seeds):
        for name in options.problems:
            for sampler in samplers:
                if (name, sampler, seed) in done:
                    continue
                runs.append(run(name, sampler, seed, options.peer_python))
                with RUNS.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
                TABLE.write_text(table(runs))
    print(table(runs))


if __name__ == "__main__":
    main()
