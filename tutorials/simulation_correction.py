"""Correcting a simulation to data without pairs: two flows, one map.

    python tutorials/simulation_correction.py figures/

A detector simulation makes showers a little too narrow and too clean. Real and simulated showers are different events, with different
energies, so nothing can be matched row by row. One flow learns p(shower | energy) of the simulation, another that of the data; a simulated
shower goes through the first to the normal that both share, and back through the second. The data here are synthetic, made by a distortion
that is known, so that the map can be checked where a real one could not.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sbi_flows import ConditionalFlow, c2st, plots

NAMES = ("width [cm]", "isolation [GeV]")


def energies(n: int, softness: float, rng: np.random.Generator) -> np.ndarray:
    """Of showers in GeV, from 20 upwards: falling more or less steeply."""
    return 20.0 + rng.exponential(softness, n)


def simulated(energy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Width and isolation ``(n, 2)``: skewed, correlated, and both depend on the energy."""
    width = 1.0 + 0.25 * rng.gamma(4.0, 1.0, len(energy)) * (energy / 50) ** -0.3
    return np.stack([width, 0.4 * width + rng.gamma(2.0, 0.5, len(energy)) * np.log(energy / 10)], axis=1)


def distorted(shower: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """What the real detector does to the shower that the simulation would have made."""
    width = 1.06 * shower[:, 0] + 0.1
    return np.stack([width, 1.15 * shower[:, 1] + 0.15 * np.sqrt(energy / 50) + 0.05 * (width - 2) ** 2], axis=1)


def corrected(shower: np.ndarray, energy: np.ndarray, simulation: ConditionalFlow, data: ConditionalFlow) -> np.ndarray:
    """Through the simulation's flow to its base, and back through that of the data."""
    given = torch.as_tensor(np.log(energy)[:, None])
    with torch.no_grad():
        base, _ = simulation.flow_.to_base(torch.as_tensor(shower), given)
        return data.flow_.from_base(base, given)[0].numpy()


def main(folder: Path, n_events: int = 10_000, n_checks: int = 2000) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)

    # Different events with different spectra; conditioning on the energy is what makes that harmless.
    energy_sim, energy_data = energies(n_events, 40.0, rng), energies(n_events, 30.0, rng)
    flows = {
        "simulation": ConditionalFlow(random_state=0).fit(np.log(energy_sim)[:, None], simulated(energy_sim, rng)),
        "data": ConditionalFlow(random_state=0).fit(np.log(energy_data)[:, None], distorted(simulated(energy_data, rng), energy_data)),
    }
    for name, flow in flows.items():
        print(f"{name}: {flow.history_.seconds:.0f} s, {flow.history_.reliability}")

    # New events: simulated showers at the energies of the data, and data that no flow has seen.
    energy = energies(n_checks, 30.0, rng)
    raw = simulated(energy, rng)
    mapped = corrected(raw, energy, flows["simulation"], flows["data"])
    held_out_energy = energies(n_checks, 30.0, rng)
    held_out = distorted(simulated(held_out_energy, rng), held_out_energy)

    # A classifier that sees energy and shower tells the raw simulation from data; one half means that it cannot.
    reference = np.column_stack([np.log(held_out_energy), held_out])
    for name, rows in {"as simulated": raw, "corrected": mapped}.items():
        print(f"{name}: {c2st(reference, np.column_stack([np.log(energy), rows]), random_state=0)}")

    # Equal distributions are all that data without pairs can ask for. Whether single events are right is another matter: here it is known.
    twin = distorted(raw, energy)
    spread = twin.std(0)
    off = {name: np.sqrt(np.mean((rows - twin) ** 2, axis=0)) / spread for name, rows in (("as simulated", raw), ("corrected", mapped))}
    for name, values in off.items():
        print(f"{name}: off its true twin by {values[0]:.2f} and {values[1]:.2f} of the spread of {' and '.join(NAMES)}")
    print("    what is left is not all an error of the fit: of the maps that make the distributions equal a flow is one")
    path = plots.save_figure(figure(held_out, raw, mapped), folder / "simulation_correction.png")
    print(f"{path}: the corrected histograms lie on the data")


def figure(data: np.ndarray, raw: np.ndarray, mapped: np.ndarray):
    """Histograms of both columns: data as dots with errors, the simulation before and after."""
    drawn = plots.new_figure(9, 3.6)
    for axis, column in zip(drawn.subplots(1, 2), range(2), strict=True):
        edges = np.linspace(*np.quantile(data[:, column], [0.002, 0.995]), 31)
        counts, _ = np.histogram(data[:, column], edges)
        centres = (edges[1:] + edges[:-1]) / 2
        axis.errorbar(centres, counts, np.sqrt(counts), fmt="k.", ms=4, label="data")
        for rows, label, colour in ((raw, "as simulated", plots.COLOURS[1]), (mapped, "corrected", plots.COLOURS[0])):
            axis.hist(rows[:, column], edges, histtype="step", color=colour, lw=1.5, label=label)
        axis.set(xlabel=NAMES[column], ylabel="events a bin")
    drawn.axes[0].legend(frameon=False)
    return drawn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the figure goes")
    main(parser.parse_args().folder)
