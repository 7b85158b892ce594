"""What likelihood through the solver adds to a continuous flow trained by matching, and what charging for its paths changes.

Two moons; 800 steps of flow matching, then 60 of likelihood with different charges. The gain in held-out log density is paired, row by
row, on 4000 fresh rows.

    PYTHONPATH=. python benchmarks/refine.py

Writes ``benchmarks/results/refine.md``; half a minute of one core.
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
    lines += ["", f"{platform.machine()}, torch {torch.__version__}, one thread."]
    (RESULTS / "refine.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
