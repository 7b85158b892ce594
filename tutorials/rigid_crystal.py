"""A small crystal of rigid molecules: free energy and order of four dipoles on a square, without data.

    python tutorials/rigid_crystal.py [folder for the figure]

Each molecule is a pair of opposite charges that turns and rattles about its lattice site, and feels the other three. An energy of the
user's own is a class of a few lines; positions and quaternions (where q and -q are one orientation) are taken care of. Without charges the
partition function is known and draws are plain, so that the free energy of switching charges on can be checked by an average over them.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.physics.molecules.rigid import RigidBodies

PIN, SPACING, ARM, SOFT, CHARGE = 20.0, 1.5, 0.3, 0.3, 1.7


class DipoleCrystal(RigidBodies):
    """``U / kT = pin / 2 sum |x - site|^2 + sum over pairs of charges q q' / sqrt(r^2 + soft^2)``, charges of other molecules only."""

    name = "crystal of dipoles"

    def __init__(self, charge: float):
        self.charge = charge
        self.lattice = SPACING * torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=torch.float64)
        self.bodies = len(self.lattice)
        self.features = 7 * self.bodies
        self.sites = torch.tensor([[0.0, 0.0, ARM], [0.0, 0.0, -ARM]], dtype=torch.float64)
        self._first, self._second = torch.triu_indices(self.bodies, self.bodies, 1)
        # Turns are free and displacements normal where nothing couples them.
        free = 1.5 * math.log(2 * math.pi / PIN) + math.log(2 * math.pi**2)
        self.log_z = self.bodies * free if charge == 0 else None

    def uncoupled(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draws ``(n, 7 bodies)`` of the crystal without charges."""
        rows = self.start(n, generator).view(n, self.bodies, 7)
        rows[..., :3] = self.lattice + rows[..., :3] / math.sqrt(PIN)
        return rows.flatten(1)

    def energy_of_sites(self, sites, centres):
        home = (centres - self.lattice.to(sites)).square().sum((1, 2))
        apart = sites[:, self._first, :, None] - sites[:, self._second, None, :]
        sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=sites.dtype)
        coulomb = self.charge**2 * sign / (apart.square().sum(-1) + SOFT**2).sqrt()
        return 0.5 * PIN * home + coulomb.sum((1, 2, 3))


def main(
    folder: Path = Path("figures"),
    n_steps: int | str = "auto",
    n_draws: int = 4000,
    n_particles: int = 600,
    n_reference: int = 200_000,
) -> None:
    energy = DipoleCrystal(CHARGE)
    generator = BoltzmannGenerator(energy, n_particles=n_particles, n_steps=n_steps, random_state=0).fit()
    print(generator.report_)
    free = generator.free_energy(n_draws, random_state=1)
    alone = -DipoleCrystal(0.0).log_z
    print(f"F with charges - F without: {free.value - alone:.3f} +- {free.error:.3f} kT by the generator")
    print("                            {:.3f} +- {:.3f} kT by an average without charges".format(*by_average(energy, n_reference)))

    drawn = generator.sample(n_draws, random_state=2)
    x = torch.from_numpy(drawn.samples)
    up = energy.sites_of(x)
    direction = ((up[:, :, 0] - up[:, :, 1]) / (2 * ARM)).numpy()
    for name, i, j in (("along an edge", 0, 1), ("across", 0, 3)):
        cosine = (direction[:, i] * direction[:, j]).sum(1)
        mean = drawn.weights @ cosine
        error = np.sqrt(np.sum((drawn.weights * (cosine - mean)) ** 2))
        print(f"mean cosine of two dipoles {name}: {mean:+.3f} +- {error:.3f}")
    if not drawn.reliability.ok:
        print("Not reliable: do not use these numbers. More steps, n_steps=20000, or more particles help.")
    _draw(Path(folder), direction, drawn.weights)


def by_average(energy: DipoleCrystal, n: int) -> tuple[float, float]:
    """``-ln <exp(-U of the charges)>`` over the crystal without them, and its error: Zwanzig's identity, good for weak charges."""
    x = energy.uncoupled(n, torch.Generator().manual_seed(3))
    factor = torch.exp(DipoleCrystal(0.0)(x) - energy(x))
    return -math.log(factor.mean()), float(factor.std() / factor.mean()) / math.sqrt(n)


def _draw(folder: Path, direction: np.ndarray, weights: np.ndarray) -> None:
    """Cosines of pairs of dipoles; flat where they do not feel each other."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.0, 3.6))
    edges = np.linspace(-1, 1, 11)
    for name, i, j in (("along an edge", 0, 1), ("across", 0, 3)):
        height, _ = np.histogram((direction[:, i] * direction[:, j]).sum(1), edges, weights=weights)
        axes.stairs(height / np.diff(edges), edges, label=name)
    axes.axhline(0.5, color="0.6", linestyle=":", label="without charges")
    axes.set(xlabel="cosine of the angle between two dipoles", ylabel="density")
    axes.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(folder / "rigid_crystal.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
