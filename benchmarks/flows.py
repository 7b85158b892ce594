"""Autoregressive spline flows beside zuko and nflows: seconds a training step, log_prob and draws, and held-out likelihood.

All in one process, taking turns, at equal sizes: 5 layers, (64, 64) hidden, 8 bins, 8 context features, and with the same number of
threads for all, first one, then two (``--threads``). A training step of ours holds torch to one thread where our training loop does.
Beside it the matrix products alone of the same networks: what no implementation with dense products can beat.

    python -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/requirements-flows.txt
    PYTHONPATH=. .venv-peers/bin/python benchmarks/flows.py [--quick] [--device cuda]

Writes ``benchmarks/results/flows.json`` and ``flows.md`` (``flows-cuda.*`` on a GPU). ``--only speed`` and ``--only fit`` run one
part and keep the other's last results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from sbi_flows._threads import threads_for
from sbi_flows.flows import nsf

LAYERS, HIDDEN, BINS, CONTEXT = 5, (64, 64), 8, 8
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("sbi_flows", "zuko", "nflows")


# --- The contestants --------------------------------------------------------------------------------------------------------


class Ours(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.flow = nsf(d, CONTEXT, layers=LAYERS, hidden=HIDDEN, bins=BINS)

    def log_prob(self, x, context):
        return self.flow.log_prob(x, context)

    def sample(self, context):
        return self.flow.sample(len(context), context)

    def threads_of_a_step(self, rows: int):
        return threads_for(rows * sum(p.numel() for p in self.parameters()))


class Zuko(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        import zuko

        self.flow = zuko.flows.NSF(d, CONTEXT, transforms=LAYERS, bins=BINS, hidden_features=HIDDEN)

    def log_prob(self, x, context):
        return self.flow(context).log_prob(x)

    def sample(self, context):
        with torch.no_grad():
            return self.flow(context).sample()


class NFlows(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import (
            CompositeTransform,
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
            ReversePermutation,
        )

        layers: list = []
        for _ in range(LAYERS):
            layers += [
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    features=d,
                    hidden_features=HIDDEN[0],
                    context_features=CONTEXT,
                    num_bins=BINS,
                    tails="linear",
                    tail_bound=5.0,
                    num_blocks=len(HIDDEN) - 1,
                    use_residual_blocks=False,
                ),
                ReversePermutation(d),
            ]
        self.flow = Flow(CompositeTransform(layers), StandardNormal([d]))

    def log_prob(self, x, context):
        return self.flow.log_prob(x, context)

    def sample(self, context):
        with torch.no_grad():
            return self.flow.sample(1, context).squeeze(1)


class Products(nn.Module):
    """Only the matrix products of the conditioners."""

    def __init__(self, d: int):
        super().__init__()
        sizes = [d + CONTEXT, *HIDDEN, (3 * BINS - 1) * d]
        self.layers = nn.ModuleList(
            nn.ParameterList(nn.Parameter(torch.randn(b, a) / math.sqrt(a)) for a, b in pairwise(sizes))
            for _ in range(LAYERS)
        )

    def log_prob(self, x, context):
        start = torch.cat([x, context], dim=1).T.contiguous()
        total = 0.0
        for weights in self.layers:
            h = start
            for weight in weights:
                h = weight @ h
            total = total + h[0]
        return total


CONTESTANTS: dict[str, Callable[[int], nn.Module]] = {
    "sbi_flows": Ours,
    "zuko": Zuko,
    "nflows": NFlows,
    "matrix products": Products,
}


# --- Speed ------------------------------------------------------------------------------------------------------------------


def tasks(model, x: Tensor, context: Tensor) -> dict[str, Callable[[], None]]:
    """What is timed: one training step, one density, one batch of draws."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)

    held = getattr(model, "threads_of_a_step", lambda rows: nullcontext())

    def train():
        with held(len(x)):
            optimiser.zero_grad(set_to_none=True)
            (-model.log_prob(x, context).mean()).backward()
            optimiser.step()

    def density():
        with torch.no_grad():
            model.log_prob(x, context)

    jobs = {"train step": train, "log_prob": density}
    if hasattr(model, "sample"):
        jobs["sample"] = lambda: model.sample(context)
    return jobs


