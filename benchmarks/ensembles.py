"""What training costs beside a bare loop, and what members trained together save beside one after another.

``python -m benchmarks.ensembles [--members 1 2 3 5] [--batch-size 256] [--features 5] [--layers 3] [--hidden 48] [--device cpu]``

Every contestant takes a few steps in turn, round after round; the table gives the median over rounds, and the ratios within
rounds, so that other work on the machine slows all alike. On the CPU one thread is used and its own time is counted.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from sbi_flows import flows
from sbi_flows.losses import nll
from sbi_flows.training import ArraySource
from sbi_flows.training.loop import _Fit

SETTINGS = {"learning_rate": 1e-3, "schedule": "one-cycle", "weight_decay": 0.0, "clip_norm": 5.0, "averaging": 0.1}


def bananas(n: int, features: int) -> np.ndarray:
    """Correlated rows with one bent axis."""
    x = np.random.default_rng(0).normal(size=(n, features))
    x[:, -1] += x[:, 0] ** 2
    return x


def build(x: np.ndarray, arguments: argparse.Namespace, seed: int):
    generator = torch.Generator().manual_seed(seed)
    flow = flows.nsf(x.shape[1], layers=arguments.layers, hidden=(arguments.hidden,) * 2, generator=generator)
    return flow.fit_scaling(torch.from_numpy(x)).to(arguments.device)


def bare_loop(x: np.ndarray, arguments: argparse.Namespace) -> Callable[[int], None]:
    """The shortest loop one would write: random rows, Adam, no clipping, no schedule, no bookkeeping."""
    flow = build(x, arguments, 0)
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    rows = torch.tensor(x, dtype=torch.float32, device=arguments.device)

    def steps(n: int) -> None:
        for _ in range(n):
            batch = rows[torch.randint(len(rows), (arguments.batch_size,), device=rows.device)]
            loss = -flow.log_prob(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def package_loop(x: np.ndarray, arguments: argparse.Namespace, members: int) -> Callable[[int], None]:
    """Steps of ``train``: own shuffles a member, clipping, skipping, schedule, counts."""
    device = torch.device(arguments.device)
    source = ArraySource(x).to(device, torch.float32)
    built = [build(x, arguments, seed) for seed in range(members)]
    fit = _Fit(built, source, nll, SETTINGS, torch.Generator(device).manual_seed(0), None)
    sums = torch.zeros(2, members, dtype=torch.float64, device=device)

    def steps(n: int) -> None:
        for _, batch in zip(range(n), source.epoch(members, len(x) // arguments.batch_size, fit.generator), strict=False):
            fit._step(batch, 1e-3, sums)

    return steps


def measure(contestants: dict, rounds: int, n_steps: int, device: str) -> dict[object, np.ndarray]:
    """Seconds a step, one entry a round."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    seconds: dict[object, list[float]] = {name: [] for name in contestants}
    for steps in contestants.values():
        steps(5)
    for _ in range(rounds):
        for name, steps in contestants.items():
            if device != "cpu":
                torch.cuda.synchronize()
            began = clock()
            steps(n_steps)
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append((clock() - began) / n_steps)
    return {name: np.array(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = bananas(max(10_000, arguments.batch_size * (arguments.steps + 1)), arguments.features)
    contestants: dict = {"bare loop": bare_loop(x, arguments)}
    contestants.update({m: package_loop(x, arguments, m) for m in sorted({1, *arguments.members})})
    seconds = measure(contestants, arguments.rounds, arguments.steps, arguments.device)
    table = pd.DataFrame(
        {
            "ms a step": {name: 1e3 * np.median(s) for name, s in seconds.items()},
            "beside one flow": {name: np.median(s / seconds[1]) for name, s in seconds.items()},
            "one after another / together": {
                name: np.nan if isinstance(name, str) else np.median(name * seconds[1] / s) for name, s in seconds.items()
            },
        }
    )
    where = torch.cuda.get_device_name() if arguments.device != "cpu" else f"{platform.processor() or platform.machine()}, one thread"
    print(f"nsf d={arguments.features}, {arguments.layers} layers, hidden {arguments.hidden} x 2, batch {arguments.batch_size}; {where}")
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
