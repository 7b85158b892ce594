"""Boltzmann generators without data, free-energy differences, and path gradients beside plain ones.

    python -m benchmarks.boltzmann wells [--problems double-well,gmm-9,gmm-40,manywell-32,tetrahedron] [--seeds 2]
    python -m benchmarks.boltzmann differences
    python -m benchmarks.boltzmann paths [--steps 300]
    python -m benchmarks.boltzmann forces [--steps 300]

`wells`: `BoltzmannGenerator(energy).fit()` and nothing else; ESS at 10000 draws, of the flow's own (reverse) and seen from 10000 exact
draws of the target (forward), the error of ln Z beside the stated one, and the least share of a mode's exact mass that weighted draws give
it. `differences`: left and right well, and a harmonic crystal with and without coupling. `paths`: milliseconds of CPU a training step, and
ESS at equal steps. `forces`: error of forces on a torus, by likelihood alone and by forces matched besides, from 500 configurations.
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

from sbi_flows import BoltzmannGenerator, free_energy_difference
from sbi_flows.bijections.base import Chain
from sbi_flows.bijections.coupling import Coupling
from sbi_flows.bijections.smooth import SmoothCircle
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import Torus
from sbi_flows.flows import Flow, nsf, realnvp
from sbi_flows.losses import Batch, Loss, force_matching, nll, reverse_kl
from sbi_flows.physics.molecules import ManyWell, Tetrahedron, double_well, gmm9, gmm40
from sbi_flows.training import ArraySource, SimulatorSource, train
from sbi_flows.weights import kish_ess, log_mean_exp

RESULTS = Path(__file__).parent / "results" / "boltzmann.csv"
DRAWS = 10_000
COLUMNS = ["problem", "seed", "log_z_error", "reported", "reverse_ess", "forward_ess", "least_mode", "energies", "cpu_seconds", "verdict"]
PROBLEMS: dict[str, tuple[Callable, dict]] = {
    "double-well": (double_well, {}),
    "gmm-9": (gmm9, {}),
    "gmm-40": (gmm40, {}),
    "tetrahedron": (lambda: Tetrahedron(cubic=0.0), {}),
    "manywell-32": (ManyWell, {"n_particles": 4000, "n_steps": 1000}),
}


def wells(name: str, seed: int) -> dict[str, object]:
    make, settings = PROBLEMS[name]
    energy, began = make(), time.process_time()
    generator = BoltzmannGenerator(energy, random_state=seed, **settings).fit()
    cpu = time.process_time() - began
    drawn = generator.sample(DRAWS, random_state=seed + 100)
    found = generator.free_energy(random_state=seed + 200)
    exact = energy.sample(DRAWS, torch.Generator().manual_seed(seed + 300))
    ratios = -energy(exact).numpy() - generator.log_prob(exact.numpy())
    return {
        "problem": name,
        "seed": seed,
        "log_z_error": f"{-found.value - energy.log_z:+.4f}",
        "reported": f"{found.error:.4f}",
        "reverse_ess": f"{drawn.ess / DRAWS:.3f}",
        "forward_ess": f"{math.exp(energy.log_z - log_mean_exp(ratios)):.3f}",
        "least_mode": f"{_least_mode(energy, drawn):.2f}",
        "energies": generator.report_.n_evaluations,
        "cpu_seconds": f"{cpu:.1f}",
        "verdict": "ok" if found.reliability.ok else "NOT RELIABLE",
    }


def _least_mode(energy, drawn) -> float:
    """The least, over modes (of ManyWell-32: over wells and sides), of weighted mass over exact mass."""
    x = torch.from_numpy(drawn.samples)
    if isinstance(energy, ManyWell):
        right = drawn.weights @ (drawn.samples[:, ::2] > 0)
        truth = 1 / (1 + math.exp(energy.free_energy_difference))
        return float(min((right / truth).min(), ((1 - right) / (1 - truth)).min()))
    if energy.modes is None:
        return math.nan  # one mode, or none is known
    nearest = torch.cdist(x, energy.modes).argmin(1).numpy()
    exact = torch.cdist(energy.sample(200_000, torch.Generator().manual_seed(9)), energy.modes).argmin(1)
    truth = exact.bincount(minlength=len(energy.modes)).numpy() / len(exact)
    return float((np.bincount(nearest, drawn.weights, len(energy.modes)) / truth).min())


def differences() -> None:
    energy = double_well()
    generator = BoltzmannGenerator(energy, random_state=0).fit()
    found = generator.free_energy_difference(lambda x: x[:, 0] < 0, lambda x: x[:, 0] > 0, random_state=1)
    print(f"double well, right - left: {found.value:.4f} +- {found.error:.4f}, exactly {energy.free_energy_difference:.4f}")
    eye = torch.eye(24, dtype=torch.float64)
    ends = eye, eye + 3 * (2 * eye - eye.roll(1, 0) - eye.roll(-1, 0))
    fits = [BoltzmannGenerator(lambda x, k=k: 0.5 * ((x @ k) * x).sum(1), 24, n_steps=200, random_state=0).fit() for k in ends]
    found = free_energy_difference(*fits, random_state=1)
    exact = 0.5 * float(torch.logdet(ends[1]) - torch.logdet(ends[0]))
    print(f"ring of 24 atoms, coupled - uncoupled: exactly {exact:.4f}\n{found}")


def plain_reverse_kl(log_prob: Callable) -> Loss:
    """The standard estimator: the divergence at the flow's own draws, differentiated through everything."""

    def loss(flow: Flow, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        x, log_det = flow.from_base(batch.x, dtype=torch.float64)
        return flow.base.log_prob(batch.x) - log_det - log_prob(x)

    return loss


def paths(steps: int) -> None:
    """Three targets whose flows must find no mode: what is compared is the noise of the gradient."""
    d = 16
    scales = torch.linspace(0.3, 3, d, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    targets: dict[str, tuple[int, Callable]] = {
        "correlated normal": (d, lambda x: -0.5 * ((x @ mix) / scales).square().sum(1)),
        "quartic": (d, lambda x: -0.25 * x.pow(4).sum(1) - 0.5 * (x - x.roll(1, 1)).square().sum(1)),
        "banana": (2, lambda x: -0.5 * (x[:, 0] / 2).square() - 0.5 * ((x[:, 1] - 0.5 * x[:, 0].square()) / 0.5).square()),
    }
    builders: dict[str, Callable[[int, torch.Generator], Flow]] = {
        "affine": lambda k, g: realnvp(k, layers=4, generator=g),
        "spline": lambda k, g: nsf(k, layers=4, autoregressive=False, generator=g),
    }
    settings = {"batch_size": 256, "max_epochs": steps // 25, "learning_rate": 3e-3, "weight_decay": 0.0, "random_state": 0}
    for name, (k, log_prob) in targets.items():
        for kind, build in builders.items():
            row = []
            for make in (plain_reverse_kl, reverse_kl):
                flow = build(k, torch.Generator().manual_seed(0))
                source = SimulatorSource(flow.base.sample, 256 * 25, n_validation=0)
                began = time.process_time()
                train(flow, source, loss=make(log_prob), **settings)
                cpu = (time.process_time() - began) / steps * 1e3
                x = flow.sample(DRAWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
                with torch.no_grad():
                    ess = kish_ess((log_prob(x) - flow.log_prob(x)).numpy()) / DRAWS
                row.append((ess, cpu))
            (plain, plain_ms), (path, path_ms) = row
            cost = f"ms a step {plain_ms:.1f} -> {path_ms:.1f} ({path_ms / plain_ms:.2f})"
            print(f"{name:18s} {kind:7s} ESS {plain:.3f} -> {path:.3f}   {cost}", flush=True)


def forces(steps: int) -> None:
    """Two coupled angles: the force error of smooth flows, over the spread of the forces, at 2000 fresh configurations."""

    def energy(x: torch.Tensor) -> torch.Tensor:
        return 1 - 2 * torch.cos(x[:, 0]) - 1.5 * torch.cos(2 * (x[:, 1] - x[:, 0]))

    generator = torch.Generator().manual_seed(0)
    uniform = math.pi * (2 * torch.rand(40_000, 2, dtype=torch.float64, generator=generator) - 1)
    kept = uniform[torch.rand(len(uniform), dtype=torch.float64, generator=generator) < torch.exp(-energy(uniform) - 2.5)]
    x, fresh = kept[:500], kept[500:2500]

    def force(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.clone().requires_grad_()
        return -torch.autograd.grad(energy(rows).sum(), rows)[0]

    truth = force(fresh)
    for name, loss, context in (("likelihood", nll, None), ("with forces", force_matching, force(x))):
        seeds = [torch.Generator().manual_seed(i) for i in range(4)]
        couplings = [Coupling(SmoothCircle(), 2, active=[i % 2], hidden=(32, 32), generator=seeds[i]) for i in range(4)]
        flow = Flow(parse_support("circular", 2), Chain(couplings), Torus(2), scaling="none")
        source = ArraySource(x, context, validation_rows=range(50))
        train(flow, source, loss=loss, batch_size=150, max_epochs=steps // 3, learning_rate=5e-3, random_state=0)
        rows = fresh.clone().requires_grad_()
        (own,) = torch.autograd.grad(flow.log_prob(rows).sum(), rows)
        error = float((own - truth).square().mean().sqrt() / truth.square().mean().sqrt())
        print(f"{name:12s} force error {error:.3f}   ln q {float(flow.log_prob(fresh).detach().mean()):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["wells", "differences", "paths", "forces"])
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    if arguments.part == "differences":
        differences()
        return
    if arguments.part == "forces":
        forces(arguments.steps)
        return
    if arguments.part == "paths":
        paths(arguments.steps)
        return
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for name in arguments.problems.split(","):
            for seed in range(arguments.seeds):
                row = wells(name, seed)
                writer.writerow(row)
                file.flush()
                print(" ".join(f"{value}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
