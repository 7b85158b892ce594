"""Couplings of noise and data, with and without a condition: eight Gaussians carried to two moons by flow matching.

The table of Cheng & Schwing 2025 (arXiv:2503.10636, figure 1), remade: the squared Wasserstein-2 distance between draws and fresh data,
for draws by one Euler step and by a converged solve. The condition is the horizontal coordinate of the data; draws are made at the
conditions of fresh data and compared with these. Beside it what is the theme of that paper measured directly: how far training
noise, given the condition, is from the noise that draws start from.

    PYTHONPATH=. python benchmarks/couplings.py [--steps 1500] [--seeds 1]

Writes ``benchmarks/results/couplings.md``; under four minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sbi_flows.bijections.continuous import Continuous
from sbi_flows.bijections.support import parse_support
from sbi_flows.bijections.velocity import VelocityNet
from sbi_flows.distillation import distil, reflow
from sbi_flows.distributions.bases import NormalMixture
from sbi_flows.flows import Flow
from sbi_flows.losses import flow_matching
from sbi_flows.losses.couplings import Ends, coupling_named
from sbi_flows.training import SimulatorSource, train

RESULTS = Path(__file__).parent / "results"
SCALE = 3.5  # lengths of the paper's figure to a unit of ours, in which both ends have a variance near one
BATCH, COMPARED = 256, 1500


@dataclass(frozen=True)
class Row:
    name: str
    conditional: bool
    coupling: str
    published: tuple[float, float] | None  # one Euler step, adaptive


ROWS = (
    Row("unconditional, independent", False, "independent", (6.232, 0.120)),
    Row("unconditional, optimal transport", False, "ot", (0.072, 0.050)),
    Row("condition, independent", True, "independent", (0.732, 0.028)),
    Row("condition, optimal transport", True, "ot", (8.276, 2.143)),
    Row("condition, C2OT", True, "c2ot", (0.077, 0.013)),
    Row("condition, Gibbs weights (made for normal noise)", True, "gibbs", None),
)


def eight_gaussians() -> NormalMixture:
    """Eight normals of variance .1 on a circle of radius 5."""
    base = NormalMixture(2, 8)
    angles = torch.arange(8) * (math.pi / 4)
    with torch.no_grad():
        base.means.copy_(5 / SCALE * torch.stack([angles.cos(), angles.sin()], dim=1))
        base.log_scales.fill_(math.log(math.sqrt(0.1) / SCALE))
    return base.requires_grad_(False)


def moons(n: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles with noise of .2, times 3, minus 1."""
    u = torch.rand(n, generator=generator) * math.pi
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, torch.cos(u), 1 - torch.cos(u))
    y = torch.where(upper, torch.sin(u), 0.5 - torch.sin(u))
    points = torch.stack([x, y], dim=1) + 0.2 * torch.randn(n, 2, generator=generator)
    return (3 * points - 1) / SCALE


def simulate(conditional: bool, n: int, generator: torch.Generator):
    """Rows, or rows and their conditions."""
    x = moons(n, generator)
    return (x, x[:, :1]) if conditional else x


def squared_w2(a: Tensor, b: Tensor) -> float:
    """Squared Wasserstein-2 distance of two samples of one size, in the paper's units."""
    cost = torch.cdist(a.double(), b.double()).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean()) * SCALE**2


@torch.no_grad()
def euler(flow: Flow, z: Tensor, context: Tensor | None, n_steps: int) -> Tensor:
    for i in range(n_steps):
        z = z + flow.velocity(torch.full((len(z),), i / n_steps), z, context) / n_steps
    return z


