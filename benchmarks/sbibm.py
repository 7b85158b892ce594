"""Neural posterior estimation on the ten tasks of the simulation-based inference benchmark: us, and sbi 0.27 beside us.

``python -m benchmarks.sbibm [--tasks a,b] [--simulations 1000,10000] [--seeds 0] [--methods ours,high,sbi --python .venv-sbi/bin/python]``

A cell is a task, a number of simulations, a seed and a method; rows are appended to ``benchmarks/results/sbibm.csv`` as they come
and a second run computes only what is missing (``--fresh`` starts over). "ours" is ``NPE(prior)``, "high"
``NPE(prior, quality="high")``. All methods get the same simulations, each in a process of its own, taking turns at going first. C2ST
(:mod:`benchmarks.c2st`) is the 5-fold cross-validated accuracy of a classifier of two layers of ten times d units between 10 000 posterior
draws and the 10 000 published ones, z-scored by the latter; .5 is perfect. Observations 1 to 5. ``--summary`` prints the tables and draws
the picture of the rows at hand.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.c2st import c2st
from benchmarks.sbibm_tasks import OBSERVATIONS, find_wheel, published, tasks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DRAWS = 10_000
HELD_OUT = 10_000
# Lueckmann et al. 2021, median C2ST of NPE at 1e3, 1e4, 1e5 simulations; gaussian_mixture from the corrected rerun. And the better
# of NPE and NLE, the bar for amortised inference.
PUBLISHED_NPE = {
    "bernoulli_glm": (0.87, 0.67, 0.56),
    "bernoulli_glm_raw": (0.90, 0.76, 0.60),
    "gaussian_linear": (0.69, 0.53, 0.51),
    "gaussian_linear_uniform": (0.68, 0.55, 0.51),
    "gaussian_mixture": (0.70, 0.60, 0.55),
    "lotka_volterra": (1.00, 1.00, 0.98),
    "sir": (0.81, 0.63, 0.57),
    "slcp": (0.97, 0.91, 0.82),
    "slcp_distractors": (0.98, 0.97, 0.87),
    "two_moons": (0.71, 0.61, 0.54),
}
BUDGETS = (1000, 10_000, 100_000)
QUALITY_OF = {"ours": "default", "high": "high"}
LABELS = {"ours": "sbi_flows", "high": "sbi_flows, high", "sbi": "sbi 0.27"}


# --- One cell ---------------------------------------------------------------------------------------------------------------


def fit_ours(name: str, simulations: Path, out: Path, seed: int, threads: int, quality: str) -> None:
    """``NPE(prior).fit(theta, x)`` with nothing set but perhaps the quality."""
    from sbi_flows import NPE

    if threads:
        torch.set_num_threads(threads)
    task, given = tasks()[name], np.load(simulations)
    began = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        npe = NPE(task.prior, quality=quality, random_state=seed).fit(given["theta"], given["x"])
    seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    for warning in caught:
        print(f"{name}: {warning.message}", flush=True)
    began = time.perf_counter()
    draws = np.stack([npe.sample(row, DRAWS, random_state=seed + i) for i, row in enumerate(given["x_o"])])
    sampling = time.perf_counter() - began
    outside = sum(int((~np.isfinite(task.prior.log_prob(torch.as_tensor(part)).numpy())).sum()) for part in draws)
    held_out = npe.log_prob(*task.draw(HELD_OUT, 7)).mean()
    np.savez(out, draws=draws, seconds=seconds, cpu_seconds=cpu, sample_seconds=sampling, outside=outside, held_out=held_out)


def run_cell(name: str, n: int, seed: int, method: str, python: Path | None, threads: int) -> dict:
    """Fit in a process of its own, then compare the draws with the published posteriors."""
    task = tasks()[name]
    theta, x = task.draw(n, 1000 + seed)
    given = [published(task, number) for number in OBSERVATIONS]
    with tempfile.TemporaryDirectory() as folder:
        simulations, out = Path(folder) / "simulations.npz", Path(folder) / "draws.npz"
        pilot = task.prior.sample(200_000, torch.Generator().manual_seed(0)).numpy()
        exact = {"prior_mean": pilot.mean(0), "prior_covariance": np.cov(pilot.T)}
        if hasattr(task.prior, "cholesky"):
            root = task.prior.cholesky
            exact = {"prior_mean": task.prior.mean.numpy(), "prior_covariance": (root @ root.T).numpy()}
        np.savez(simulations, theta=theta, x=x, x_o=np.stack([one.x for one in given]), **exact)
        common = [str(simulations), str(out), "--task", name, "--seed", str(seed), "--threads", str(threads)]
        if method in QUALITY_OF:
            command = [sys.executable, "-m", "benchmarks.sbibm", "--cell", *common, "--quality", QUALITY_OF[method]]
        else:
            command = [str(python), str(ROOT / "benchmarks" / "sbibm_peer.py"), *common]
        load = os.getloadavg()[0]
        subprocess.run(command, check=True, cwd=ROOT)
        found = {key: value for key, value in np.load(out).items()}
    scores = c2st([(draws, one.posterior) for draws, one in zip(found.pop("draws"), given, strict=True)])
    return {
        "task": name,
        "simulations": n,
        "seed": seed,
        "method": method,
        "c2st": round(float(np.median(scores)), 4),
        **{f"c2st_{number}": round(float(score), 4) for number, score in zip(OBSERVATIONS, scores, strict=True)},
        "seconds": round(float(found["seconds"]), 1),
        "cpu_seconds": round(float(found["cpu_seconds"]), 1),
        "sample_seconds": round(float(found["sample_seconds"]), 2),
        "held_out": round(float(found["held_out"]), 4) if "held_out" in found else np.nan,
        "outside": int(found["outside"]) if "outside" in found else -1,
        "threads": threads,
        "load": round(load, 1),
    }


# --- Tables -----------------------------------------------------------------------------------------------------------------


def table(rows: pd.DataFrame) -> str:
    """Median over observations, mean over seeds, beside the published figures."""
    lines = [
        "| task | simulations | ours | seconds (CPU) | ours, high | seconds (CPU) | sbi 0.27 | seconds (CPU) | published NPE |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, n), group in rows.groupby(["task", "simulations"]):
        cells = []
        for method in ("ours", "high", "sbi"):
            own = group[group.method == method]
            if own.empty:
                cells += ["", ""]
                continue
            every = ", ".join(f"{value:.3f}" for value in own.c2st)
            cells += [every, f"{own.seconds.mean():.0f} ({own.cpu_seconds.mean():.0f})"]
        known = f"{PUBLISHED_NPE[name][BUDGETS.index(n)]:.2f}" if n in BUDGETS else ""
        lines.append(f"| {name} | {n} | {' | '.join(cells)} | {known} |")
    return "\n".join(lines)


def picture(rows: pd.DataFrame, path: Path) -> None:
    """C2ST against the number of simulations, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 5, figsize=(15, 5.5), sharex=True, sharey=True, layout="constrained")
    for panel, name in zip(panels.flat, PUBLISHED_NPE, strict=True):
        panel.plot(BUDGETS, PUBLISHED_NPE[name], color="0.6", marker="s", label="NPE, published")
        for method, colour in (("sbi", "C1"), ("high", "C2"), ("ours", "C0")):
            own = rows[(rows.task == name) & (rows.method == method)].groupby("simulations").c2st.mean()
            panel.plot(own.index, own.values, color=colour, marker="o", label=LABELS[method])
        panel.set_title(name)
        panel.set_xscale("log")
        panel.axhline(0.5, color="0.8", linewidth=0.8)
        panel.set_ylim(0.48, 1.02)
    panels[0, 0].legend()
    figure.supxlabel("simulations")
    figure.supylabel("C2ST, median over observations 1-5")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(PUBLISHED_NPE))
    parser.add_argument("--simulations", default="10000")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--methods", default="ours")
    parser.add_argument("--python", type=Path, help="interpreter of an environment that has sbi 0.27, for --methods ours,sbi")
    parser.add_argument("--threads", type=int, default=0, help="torch threads of a fit; 0 leaves the default")
    parser.add_argument("--results", type=Path, default=RESULTS / "sbibm.csv")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if "sbi" in methods and arguments.python is None:
        parser.error("--methods sbi needs --python PATH, an interpreter that has sbi 0.27 (see benchmarks/README.md)")
    if arguments.fresh:
        arguments.results.unlink(missing_ok=True)
    rows = pd.read_csv(arguments.results) if arguments.results.exists() else pd.DataFrame()
    if not arguments.summary:
        find_wheel()
        wanted = [
            (name, int(n), int(seed))
            for n in arguments.simulations.split(",")
            for seed in arguments.seeds.split(",")
            for name in arguments.tasks.split(",")
        ]
        for turn, (name, n, seed) in enumerate(wanted):
            for method in methods if turn % 2 == 0 else methods[::-1]:
                key = {"task": name, "simulations": n, "seed": seed, "method": method}
                if len(rows) and (rows[list(key)] == pd.Series(key)).all(axis=1).any():
                    continue
                row = run_cell(name, n, seed, method, arguments.python, arguments.threads)
                print(row, flush=True)
                rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                rows.to_csv(arguments.results, index=False)
    if len(rows):
        text = table(rows)
        arguments.results.with_suffix(".md").write_text(text + "\n")
        picture(rows, arguments.results.with_suffix(".png"))
        print(text)


def cell() -> None:
    """``--cell IN OUT --task NAME --seed S --threads N``: what :func:`run_cell` calls."""
    parser = argparse.ArgumentParser()
    parser.add_argument("simulations", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--quality", default="default")
    arguments = parser.parse_args(sys.argv[2:])
    fit_ours(arguments.task, arguments.simulations, arguments.out, arguments.seed, arguments.threads, arguments.quality)


if __name__ == "__main__":
    cell() if sys.argv[1:2] == ["--cell"] else main()
