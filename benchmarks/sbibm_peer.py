"""One cell of the peer: sbi 0.27's NPE with its own defaults and its ``nsf`` net, run by :mod:`benchmarks.sbibm` in sbi's environment.

``python benchmarks/sbibm_peer.py IN.npz OUT.npz --task NAME --threads N``: reads theta, x and the observations, writes draws and
seconds. The prior is made of torch distributions, as sbi wants it.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sbi.inference import NPE

LOG_NORMAL = {
    "sir": ([math.log(0.4), math.log(0.125)], [0.5, 0.2]),
    "lotka_volterra": ([-0.125, -3.0, -0.125, -3.0], [0.5] * 4),
}
BOX = {
    "gaussian_linear_uniform": (10, 1.0),
    "gaussian_mixture": (2, 10.0),
    "slcp": (5, 3.0),
    "slcp_distractors": (5, 3.0),
    "two_moons": (2, 1.0),
}


def prior(task, mean, covariance):
    """The task's prior; normal ones from the mean and covariance that came with the simulations."""
    if task in BOX:
        d, end = BOX[task]
        from sbi.utils import BoxUniform

        return BoxUniform(-end * torch.ones(d), end * torch.ones(d))
    if task in LOG_NORMAL:
        location, scale = (torch.tensor(v) for v in LOG_NORMAL[task])
        return torch.distributions.Independent(torch.distributions.LogNormal(location, scale), 1)
    return torch.distributions.MultivariateNormal(torch.as_tensor(mean).float(), torch.as_tensor(covariance).float())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("given", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10_000)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    given = np.load(arguments.given)
    torch.manual_seed(arguments.seed)
    theta, x, observations = (torch.as_tensor(given[name]).float() for name in ("theta", "x", "x_o"))
    began = time.perf_counter(), time.process_time()
    trainer = NPE(prior=prior(arguments.task, given["prior_mean"], given["prior_covariance"]), density_estimator="nsf")
    trainer.append_simulations(theta, x)
    trainer.train()
    posterior = trainer.build_posterior()
    seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    began = time.perf_counter()
    draws = np.stack([posterior.sample((arguments.draws,), x=row, show_progress_bars=False).numpy() for row in observations])
    np.savez(arguments.out, draws=draws, seconds=seconds, cpu_seconds=cpu, sample_seconds=time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