def noise_skew(row: Row, generator: torch.Generator) -> float:
    """Squared W2 between training noise of rows with a condition near the median and the noise that draws start from."""
    base, kept = eight_gaussians(), []
    for _ in range(40):
        x = moons(BATCH, generator)
        given = x[:, :1] if row.coupling == "c2ot" else None  # without a context optimal transport does not warn
        coupled = coupling_named(row.coupling)(Ends(base.sample(BATCH, generator), x, given), generator)
        near = (x[:, 0] - x[:, 0].median()).abs().argsort()[: BATCH // 16]
        kept.append(coupled.noise[near])
    noise = torch.cat(kept)
    return squared_w2(noise, base.sample(len(noise), generator))


def fit(row: Row, n_steps: int, seed: int) -> tuple[Flow, float]:
    """A trained flow and the CPU seconds it took."""
    generator = torch.Generator().manual_seed(seed)
    context = int(row.conditional)
    net = VelocityNet(2, context, blocks=2, hidden=(64, 64), generator=generator)
    flow = Flow(parse_support(None, 2), Continuous(net), eight_gaussians(), context=context, scaling="none")
    source = SimulatorSource(partial(simulate, row.conditional), 50 * BATCH, n_validation=0)
    began = time.process_time()
    # The warning of plain optimal transport under a condition is what this table shows.
    coupling = (lambda ends, g: coupling_named("ot")(ends._replace(context=None), g)) if row.coupling == "ot" else row.coupling
    loss = partial(flow_matching, coupling=coupling)
    train(flow, source, loss=loss, max_epochs=n_steps // 50, batch_size=BATCH, learning_rate=5e-3, weight_decay=0.0, random_state=seed)
    return flow, time.process_time() - began


def measure(flow: Flow, row: Row, seed: int) -> tuple[float, float]:
    """Squared W2 of draws by one Euler step and by a converged solve."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    x = moons(COMPARED, generator)
    given = x[:, :1] if row.conditional else None
    z = flow.base.sample(COMPARED, generator)
    fresh = x if row.conditional else moons(COMPARED, generator)
    with torch.no_grad():
        flow.choose_steps(x[:256], None if given is None else given[:256])
        solved, _ = flow.from_base(z, given)
    return squared_w2(euler(flow, z, given, 1), fresh), squared_w2(solved, fresh)


def floor(conditional: bool, seed: int) -> float:
    """What the truth itself scores: fresh data against data; given the condition, the other coordinate is drawn anew."""
    generator = torch.Generator().manual_seed(20_000 + seed)
    x = moons(COMPARED, generator)
    if not conditional:
        return squared_w2(x, moons(COMPARED, generator))
    pool = moons(200_000, generator)
    nearest = torch.searchsorted(pool[:, 0].sort().values, x[:, 0].contiguous()).clamp(max=len(pool) - 1)
    drawn = pool[pool[:, 0].argsort()][nearest]
    return squared_w2(x, drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    lines = [
        "# Couplings: eight Gaussians to moons",
        "",
        f"Squared Wasserstein-2 distance of {COMPARED} draws from fresh data, {options.steps} steps of {BATCH} rows, "
        f"mean of {options.seeds} seed(s); published: Cheng & Schwing 2025, mean of ten.",
        "",
        "| training | one Euler step | published | converged | published | noise given the condition | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    kept: dict[str, Flow] = {}
    for row in ROWS:
        found, seconds = [], []
        for seed in range(options.seeds):
            flow, spent = fit(row, options.steps, seed)
            found.append(measure(flow, row, seed))
            seconds.append(spent)
            kept.setdefault(row.name, flow)
        one, converged = np.mean(found, axis=0)
        skew = f"{noise_skew(row, torch.Generator().manual_seed(7)):.2f}" if row.conditional and row.coupling != "gibbs" else ""
        published = row.published or ("", "")
        lines.append(f"| {row.name} | {one:.3f} | {published[0]} | {converged:.3f} | {published[1]} | {skew} | {np.mean(seconds):.0f} |")
        print(lines[-1], flush=True)
    lines += [
        f"| the truth itself, unconditional | {floor(False, 0):.3f} | | {floor(False, 0):.3f} | | | |",
        f"| the truth itself, with the condition | {floor(True, 0):.3f} | | {floor(True, 0):.3f} | | "
        f"{noise_skew(ROWS[2], torch.Generator().manual_seed(8)):.2f} | |",
    ]
    lines += [
        "",
        "## Fewer steps afterwards",
        "",
        "The flow of the third row (condition, independent coupling), distilled with 10 000 pairs of its own.",
        "",
        "| sampler | evaluations | squared W2 |",
        "|---|---|---|",
    ]
    parent = kept[ROWS[2].name]
    lines += fewer_steps(parent)
    lines += ["", f"{platform.machine()}, torch {torch.__version__}, one thread; {time.process_time() - began:.0f} CPU seconds in all."]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "couplings.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[-12:]))


def fewer_steps(parent: Flow) -> list[str]:
    """Rows of the second table."""
    generator = torch.Generator().manual_seed(5)
    x = moons(COMPARED, generator)
    given, z = x[:, :1], parent.base.sample(COMPARED, generator)
    conditions = moons(5000, generator)[:, :1]
    settings = {"n_pairs": 10_000, "max_epochs": 12, "random_state": 1}
    straight = reflow(parent, conditions, **settings)
    rows = []
    for n_steps in (1, 2, 4):
        rows.append(f"| the flow itself, Euler | {n_steps} | {squared_w2(euler(parent, z, given, n_steps), x):.3f} |")
        rows.append(f"| after reflow, Euler | {n_steps} | {squared_w2(euler(straight, z, given, n_steps), x):.3f} |")
        mean = distil(parent, conditions, n_steps=n_steps, **settings)
        rows.append(f"| mean flow | {n_steps} | {squared_w2(mean.follow(z, given), x):.3f} |")
    return rows


if __name__ == "__main__":
    main()
