"""Two moons: from a simulator to a posterior with two separate crescents, in ten lines.

    python tutorials/two_moons.py figures/

Two parameters move a noisy crescent about. The sign of their sum cannot be seen, so that the posterior is two crescents, each far thinner
than the prior is wide. The exact posterior is known and drawn beside ours.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sbi_flows import NPE, c2st, plots
from sbi_flows.distributions import BoxUniform


def two_moons(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The simulator: parameters ``(n, 2)`` to data ``(n, 2)``."""
    first, second = theta.T
    return crescent(len(theta), rng) + np.stack([-np.abs(first + second), second - first], axis=1) / np.sqrt(2)


def crescent(n: int, rng: np.random.Generator) -> np.ndarray:
    """Noise: points on half a ring."""
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, n), rng.normal(0.1, 0.01, n)
    return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)


def exact_posterior(x_o: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws from the true posterior: undo the shift for every possible noise, with either sign of the sum."""
    noise = crescent(n, rng)
    total, difference = rng.choice([-1, 1], n) * (noise[:, 0] - x_o[0]), x_o[1] - noise[:, 1]
    return np.stack([total - difference, total + difference], axis=1) / np.sqrt(2)


def main(folder: Path, n_simulations: int = 10_000) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    x_o = np.array([0.0, 0.0])

    # From here, all there is to it.
    prior = BoxUniform([-1.0, -1.0], [1.0, 1.0], names=["theta_1", "theta_2"])
    theta = prior.sample(n_simulations, torch.Generator().manual_seed(0)).numpy()
    x = two_moons(theta, rng)
    npe = NPE(prior, random_state=0).fit(theta, x)
    posterior = npe.posterior(x_o)
    draws = posterior.sample(2000, random_state=0)
    print(posterior)
    print(f"trained on {n_simulations} simulations in {npe.history_.seconds:.0f} s")

    # How good is it? A classifier that tells our draws from exact ones half of the time cannot tell them apart.
    exact = exact_posterior(x_o, 2000, rng)
    print(c2st(draws, exact, random_state=0))
    path = plots.save_figure(side_by_side({"sbi_flows": draws, "exact": exact}, posterior.names), folder / "two_moons.png")
    print(f"{path}: two thin crescents on both sides, with hardly a stray draw between them.")
    share = np.mean(draws.sum(1) > 0)
    print(f"    share of draws in the upper crescent: {share:.3f}; exactly 0.5, and 2000 draws know it to +-0.02")


def side_by_side(draws: dict[str, np.ndarray], names: tuple[str, ...]):
    """One panel of dots for each set of draws, on the same axes."""
    figure = plots.new_figure(4.2 * len(draws), 4.4)
    axes = figure.subplots(1, len(draws), sharex=True, sharey=True)
    for axis, (name, rows), colour in zip(axes, draws.items(), plots.COLOURS, strict=False):
        axis.scatter(*rows.T, s=2, color=colour, alpha=0.5, linewidths=0)
        axis.set(title=name, xlabel=names[0], xlim=(-0.4, 0.4), ylim=(-0.4, 0.4), aspect="equal")
    axes[0].set_ylabel(names[1])
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the figure goes")
    parser.add_argument("--simulations", type=int, default=10_000)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.simulations)