def clock(job: Callable[[], None], device: str, repeats: int) -> float:
    """Seconds a call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        job()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def clock_warm(job: Callable[[], None], device: str) -> float:
    """Seconds a call, the first one aside."""
    first = clock(job, device, 1)
    # A call of many seconds needs no second one.
    repeats = max(1, min(20, int(0.3 / first)))
    return first if first > 5 else min(clock(job, device, repeats) for _ in range(3))


def speed(device: str, dims: list[int], batches: list[int], rounds: int, seconds: float, threads: int) -> list[dict]:
    torch.set_num_threads(threads)
    rows = []
    for d in dims:
        for batch in batches:
            torch.manual_seed(0)
            x, context = torch.randn(batch, d, device=device), torch.randn(batch, CONTEXT, device=device)
            jobs = {}
            for name, make in CONTESTANTS.items():
                for task, job in tasks(make(d).to(device), x, context).items():
                    # Peers draw one column at a time through the whole net: beyond this that takes minutes a call.
                    if task == "sample" and batch * d > 200_000 and name in ("zuko", "nflows"):
                        continue
                    jobs[task, name] = job
            for task in ("train step", "log_prob", "sample"):
                own = {name: job for (t, name), job in jobs.items() if t == task}
                warm = {name: clock_warm(job, device) for name, job in own.items()}
                repeats = {name: max(1, min(50, int(seconds / t))) for name, t in warm.items()}
                times: dict[str, list[float]] = {name: [] for name in own}
                for _ in range(rounds if max(warm.values()) < 1 else 2):
                    for name, job in own.items():
                        times[name].append(clock(job, device, repeats[name]))
                medians = {name: statistics.median(t) for name, t in times.items()}
                ratios = {
                    name: statistics.median(t / o for t, o in zip(times[name], times["sbi_flows"], strict=True)) for name in own
                }
                rows.append({"threads": threads, "d": d, "batch": batch, "task": task, "seconds": medians, "times_slower": ratios})
                print(speed_line(rows[-1]), flush=True)
    return rows


def speed_line(row: dict) -> str:
    seconds, ratios = row["seconds"], row["times_slower"]
    cells = [f"{1e3 * seconds[n]:.2f} ms ({ratios[n]:.2f}x)" if n in seconds else "" for n in CONTESTANTS]
    return f"| {row['threads']} | {row['d']} | {row['batch']} | {row['task']} | " + " | ".join(cells) + " |"


# --- Held-out likelihood ----------------------------------------------------------------------------------------------------


def problem(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``x (n, 8)`` given ``context (n, 8)``: a ring, two modes, a banana, noise of varying size, a Student t, correlations."""
    g = torch.Generator().manual_seed(seed)
    c = torch.randn(n, CONTEXT, generator=g)
    e = torch.randn(n, 8, generator=g)
    u = torch.rand(n, 4, generator=g)
    radius = 2 + 0.5 * torch.tanh(c[:, 0]) + 0.15 * e[:, 0]
    angle = 2 * math.pi * u[:, 0] * torch.sigmoid(c[:, 1]) + c[:, 2]
    ring = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
    mode = torch.where(u[:, 1] < torch.sigmoid(c[:, 3]), 1.5, -1.5)
    x2 = mode * (1 + 0.3 * torch.sin(c[:, 4])) + 0.25 * e[:, 2]
    x3 = 0.5 * x2.square() + 0.3 * torch.exp(0.5 * c[:, 5]) * e[:, 3]
    student = e[:, 4] / torch.sqrt((-2 * torch.log1p(-u[:, 2])) * 0.5)
    x4 = c[:, 6] + 0.4 * student.clamp(-8, 8)
    x5 = torch.sin(2 * ring[:, 0]) + 0.2 * e[:, 5]
    x6 = x5 * ring[:, 1] + 0.3 * e[:, 6]
    x7 = c[:, 7] * x3 * 0.5 + x4 + 0.5 * e[:, 7]
    return torch.cat([ring, torch.stack([x2, x3, x4, x5, x6, x7], 1)], 1), c


