"""One evidence by a peer, as its documentation recommends, until its own stopping rule. Runs in the peers' environment.

    python benchmarks/samplers_peer.py rosenbrock-10 nautilus SEED        # prints one JSON line

Settings: dynesty with 500 live points, bounds and steps by its own choice ("multi" and random walks at d = 10), static and dynamic;
nautilus with its 2000 live points, run to an effective sample size of 10 000 and with the exploration discarded, as its manual says for
evidences, and once more stopped where ``smc`` has ended; pocoMC with its defaults. Likelihoods are given vectorised where the peer
takes that.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.sampler_problems import PROBLEMS, BoxProblem

STOPPED = 125_000  # evaluations


class Counted:
    """The likelihood, with its evaluations counted here and not by the peer."""

    def __init__(self, problem: BoxProblem):
        self.problem, self.n = problem, 0

    def rows(self, x):
        self.n += len(x)
        return self.problem.log_likelihood(np.asarray(x, dtype=np.float64))

    def one(self, x):
        return float(self.rows(x[None])[0])

    def from_cube(self, u):
        return self.problem.half_width * (2 * u - 1)


def dynesty_static(counted: Counted, seed: int) -> tuple[float, float]:
    import dynesty

    d = counted.problem.features
    sampler = dynesty.NestedSampler(counted.one, counted.from_cube, d, rstate=np.random.default_rng(seed))
    sampler.run_nested(print_progress=False)
    return sampler.results.logz[-1], sampler.results.logzerr[-1]


def dynesty_dynamic(counted: Counted, seed: int) -> tuple[float, float]:
    import dynesty

    d = counted.problem.features
    sampler = dynesty.DynamicNestedSampler(counted.one, counted.from_cube, d, rstate=np.random.default_rng(seed))
    sampler.run_nested(print_progress=False, wt_kwargs={"pfrac": 0.0})  # all weight on the evidence
    return sampler.results.logz[-1], sampler.results.logzerr[-1]


def nautilus(counted: Counted, seed: int) -> tuple[float, float]:
    from nautilus import Sampler

    sampler = Sampler(counted.from_cube, counted.rows, counted.problem.features, vectorized=True, seed=seed)
    sampler.run(verbose=False, discard_exploration=True)
    return float(sampler.log_z), float(1 / np.sqrt(sampler.n_eff))


def nautilus_stopped(counted: Counted, seed: int) -> tuple[float, float]:
    """As far as it comes with as many evaluations as ``smc`` takes for Rosenbrock-10, by its own ``n_like_max``."""
    from nautilus import Sampler

    sampler = Sampler(counted.from_cube, counted.rows, counted.problem.features, vectorized=True, seed=seed)
    converged = sampler.run(verbose=False, discard_exploration=True, n_like_max=STOPPED)
    if converged:
        raise RuntimeError(f"nautilus converged within {STOPPED} evaluations: run it without a limit.")
    return float(sampler.log_z), float(1 / np.sqrt(sampler.n_eff))


def pocomc(counted: Counted, seed: int) -> tuple[float, float]:
    import pocomc
    from scipy.stats import uniform

    width = counted.problem.half_width
    prior = pocomc.Prior([uniform(-width, 2 * width)] * counted.problem.features)
    sampler = pocomc.Sampler(prior, counted.rows, vectorize=True, random_state=seed)
    sampler.run(progress=False)
    return tuple(float(value) for value in sampler.evidence())


PEERS = {
    "dynesty static": dynesty_static,
    "dynesty dynamic": dynesty_dynamic,
    "nautilus": nautilus,
    "nautilus, stopped": nautilus_stopped,
    "pocoMC": pocomc,
}


def main(problem: str, peer: str, seed: int) -> None:
    counted = Counted(PROBLEMS[problem]())
    began = time.process_time()
    log_z, error = PEERS[peer](counted, seed)
    result = {"log_z": float(log_z), "log_z_err": float(error), "n_evaluations": counted.n, "seconds": time.process_time() - began}
    print(json.dumps({"problem": problem, "sampler": peer, "seed": seed, **result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
