"""Funnel of 101 dimensions: NUTS as it comes, and ``FlowSampler(method="latent")``, which trains its flow on what it draws itself.

``python -m benchmarks.funnel [--seeds 0,1,2] [--draws 1000]``

s ~ N(0, 1) and a hundred x_i ~ N(0, e^s). The figure is the smallest bulk effective sample size over columns a thousand gradients, in
production (warm-up and training left out) and with all there was before it counted: plain NUTS, four chains with a warm-up of 1000; behind
the flow, 64 chains of HMC with their pilot in the user's parameters and every round of training. Beside it stand the divergences, and
s's mean and standard deviation, which are 0 and 1: a run that misses the neck has too small a deviation. Rows go to
``benchmarks/results/funnel.csv``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sbi_flows import FlowSampler
from sbi_flows.samplers import NUTS, convergence, run_chains
from sbi_flows.targets import Target, from_log_prob

RESULTS = Path(__file__).resolve().parent / "results" / "funnel.csv"
DIMENSION = 101
CHAINS, MANY = 4, 64
WARMUP = 1000


def funnel() -> Target:
    """Normalised."""
    constant = -0.5 * DIMENSION * np.log(2 * np.pi)

    def log_prob(x):
        s, rest = x[:, 0], x[:, 1:]
        return constant - 0.5 * s.square() - 0.5 * rest.square().sum(-1) * torch.exp(-s) - 0.5 * (DIMENSION - 1) * s

    return from_log_prob(log_prob, DIMENSION, names=["s", *(f"x{i}" for i in range(1, DIMENSION))])


def measured(method: str, seed: int, chains, all_of_them: int, seconds: float) -> dict:
    """One row; ``all_of_them`` are the gradients there were, those ahead of the draws included."""
    ess = float(convergence(chains.samples, chains.names).ess_bulk.min())
    gradients = int(chains.stats["n_gradients"].sum())
    s = chains.samples[..., 0]
    return {
        "method": method,
        "seed": seed,
        "min_ess": ess,
        "ess_per_1000_gradients": 1000 * ess / gradients,
        "ess_per_1000_gradients_all": 1000 * ess / all_of_them,
        "divergent": int(chains.stats["divergent"].sum()),
        "acceptance": float(chains.stats["acceptance"].mean()),
        "gradients_a_draw": gradients / s.size,
        "s_mean": float(s.mean()),
        "s_sd": float(s.std()),
        "cpu_seconds": seconds,
    }


def rows_of(seed: int, n_draws: int) -> list[dict]:
    target, rng = funnel(), np.random.default_rng(seed)
    run = {"n_steps": n_draws, "n_warmup": WARMUP, "random_state": seed}
    began = time.process_time()
    plain = run_chains(NUTS(), target, rng.normal(size=(CHAINS, DIMENSION)), **run)
    rows = [measured("plain NUTS", seed, plain, plain.info["n_gradients"], time.process_time() - began)]
    print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    began = time.process_time()
    start = rng.normal(size=(MANY, DIMENSION))
    sampler = FlowSampler(target=target, method="latent", n_effective=CHAINS * n_draws, n_chains=MANY, random_state=seed).fit(start)
    print(sampler.report_, flush=True)
    rows.append(measured("FlowSampler", seed, sampler.chains_, sampler.report_.n_gradients, time.process_time() - began))
    print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    rows: list[dict] = []
    RESULTS.parent.mkdir(exist_ok=True)
    for seed in arguments.seeds.split(","):
        rows += rows_of(int(seed), arguments.draws)
        frame = pd.DataFrame(rows)
        frame.to_csv(RESULTS, index=False, float_format="%.5g")
    print(frame.groupby("method", sort=False).mean(numeric_only=True).drop(columns="seed").round(3).T.to_string())


if __name__ == "__main__":
    main()
