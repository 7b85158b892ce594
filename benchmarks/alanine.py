"""Alanine dipeptide in implicit water: a Boltzmann generator on its bonds, angles and dihedrals beside molecular dynamics.

``reference`` runs Langevin dynamics in OpenMM (``pip install 'sbi_flows[molecules]'``) and caches it in ``--folder``: seed 0 to train on,
seed 1 to judge by. ``generator`` fits on the first, draws and reweights, and compares phi/psi free-energy surfaces over bins in which the
second has 100 draws or more. ``vacuum`` is three times faster than ``obc``.

    PYTHONPATH=. python -m benchmarks.alanine reference --seed 0 --steps 1600000
    PYTHONPATH=. python -m benchmarks.alanine generator --train 1000
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.physics.molecules import AlanineDipeptide, load_reference, save_reference

RESULTS = Path(__file__).parent / "results" / "alanine.csv"
BETWEEN, BINS, LEAST = 100, 24, 100
COLUMNS = ["solvent", "rows", "train_steps", "ess", "forward_ess", "pareto_k", "bins", "worst_kt", "rms_kt", "unweighted_rms_kt",
           "right_share_md", "right_share", "cpu_seconds", "verdict"]  # fmt: skip


def path_of(folder: Path, solvent: str, seed: int) -> Path:
    return folder / f"alanine-{solvent}-{seed}.safetensors"


def reference(solvent: str, folder: Path, seed: int, steps: int) -> None:
    energy, path = AlanineDipeptide(solvent), path_of(folder, solvent, seed)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_reference(path, energy.dynamics(steps // BETWEEN, chains=4, n_steps=BETWEEN, n_warmup=20_000, random_state=seed))
    made = load_reference(path)
    phi, _ = energy.torsions(made.samples)
    print(made, f"\nphi > 0 in {float((phi > 0).double().mean()):.4f} of {len(phi)} draws; {made.seconds:.0f} s")


def surface(phi: np.ndarray, psi: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Free energy over (phi, psi) in kT, and counts."""
    edges = np.linspace(-np.pi, np.pi, BINS + 1)
    mass, _, _ = np.histogram2d(phi, psi, bins=(edges, edges), weights=weights)
    counts, _, _ = np.histogram2d(phi, psi, bins=(edges, edges))
    with np.errstate(divide="ignore"):
        return -np.log(mass / mass.sum()), counts


def compare(energy: AlanineDipeptide, judge: torch.Tensor, samples: np.ndarray, weights: np.ndarray) -> dict[str, object]:
    """How far surfaces are apart over bins that dynamics populate; each surface up to a constant, set by the mean difference."""
    md, counts = surface(*(angle.numpy() for angle in energy.torsions(judge)))
    angles = [angle.numpy() for angle in energy.torsions(torch.from_numpy(samples))]
    known = counts >= LEAST
    share = counts[known] / counts[known].sum()
    gaps = []
    for own in (weights, None):
        gap = surface(*angles, own)[0][known] - md[known]
        gaps.append(gap - share @ gap)
    return {
        "bins": int(known.sum()),
        "worst_kt": f"{np.abs(gaps[0]).max():.2f}",
        "rms_kt": f"{np.sqrt(share @ gaps[0] ** 2):.3f}",
        "unweighted_rms_kt": f"{np.sqrt(share @ gaps[1] ** 2):.3f}",
        "right_share_md": f"{float((energy.torsions(judge)[0] > 0).double().mean()):.4f}",
        "right_share": f"{float(weights[angles[0] > 0].sum()):.4f}",
    }


def generator(solvent: str, folder: Path, arguments: argparse.Namespace) -> None:
    energy, began = AlanineDipeptide(solvent), time.process_time()
    data = load_reference(path_of(folder, solvent, 0)).samples
    made = BoltzmannGenerator(
        energy, layers=arguments.layers, hidden=(128, 128), method=arguments.method, n_steps=arguments.train,
        learning_rate=arguments.learning_rate, random_state=0, progress=True,
    ).fit(data)  # fmt: skip
    print(made.report_)
    drawn = made.sample(arguments.draws, random_state=1)
    row = {
        "solvent": solvent, "rows": len(data), "train_steps": arguments.train, "ess": f"{drawn.ess / arguments.draws:.4f}",
        "forward_ess": f"{made.report_.forward_ess:.4f}", "pareto_k": f"{drawn.pareto_k:.2f}",
        **compare(energy, load_reference(path_of(folder, solvent, 1)).samples, drawn.samples, drawn.weights),
        "cpu_seconds": f"{time.process_time() - began:.0f}", "verdict": "ok" if drawn.reliability.ok else "NOT RELIABLE",
    }  # fmt: skip
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print("\n".join(f"{name:18s} {value}" for name, value in row.items()))
    made.save(folder / f"generator-{solvent}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["reference", "generator"])
    parser.add_argument("--solvent", default="obc", choices=["obc", "vacuum"])
    parser.add_argument("--folder", type=Path, default=Path("alanine"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1_600_000)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--method", default="heights")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--draws", type=int, default=10_000)
    arguments = parser.parse_args()
    if arguments.part == "reference":
        reference(arguments.solvent, arguments.folder, arguments.seed, arguments.steps)
    else:
        generator(arguments.solvent, arguments.folder, arguments)


if __name__ == "__main__":
    main()
