"""Densities without data: stochastic flows and diffusions beside plain sequential Monte Carlo, from the same priors.

    python -m benchmarks.unnormalised [--problems a,b] [--methods a,b] [--seeds 2]

Every method gets the same box prior and nothing else. A run's row says what all of it took, training included: evaluations of the
likelihood (those of the path samplers with gradients), seconds, the error of ln Z with the reported one, the effective sample size of
10000 weighted draws (of SMC's particles there is none), the largest error of a mode's mass, and the verdict.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.sampler_problems import LOG_2PI, BoxProblem, funnel, many_well, mixture
from sbi_flows.distributions import BoxUniform
from sbi_flows.results import WeightedSamples
from sbi_flows.samplers import HMC, diffusion_sampler, smc, stochastic_flow
from sbi_flows.targets import Target, posterior

RESULTS = Path(__file__).parent / "results" / "unnormalised.csv"
DRAWS = 10_000
COLUMNS = ["problem", "method", "seed", "log_z_error", "reported", "ess", "mass_error", "evaluations", "gradients", "seconds", "verdict"]


def mixture_in_torch(x: Tensor) -> Tensor:
    centres = torch.zeros(4, x.shape[1], dtype=x.dtype)
    centres[:, :2] = torch.tensor([[5, 5], [-5, 5], [-5, -5], [5, -5]])
    masses = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=x.dtype)
    away = (x[:, None] - centres).square().sum(-1)
    return torch.logsumexp(masses.log() - 0.5 * away, 1) - 0.5 * x.shape[1] * LOG_2PI


def many_well_in_torch(x: Tensor) -> Tensor:
    first, second = x[:, ::2], x[:, 1::2]
    return -(first.pow(4) - 6 * first.square() - 0.5 * first + 0.5 * second.square()).sum(1)


def funnel_in_torch(x: Tensor) -> Tensor:
    v, rest = x[:, 0], x[:, 1:]
    own = -0.5 * v.square() / 9 - 0.5 * math.log(9) - 0.5 * LOG_2PI
    return own - 0.5 * rest.square().sum(1) * torch.exp(-v) - 0.5 * rest.shape[1] * (v + LOG_2PI)


PROBLEMS: dict[str, tuple[Callable[[], BoxProblem], Callable[[Tensor], Tensor]]] = {
    "manywell-4": (lambda: many_well(2), many_well_in_torch),  # two pairs: four modes
    "mixture-2": (lambda: mixture(2), mixture_in_torch),
    "mixture-16": (lambda: mixture(16), mixture_in_torch),
    "funnel-10": (funnel, funnel_in_torch),
}

# What is trained is sized so that a run takes half a minute on a free core.
METHODS: dict[str, Callable[[Target, int], WeightedSamples]] = {
    "smc": lambda target, seed: _from_smc(target, seed),
    "annealed langevin (untrained)": lambda t, s: _paths(stochastic_flow(t, n_blocks=16, layers=0, n_steps=0, random_state=s), s),
    "stochastic flow: langevin": lambda t, s: _paths(stochastic_flow(t, n_blocks=8, n_steps=75, batch_size=64, random_state=s), s),
    "stochastic flow: hmc": lambda t, s: _paths(
        stochastic_flow(t, n_blocks=8, n_steps=50, batch_size=64, kernel=HMC(n_steps=3), kernel_steps=1, random_state=s), s
    ),
    "diffusion: pieces": lambda t, s: _paths(diffusion_sampler(t, n_steps=400, batch_size=128, random_state=s), s),
    "diffusion: paths": lambda t, s: _paths(
        diffusion_sampler(t, n_steps=50, batch_size=64, training="paths", learning_rate=1e-2, random_state=s), s
    ),
}


def _from_smc(target: Target, seed: int) -> WeightedSamples:
    result = smc(target, flow=None, random_state=seed)
    info = {"n_evaluations": result.n_evaluations, "n_gradients": 0, "log_z": result.evidence.log_z, "error": result.evidence.log_z_err}
    return WeightedSamples(result.samples.samples, result.samples.log_weights, result.names, result.reliability, info)


def _paths(sampler, seed: int) -> WeightedSamples:
    drawn = sampler.sample(DRAWS, random_state=seed + 1000)
    info = {
        "n_evaluations": drawn.info["n_evaluations"] + drawn.info["n_training_evaluations"],
        "n_gradients": drawn.info["n_gradients"] + drawn.info["n_training_gradients"],
        "log_z": drawn.log_z,
        "error": drawn.log_z_err,
    }
    return WeightedSamples(drawn.samples, drawn.log_weights, drawn.names, drawn.source, info)


def run(name: str, method: str, seed: int) -> dict[str, object]:
    make, log_likelihood = PROBLEMS[name]
    problem = make()
    d, half_width = problem.features, problem.half_width
    target = posterior(log_likelihood, BoxUniform([-half_width] * d, [half_width] * d))
    began = time.perf_counter()
    drawn = METHODS[method](target, seed)
    seconds = time.perf_counter() - began
    masses = "" if problem.modes is None else f"{np.abs(drawn.weights @ problem.modes(drawn.samples) - problem.masses).max():.3f}"
    return {
        "problem": name,
        "method": method,
        "seed": seed,
        "log_z_error": f"{drawn.info['log_z'] - problem.log_z:.3f}",
        "reported": f"{drawn.info['error']:.3f}",
        "ess": "" if method == "smc" else f"{drawn.ess:.0f}",
        "mass_error": masses,
        "evaluations": drawn.info["n_evaluations"],
        "gradients": drawn.info["n_gradients"],
        "seconds": f"{seconds:.1f}",
        "verdict": "ok" if (drawn.source or drawn.reliability).ok and drawn.reliability.ok else "NOT RELIABLE",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            for name in arguments.problems.split(","):
                for method in arguments.methods.split(","):
                    row = run(name, method, seed)
                    writer.writerow(row)
                    file.flush()
                    print(" ".join(f"{value}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
