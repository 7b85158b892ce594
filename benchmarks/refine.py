"""Straighter paths and better densities: likelihood through the solver after matching, and couplings of matching, by held-out nats.

Two moons; 800 steps of flow matching, then 60 of likelihood with different charges on the paths. Then two moons given a noisy
horizontal coordinate, 1000 steps of matching with different couplings. Gains in held-out log density are paired, row by row, on 4000
fresh rows.

    PYTHONPATH=. python benchmarks/refine.py

Writes ``benchmarks/results/refine.md``; a minute of one core.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.couplings import moons
from sbi_flows.flows import Flow, cnf
from sbi_flows.losses import Loss, flow_matching, nll_through_solver
from sbi_flows.training import SimulatorSource, train

RESULTS = Path(__file__).parent / "results"
ROWS, BATCH, CHARGES = 4000, 256, ((0.0, 0.0), (0.01, 0.0), (0.01, 0.01))


def trained(flow: Flow, loss: Loss, n_steps: int, learning_rate: float) -> float:
    """CPU seconds of training on fresh rows."""
    began = time.process_time()
    source = SimulatorSource(moons, n_steps // 4 * BATCH, n_validation=0)
    train(flow, source, loss=loss, max_epochs=4, batch_size=BATCH, learning_rate=learning_rate, random_state=0)
    return time.process_time() - began


@torch.no_grad()
def row(name: str, flow: Flow, test: Tensor, before: Tensor | None, seconds: float) -> tuple[str, Tensor]:
    """A line of the table and the held-out log densities."""
    log_prob = flow.choose_steps(test[:512]).log_prob(test)
    _, kinetic, curvature = flow.log_prob_with_costs(test, steps=16)
    gain = ""
    if before is not None:
        difference = log_prob - before
        gain = f"{difference.mean():.4f} +- {difference.std() / math.sqrt(len(test)):.4f}"
    line = f"| {name} | {-log_prob.mean():.4f} | {gain} | {kinetic.mean():.2f} | {curvature.mean():.2f} | {seconds:.1f} |"
    print(line, flush=True)
    return line, log_prob


def noisy(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two moons and their horizontal coordinate with noise of .3."""
    x = moons(n, generator)
    return x, x[:, :1] + 0.3 * torch.randn(n, 1, generator=generator)


def coupled() -> list[str]:
    """The table of couplings."""
    generator = torch.Generator().manual_seed(0)
    x, context = noisy(ROWS, generator)
    z = torch.randn(ROWS, 2, generator=generator)
    lines, before = [], None
    for coupling in ("independent", "c2ot", "gibbs"):
        own = torch.Generator().manual_seed(1)
        flow = cnf(2, 1, hidden=(32, 32), layers=1, embedding=32, coupling=coupling, generator=own).fit_scaling(*noisy(5000, own))
        began = time.process_time()
        source = SimulatorSource(noisy, 250 * BATCH, n_validation=0)
        train(flow, source, loss=flow_matching, max_epochs=4, batch_size=BATCH, random_state=0)
        seconds = time.process_time() - began
        with torch.no_grad():
            log_prob = flow.choose_steps(x[:512], context[:512]).log_prob(x, context)
            curvature = flow.log_prob_with_costs(x, context, steps=16)[2].mean()
            solved = flow.to_unconstrained(flow.from_base(z, context)[0], context)
            away = (z + flow.velocity(torch.zeros(ROWS), z, context) - solved).square().sum(-1).mean().sqrt()
        before = log_prob if before is None else before
        gain = f"{(log_prob - before).mean():.4f} +- {(log_prob - before).std() / math.sqrt(ROWS):.4f}" if lines else ""
        lines.append(f"| {coupling} | {-log_prob.mean():.4f} | {gain} | {curvature:.2f} | {away:.2f} | {seconds:.1f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    test = moons(ROWS, generator)
    flow = cnf(2, hidden=(32, 32), layers=1, embedding=32, generator=generator).fit_scaling(moons(5000, generator))
    seconds = trained(flow, flow_matching, 800, 1e-2)
    first, before = row("flow matching, 800 steps", flow, test, None, seconds)
    lines = [
        "# Likelihood through the solver, after flow matching",
        "",
        "| training | held-out nats | gain | kinetic energy | curvature | CPU seconds |",
        "|---|---|---|---|---|---|",
        first,
    ]
    for kinetic, curvature in CHARGES:
        refined = copy.deepcopy(flow)
        seconds = trained(refined, partial(nll_through_solver, kinetic=kinetic, curvature=curvature), 60, 2e-3)
        name = f"then 60 steps of likelihood, charges {kinetic} kinetic, {curvature} curvature"
        lines.append(row(name, refined, test, before, seconds)[0])
    lines += [
        "",
        "# Couplings of flow matching, normal noise, with a condition",
        "",
        "Beside the curvature of the paths the root mean squared error of one Euler step, in standard deviations.",
        "",
        "| coupling | held-out nats | gain | curvature | one Euler step | CPU seconds |",
        "|---|---|---|---|---|---|",
        *coupled(),
    ]
    lines += ["", f"{platform.machine()}, torch {torch.__version__}, one thread."]
    (RESULTS / "refine.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