def fit(name: str, seed: int, epochs: int, batch: int = 512, learning_rate: float = 2e-3) -> dict:
    """Mean held-out log density after equal epochs, batches, optimiser and schedule; columns z-scored for everybody."""
    x, c = problem(20_000, 1)
    x_test, c_test = problem(20_000, 2)
    mean, scale = x.mean(0), x.std(0)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    torch.manual_seed(seed)
    model = CONTESTANTS[name](x.shape[1])
    if name == "sbi_flows":
        model.flow.fit_scaling(x, c)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: batch * (len(x) // batch)].split(batch):
            optimiser.zero_grad(set_to_none=True)
            (-model.log_prob(x[rows], c[rows]).mean()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        held_out = torch.cat([model.log_prob(a, b) for a, b in zip(x_test.split(4096), c_test.split(4096), strict=True)])
        train = torch.cat([model.log_prob(a, b) for a, b in zip(x.split(4096), c.split(4096), strict=True)])
    return {
        "library": name,
        "seed": seed,
        "epochs": epochs,
        "held_out": held_out.mean().item(),
        "error": held_out.std().item() / math.sqrt(len(held_out)),
        "train": train.mean().item(),
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


# --- Report -----------------------------------------------------------------------------------------------------------------


def machine(device: str) -> dict:
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        models = [line.split(":")[1].strip() for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    info = {"cpu": name, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__}
    if device == "cuda":
        info["gpu"] = torch.cuda.get_device_name()
    return info


def markdown(report: dict) -> str:
    lines = ["# Spline flows beside zuko and nflows", "", f"Machine: {report['machine']}", ""]
    if report.get("speed"):
        lines += ["Milliseconds a call; in brackets how many times longer than sbi_flows (median of alternating rounds).", ""]
        lines += ["| threads | d | batch | task | " + " | ".join(CONTESTANTS) + " |", "|" + "---|" * (4 + len(CONTESTANTS))]
        lines += [speed_line(row) for row in report["speed"]]
    if report.get("fit"):
        lines += ["", "Mean held-out log density of 20 000 rows, nats (higher is better); equal epochs, batches, optimiser.", ""]
        lines += ["| library | seed | epochs | held out | train | seconds | parameters |", "|" + "---|" * 7]
        lines += [
            f"| {r['library']} | {r['seed']} | {r['epochs']} | {r['held_out']:.3f} +- {r['error']:.3f} | {r['train']:.3f} "
            f"| {r['seconds']:.0f} | {r['parameters']} |"
            for r in report["fit"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="small batches and few epochs: a smoke test, not a result")
    parser.add_argument("--only", choices=["speed", "fit"])
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for every library alike")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = arguments.device
    batches = arguments.batches or ([256, 16384, 262144] if device == "cuda" else [256, 16384])
    if arguments.quick:
        batches, arguments.rounds = batches[:1], 3
    path = arguments.output / ("flows.json" if device == "cpu" else "flows-cuda.json")
    report = json.loads(path.read_text()) if path.exists() else {}
    report["machine"] = machine(device)
    if arguments.only != "fit":
        counts = arguments.threads if device == "cpu" else arguments.threads[:1]
        report["speed"] = [
            row for n in counts for row in speed(device, arguments.dims, batches, arguments.rounds, seconds=0.3, threads=n)
        ]
    torch.set_num_threads(arguments.threads[-1])
    if arguments.only != "speed" and device == "cpu":
        seeds, epochs = ((0,), 2) if arguments.quick else ((0, 1, 2), 20)
        report["fit"] = []
        for seed in seeds:
            for name in LIBRARIES:
                report["fit"].append(fit(name, seed, epochs))
                print(report["fit"][-1], flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    path.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
