"""Alanine dipeptide: the map of its two angles by a Boltzmann generator, beside molecular dynamics.

    pip install 'sbi_flows[molecules]'
    python tutorials/ramachandran.py [folder]

Dynamics of half a nanosecond in implicit water, twice: one run to learn from, one to judge by; both are kept in the folder (some five
minutes each the first time). The flow learns bonds, angles and dihedrals by likelihood, then by energies at its own draws as well. These
are independent, and weights make them exact: what they are worth is said by the effective sample size and the verdict. phi > 0 is a
state that dynamics of this length hardly visit; what is said here is about the side that they do.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.physics.molecules import AlanineDipeptide, load_reference, save_reference

BINS = 24  # of each angle
LEAST_SHARE = 0.01  # of a bin that is compared: 50 of 5000 configurations, known to .14 kT if these were independent
BETWEEN = 100  # femtoseconds from one configuration to the next


def main(
    folder: Path = Path("figures"), n_rows: int = 5000, n_steps: int = 400, n_draws: int = 10_000, n_warmup: int = 20_000
) -> None:
    try:
        energy = AlanineDipeptide("obc")
    except ImportError as error:
        print(f"Skipped: {error}")
        return
    folder = Path(folder)
    learned, judge = (dynamics(energy, folder, seed, n_rows, n_warmup) for seed in (0, 1))
    settings = {"layers": 4, "hidden": (128, 128), "method": "mixed", "learning_rate": 3e-3}
    generator = BoltzmannGenerator(energy, **settings, n_steps=n_steps, random_state=0).fit(learned)
    print(generator.report_)
    drawn = generator.sample(n_draws, random_state=1)
    print(f"{n_draws} draws are worth {drawn.ess:.0f}; Pareto k {drawn.pareto_k:.2f}")
    by_dynamics = surface(energy, judge)
    angles = torch.from_numpy(drawn.samples)
    alone, weighted = surface(energy, angles), surface(energy, angles, drawn.weights)
    for name, own in (("flow alone", alone), ("weighted", weighted)):
        print(f"{name} from dynamics: {distance(own, by_dynamics)}")
    if not drawn.reliability.ok:
        print(f"Do not trust weighted averages yet: {drawn.reliability}")
    _draw(folder, {"dynamics": by_dynamics, "flow alone": alone, "weighted": weighted})


def dynamics(energy: AlanineDipeptide, folder: Path, seed: int, n: int, n_warmup: int) -> torch.Tensor:
    """``n`` configurations of four runs, from the folder where they lie there."""
    path = folder / f"alanine-obc-{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_reference(path, energy.dynamics(n, chains=4, n_steps=BETWEEN, n_warmup=n_warmup, random_state=seed))
    return load_reference(path).samples[:n]


def surface(energy: AlanineDipeptide, x: torch.Tensor, weights: np.ndarray | None = None) -> np.ndarray:
    """Free energy of (phi, psi) in kT, ``-ln`` of the share of each bin; infinite where nothing is."""
    edges = np.linspace(-np.pi, np.pi, BINS + 1)
    mass, _, _ = np.histogram2d(*(angle.numpy() for angle in energy.torsions(x)), bins=(edges, edges), weights=weights)
    with np.errstate(divide="ignore"):
        return -np.log(mass / mass.sum())


def distance(own: np.ndarray, by_dynamics: np.ndarray) -> str:
    """How far two surfaces are apart where dynamics often are, each up to a constant."""
    often = by_dynamics < -np.log(LEAST_SHARE)
    known = often & np.isfinite(own)
    share = np.exp(-by_dynamics[known]) / np.exp(-by_dynamics[known]).sum()
    gap = own[known] - by_dynamics[known]
    gap = gap - share @ gap
    empty = "" if known.sum() == often.sum() else f", {often.sum() - known.sum()} more where nothing was drawn"
    return f"rms {np.sqrt(share @ gap**2):.2f} kT, worst {np.abs(gap).max():.2f} kT in {known.sum()} bins{empty}"


def _draw(folder: Path, surfaces: dict[str, np.ndarray]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(surfaces), figsize=(9.0, 3.2), sharey=True, layout="constrained")
    lowest = min(values.min() for values in surfaces.values())
    for ax, (name, values) in zip(axes, surfaces.items(), strict=True):
        shown = np.where(np.isfinite(values), values - lowest, np.nan).T
        image = ax.imshow(shown, origin="lower", extent=(-180, 180, -180, 180), vmin=0, vmax=7, cmap="viridis")
        ax.set(title=name, xlabel="phi / degrees", xticks=[-180, -90, 0, 90, 180], yticks=[-180, -90, 0, 90, 180])
    axes[0].set_ylabel("psi / degrees")
    figure.colorbar(image, ax=axes, label="free energy / kT")
    figure.savefig(folder / "ramachandran.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
