"""Frozen topology, thawed by a flow: U(1) gauge theory in two dimensions.

    python tutorials/u1_topology.py figures/

Fields of a gauge theory fall into sectors of integer topological charge, with walls between them that grow with the coupling beta. Hybrid
Monte Carlo moves in small steps and stays in its sector: every average that depends on the charge comes out wrong, and looks calm.
A gauge-equivariant flow, trained from the action alone, proposes whole fields of any charge; Metropolis makes them exact.
Two minutes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sbi_flows import plots
from sbi_flows.physics.lattice import (
    U1,
    FieldHMC,
    FlowProposal,
    InTurn,
    exact_plaquette,
    exact_susceptibility,
    gauge_flow,
    run_fields,
    susceptibility,
    trivialise,
)

CHAINS = 16


def main(folder: Path, size: int = 8, beta: float = 7.0, n_training: int = 600, n_steps: int = 1000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    theory, local = U1(size, beta), FieldHMC(step_size=0.15, n_leapfrog=7)

    # Plain hybrid Monte Carlo, from the vacuum. Read what its verdict says of the charge.
    plain = run_fields(local, theory, theory.cold_start(CHAINS), n_steps=n_steps, n_warmup=100, random_state=0)
    print(f"Hybrid Monte Carlo: {plain}\n")

    # A flow from uniform links to fields of the theory. It never sees a field: only the action.
    flow = gauge_flow(size, block=size, generator=torch.Generator().manual_seed(0))
    trained = trivialise(flow, theory, n_steps=n_training, batch_size=64, learning_rate=1e-2, random_state=0)
    print(f"The flow, after {trained.n_fields} fields and {trained.seconds:.0f} s: {trained.ess:.0%} of its draws are effective.")
    print(f"{trained.reliability}\n")

    # Its proposals cross the walls, and between them hybrid Monte Carlo moves what is local.
    kernel = InTurn([FlowProposal(flow), local])
    mixed = run_fields(kernel, theory, theory.cold_start(CHAINS), n_steps=n_steps, n_warmup=100, random_state=0)
    print(f"Flow proposals and hybrid Monte Carlo in turn: {mixed}\n")

    report(theory, {"hybrid Monte Carlo": plain, "with flow proposals": mixed})
    path = plots.save_figure(histories({"hybrid Monte Carlo": plain, "with flow proposals": mixed}), folder / "u1_topology.png")
    print(f"{path}: the charge of the first chain, step by step. A line that never moves is not a small error bar.")


def report(theory: U1, runs: dict) -> None:
    """Both runs beside the exact values."""
    exact = exact_plaquette(theory.size, theory.beta), exact_susceptibility(theory.size, theory.beta)
    print(f"{'':20s} {'plaquette':>20s} {'susceptibility':>20s} {'changes of charge':>20s}   verdict on the charge")
    print(f"{'exact':20s} {exact[0]:20.5f} {exact[1]:20.5f}")
    for name, run in runs.items():
        charge = run.observables["charge"]
        plaquette, chi = run.estimate("plaquette"), susceptibility(charge, theory.volume)
        numbers = (f"{estimate.value:.5f} +- {estimate.error:.5f}" for estimate in (plaquette, chi))
        verdict = "ok" if chi.reliability.ok else "NOT RELIABLE"
        print(f"{name:20s}", *(f"{text:>20s}" for text in numbers), f"{int((np.diff(charge, axis=1) != 0).sum()):20d}   {verdict}")
    if not any(susceptibility(run.observables["charge"], theory.volume).reliability.ok for run in runs.values()):
        print("No run is long enough to tell the susceptibility: its errors above mean nothing. With --quick that is so; leave it out.")


def histories(runs: dict):
    """One panel for each run, on the same axes."""
    figure = plots.new_figure(8.0, 2.2 * len(runs))
    axes = figure.subplots(len(runs), 1, sharex=True, sharey=True)
    for axis, (name, run), colour in zip(axes, runs.items(), plots.COLOURS, strict=False):
        axis.step(np.arange(run.acceptance.shape[1]), run.observables["charge"][0], color=colour, linewidth=0.8, where="mid")
        verdict = "reliable" if run.estimate("charge").reliability.ok else "NOT RELIABLE"
        axis.set(title=f"{name}: charge of the first chain, {verdict}", ylabel="charge Q", ylim=(-2.5, 2.5))
    axes[-1].set_xlabel("step")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the figure goes")
    parser.add_argument("--quick", action="store_true", help="a small lattice, too short to show anything: to see that all runs")
    arguments = parser.parse_args()
    quick = {"size": 4, "beta": 5.0, "n_training": 60, "n_steps": 60} if arguments.quick else {}
    main(arguments.folder, **quick)
