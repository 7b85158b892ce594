"""Continuous flows: exact log_prob beside zuko's, integrals, and how honest the reported errors are.

    python -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/requirements-flows.txt
    PYTHONPATH=. .venv-peers/bin/python benchmarks/cnf.py [--quick] [--threads 1]

Both libraries have two hidden layers of one width, and random weights scaled so that the two flows move points equally far.
zuko integrates adaptively for the whole batch and takes the trace by one backward pass a column; ours takes the steps it chooses
for 1e-3 nats, and its time includes the error estimate. Without zuko only our rows are written.

Writes ``benchmarks/results/cnf.json`` and ``cnf.md``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.flows import RESULTS, machine
from sbi_flows.flows import build, cnf

WIDTH = 256
SMALL = 32  # for tables of numbers, not of speed


def ours(d: int, strength: float, width: int, dtype: torch.dtype = torch.float32):
    """A flow of one block with output weights of the given size; at rest they are zero."""
    flow = cnf(d, layers=1, hidden=(width, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = flow.bijection.net.out_weight
    with torch.no_grad():
        weight.copy_(strength / math.sqrt(weight.shape[1]) * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return flow


def seconds(job, repeats: int) -> float:
    """The fastest of a few calls: others use the machine too."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def moved(to_latent, x: Tensor) -> float:
    with torch.no_grad():
        return float((to_latent(x) - x).norm(dim=1).mean())


def speed(dims: list[int], rows: int, repeats: int) -> list[dict]:
    """Seconds of one exact log_prob, and for ours the error it reports."""
    with_peer = importlib.util.find_spec("zuko") is not None
    table = []
    for d in dims:
        x = torch.randn(rows, d, generator=torch.Generator().manual_seed(2))
        flow = ours(d, 1.0, WIDTH)
        flow.choose_steps(x)
        row = {"d": d, "rows": rows, "moved": moved(lambda x, flow=flow: flow.to_base(x)[0], x), "steps": flow.bijection.steps}
        row["largest error"] = float(flow.log_prob_error(x).max())
        with torch.no_grad():
            flow.log_prob(x)
            row["sbi_flows"] = seconds(lambda flow=flow, x=x: flow.log_prob(x), repeats)
            if with_peer:
                peer = zuko_flow(d, row["moved"], x)
                row["zuko"] = seconds(lambda peer=peer, x=x: peer().log_prob(x), 1)
                row["zuko moved"] = moved(peer().transform, x)
                row["times slower"] = row["zuko"] / row["sbi_flows"]
        table.append(row)
        print(row, flush=True)
    return table


def zuko_flow(d: int, far: float, x: Tensor):
    """zuko's exact flow with its last layer scaled until points move about ``far``."""
    import zuko

    torch.manual_seed(0)
    peer = zuko.flows.CNF(d, hidden_features=(WIDTH, WIDTH), exact=True)
    last = [p for p in peer.parameters() if p.ndim][-2:]
    with torch.no_grad():
        for _ in range(2):
            factor = far / moved(peer().transform, x[:8])
            for p in last:
                p.mul_(min(factor, 30.0))
    return peer


def integrals(strengths: list[float], n: int) -> list[dict]:
    """Sums of the density over a box around its draws, in two dimensions and float64."""
    table = []
    for strength in strengths:
        flow = ours(2, strength, SMALL, torch.float64)
        x = flow.sample(2000, generator=torch.Generator().manual_seed(0))
        low, high = x.amin(0), x.amax(0)
        edges = [torch.linspace(a - (b - a) / 8, b + (b - a) / 8, n + 1).double() for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        axes = [(e[1:] + e[:-1]) / 2 for e in edges]
        start = time.perf_counter()
        with torch.no_grad():
            total = flow.log_prob(torch.cartesian_prod(*axes)).exp().sum() * math.prod(float(e[1] - e[0]) for e in edges)
            moved = (flow.to_base(x)[0] - x).norm(dim=1).mean()
        row = {"strength": strength, "moved": float(moved), "integral": float(total), "points": n * n}
        row["seconds"] = time.perf_counter() - start
        table.append(row)
        print(row, flush=True)
    return table


def honesty(strengths: list[float], dims: list[int], rows: int) -> list[dict]:
    """Reported errors against a solve with ten times the most steps that any row got (64 times the first)."""
    table = []
    for d in dims:
        for strength in strengths:
            flow = ours(d, strength, SMALL, torch.float64)
            with torch.no_grad():
                x = flow.sample(rows, generator=torch.Generator().manual_seed(0))
                reported = flow.log_prob_error(x)
                true = (flow.log_prob(x) - finer(flow, x)).abs()
            ratio = true / reported
            table.append(
                {
                    "d": d,
                    "strength": strength,
                    "median reported": float(reported.median()),
                    "median true": float(true.median()),
                    "largest reported": float(reported.max()),
                    "largest true": float(true.max()),
                    "rows worse than reported": float((ratio > 1).double().mean()),
                    "worst ratio": float(ratio.max()),
                }
            )
            print(table[-1], flush=True)
    return table


def finer(flow, x: Tensor) -> Tensor:
    fine = build(flow.spec).double()
    fine.load_state_dict(flow.state_dict())
    fine.bijection.tolerance, fine.bijection.steps = None, 40 * flow.bijection.steps
    return fine.log_prob(x)


def as_table(rows: list[dict]) -> list[str]:
    names = list(rows[0])
    cells = [[f"{row[k]:.3g}" if isinstance(row.get(k), float) else str(row.get(k, "")) for k in names] for row in rows]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *("| " + " | ".join(cell) + " |" for cell in cells)]


def markdown(report: dict) -> str:
    lines = ["# Continuous flows", "", f"Machine: {report['machine']}", "", "Seconds of one exact log_prob (zuko 1.6, `exact=True`).", ""]
    lines += [*as_table(report["speed"]), "", "Integral of the density in two dimensions; how far the flow moves its draws.", ""]
    lines += [*as_table(report["integrals"]), "", "Reported errors of log_prob, in nats, beside those against a ten times finer solve.", ""]
    return "\n".join([*lines, *as_table(report["honesty"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test, not a result")
    parser.add_argument("--threads", type=int, help="torch's default if left out; 1 on a machine with other work on it")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    report = {
        "machine": machine("cpu"),
        "speed": speed([8] if quick else [8, 64], 64, 3),
        "integrals": integrals([1.0] if quick else [1.0, 2.0, 3.0], 40 if quick else 60),
        "honesty": honesty([1.0] if quick else [1.0, 2.0, 4.0], [2] if quick else [2, 8], 50),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "cnf.json").write_text(json.dumps(report, indent=1))
    (arguments.output / "cnf.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
