"""Two wells and the free energy between them, without any data.

    python tutorials/double_well.py [folder for the figure]

A particle in a double well (times a harmonic column beside it): the barrier is some nine kT, and molecular dynamics from one well would
hardly ever see the other. The generator is given the energy and nothing else. Quadrature gives the exact free energies, printed beside.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sbi_flows import BoltzmannGenerator
from sbi_flows.physics.molecules import double_well

_FEWEST_DRAWS = 5  # in a bin that is shown: the weight of one draw says nothing of its own error


def main(folder: Path = Path("figures"), n_steps: int = 400) -> None:
    energy = double_well()
    generator = BoltzmannGenerator(energy, layers=3, n_steps=n_steps, random_state=0).fit()
    print(generator.report_)

    free = generator.free_energy(random_state=1)
    between = generator.free_energy_difference(lambda x: x[:, 0] < 0, lambda x: x[:, 0] > 0, random_state=2)
    print(f"F                  {free.value:.4f} +- {free.error:.4f} kT   exactly {-energy.log_z:.4f}")
    print(f"F(right) - F(left) {between.value:.4f} +- {between.error:.4f} kT   exactly {energy.free_energy_difference:.4f}")

    drawn = generator.sample(20_000, random_state=3)
    print(drawn)
    _draw(Path(folder), energy, drawn)


def _draw(folder: Path, energy, drawn) -> None:
    """The free-energy profile along the well: of the bare draws, reweighted, and exact."""
    import matplotlib.pyplot as plt

    edges = np.linspace(-2.6, 2.6, 53)
    middle = 0.5 * (edges[1:] + edges[:-1])
    on_line = torch.stack([torch.from_numpy(middle), torch.zeros(len(middle), dtype=torch.float64)], 1)
    exact = energy(on_line).numpy()
    figure, axes = plt.subplots(figsize=(6.0, 4.0))
    axes.plot(middle, exact - exact.min(), "k-", label="exact")
    x = drawn.samples[:, 0]
    seen = np.histogram(x, edges)[0] >= _FEWEST_DRAWS
    for weights, style, label in ((np.full(len(x), 1 / len(x)), "C1.", "flow"), (drawn.weights, "C0o", "reweighted")):
        mass, squares = (np.histogram(x, edges, weights=w)[0][seen] for w in (weights, weights**2))
        error = np.sqrt(squares) / mass
        axes.errorbar(middle[seen], -np.log(mass / mass.max()), error, fmt=style, mfc="none", label=label)
    axes.set(xlabel="$x_1$", ylabel="free energy / kT", ylim=(-0.5, 14))
    axes.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(folder / "double_well.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
