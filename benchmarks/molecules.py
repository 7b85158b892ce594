"""Boltzmann densities of particle clusters: equivariant flow matching on our own reference samples, judged by importance weights.

``reference`` makes the samples by long Hamiltonian Monte Carlo (minutes) and tells the virial; ``flow`` trains a flow on them, with
``--refine`` on their energies besides, through the solver, and reports its effective sample size from its own draws (reverse) and on
held-out reference samples (forward), the negative log-likelihood there, and the distance of energy histograms. Samples and weights are
kept in ``--folder``, figures in ``benchmarks/results/molecules.jsonl``.

    PYTHONPATH=. python -m benchmarks.molecules reference dw4 lj13
    PYTHONPATH=. python -m benchmarks.molecules flow dw4 --steps 5000 --refine 500
    PYTHONPATH=. python -m benchmarks.molecules --summary
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from sbi_flows._files import load_tensors, save_tensors
from sbi_flows._random import torch_generator
from sbi_flows.bijections.mean_free import from_mean_free, to_mean_free
from sbi_flows.flows import Flow, pair_flow
from sbi_flows.losses import flow_matching, known_density_through_solver
from sbi_flows.physics.molecules import Energy, dw4, lj13, lj55
from sbi_flows.physics.molecules.reference import load_reference, reference_samples, save_reference
from sbi_flows.training import ArraySource, train
from sbi_flows.weights import kish_ess, pareto_k

RESULTS = Path(__file__).parent / "results" / "molecules.jsonl"
ENERGIES = {
    "dw4": dw4,
    "lj13": lj13,
    "lj13-once": lambda: lj13("once"),
    "lj55": lj55,
}
# Draws for training and for judging.
DRAWS = {"dw4": (100_000, 40_000), "lj13": (200_000, 40_000), "lj13-once": (200_000, 40_000), "lj55": (20_000, 10_000)}
FLOWS: dict[str, dict[str, Any]] = {
    "dw4": {"tolerance": 3e-2},
    "lj13": {"width": 32, "layers": 2, "triangles": 16, "tolerance": 1e-1},
    "lj13-once": {"width": 32, "layers": 2, "triangles": 16, "tolerance": 1e-1},
}
TRAINING = {
    "dw4": {"batch_size": 256, "learning_rate": 6e-3},
    "lj13": {"batch_size": 64, "learning_rate": 5e-3},
    "lj13-once": {"batch_size": 64, "learning_rate": 5e-3},
}

REFINING, REFINING_STEPS = 5e-4, 4  # peak learning rate, and steps of the solver


def reference(name: str, folder: Path) -> dict:
    """Samples for training (seed 0) and for judging (seed 1), and what is known of them."""
    energy, rows = ENERGIES[name](), {}
    for seed, n in enumerate(DRAWS[name]):
        path = folder / f"{name}-{seed}.safetensors"
        if not path.exists():
            save_reference(path, reference_samples(energy, n, chains=1000, n_warmup=500, random_state=seed))
        made = load_reference(path)
        rows[f"seed {seed}"] = {
            key: getattr(made, key) for key in ("energy", "energy_err", "virial", "virial_err", "ess", "n_gradients", "seconds")
        } | {"n": len(made.samples), "ok": made.reliability.ok}
    return rows


def fitted(name: str, folder: Path, steps: int, seed: int = 0, peak: float | None = None) -> tuple[Flow, dict]:
    """The trained flow of ``name`` and its cost, from the folder where they lie there."""
    energy = ENERGIES[name]()
    assert energy.particles is not None
    flow = pair_flow(*energy.particles, **FLOWS[name], generator=torch_generator(seed))
    path = folder / f"{name}-flow-{steps}-{seed}.safetensors"
    if path.exists():
        weights, header = load_tensors(path, kind="molecules flow", version=1)
        flow.load_state_dict(weights)
        return flow, header
    x = to_mean_free(load_reference(folder / f"{name}-0.safetensors").samples, energy.particles[0])
    flow.fit_scaling(x)
    settings = TRAINING[name] | ({} if peak is None else {"learning_rate": peak})
    held_out = np.arange(2000)
    epochs = max(1, round(steps * settings["batch_size"] / (len(x) - len(held_out))))
    began, began_cpu = time.perf_counter(), time.process_time()
    history = train(
        flow, ArraySource(x, validation_rows=held_out), loss=flow_matching, max_epochs=epochs, patience=epochs, weight_decay=0.0,
        callbacks=[functools.partial(tell, began)], random_state=seed, **settings,
    )
    header = {"steps": history.n_steps, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    save_tensors(path, flow.state_dict(), header, kind="molecules flow", version=1)
    return flow, header


def refined(name: str, flow: Flow, folder: Path, matched: int, steps: int, seed: int = 0) -> tuple[Flow, dict]:
    """The same flow after ``steps`` of 128 rows of likelihood and energies, through the solver; kept in the folder."""
    energy = ENERGIES[name]()
    assert energy.particles is not None
    path = folder / f"{name}-flow-{matched}-{seed}-refined-{steps}.safetensors"
    if path.exists():
        weights, header = load_tensors(path, kind="molecules flow", version=1)
        flow.load_state_dict(weights)
        return flow, header
    samples = load_reference(folder / f"{name}-0.safetensors").samples
    # Draws of one time are of all chains: rows spread over the run.
    samples = samples[torch.randperm(len(samples), generator=torch_generator(seed))[: 128 * steps]]
    known = torch.stack([-energy(samples), torch.ones(len(samples), dtype=torch.float64)], 1)
    x = to_mean_free(samples, energy.particles[0])
    epochs = max(1, round(128 * steps / len(x)))
    began, began_cpu = time.perf_counter(), time.process_time()
    history = train(
        flow, ArraySource(x, known, validation_rows=np.arange(0)), max_epochs=epochs, batch_size=128,
        loss=functools.partial(known_density_through_solver, steps=REFINING_STEPS), callbacks=[functools.partial(tell, began)],
        learning_rate=REFINING, weight_decay=0.0, random_state=seed,
    )  # fmt: skip
    header = {"refining": history.n_steps, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    save_tensors(path, flow.state_dict(), header, kind="molecules flow", version=1)
    return flow, header


def tell(began: float, report) -> None:
    losses = f"{report.train_loss[0]:.4f} {report.validation_loss[0]:.4f}"
    print(f"epoch {report.epoch}/{report.max_epochs} loss {losses}  {time.perf_counter() - began:.0f} s", flush=True)


@torch.no_grad()
def judged(name: str, flow: Flow, folder: Path, draws: int, held_out: int, seed: int = 1) -> dict:
    """Effective sample sizes, negative log-likelihood and energy histograms."""
    energy: Energy = ENERGIES[name]()
    assert energy.particles is not None
    count = energy.particles[0]
    judge = load_reference(folder / f"{name}-1.safetensors").samples
    # Each chain gave one row in a thousand: spread rows over the run.
    judge = judge[torch.linspace(0, len(judge) - 1, held_out).long()]
    began = time.process_time()
    y, log_q = flow.sample_and_log_prob(draws, generator=torch_generator(seed), dtype=torch.float64)
    x = from_mean_free(y, count)
    own = energy(x)
    log_w = (-own - log_q.double()).numpy()
    log_w[~np.isfinite(log_w)] = -np.inf
    reverse = kish_ess(log_w) / draws
    nll = -flow.log_prob(to_mean_free(judge, count))
    theirs = energy(judge)
    # E_p[w] E_p[1/w] = 1 / ESS for the exact density p: the forward estimate, blind to nothing that p holds.
    log_forward = (-theirs + nll.double()).numpy()
    top = log_forward.max()
    forward = 1 / (np.exp(log_forward - top).mean() * np.exp(top - log_forward).mean())
    weights = np.exp(log_w - log_w.max())
    every = load_reference(folder / f"{name}-1.safetensors").samples
    truth = energy(every).numpy()
    shares = weights / weights.sum()
    virials = np.where(weights > 0, energy.virial(x).numpy() / energy.degrees_of_freedom, 0.0)
    virial = shares @ virials
    return {
        "virial": float(virial), "virial_err": float(np.sqrt(np.sum((shares * (virials - virial)) ** 2))),
        "ess_reverse": reverse, "pareto_k": pareto_k(log_w), "ess_forward": float(forward),
        "nll": float(nll.mean()), "nll_err": float(nll.std() / held_out**0.5),
        "w1_raw": float(wasserstein_distance(own.clamp(max=1e3).numpy(), truth)),
        "w1_weighted": float(wasserstein_distance(own.numpy(), truth, weights)),
        "w1_floor": float(wasserstein_distance(truth[::2][:draws], truth[1::2])),
        "log_z": float(np.log(np.mean(np.exp(log_w - log_w.max()))) + log_w.max()),
        "draws": draws, "held_out": held_out, "solver_steps": flow.continuous.steps,
        "judge_cpu_seconds": time.process_time() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["reference", "flow"])
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sbi_flows" / "molecules")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--refine", type=int, default=0)
    parser.add_argument("--peak", type=float)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        print(RESULTS.read_text())
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        row = {"what": arguments.what, "name": name, "date": time.strftime("%Y-%m-%d")}
        if arguments.what == "reference":
            row |= reference(name, arguments.folder)
        else:
            flow, cost = fitted(name, arguments.folder, arguments.steps, arguments.seed, arguments.peak)
            row |= {"training": cost, "seed": arguments.seed}
            if arguments.refine:
                flow, row["refining"] = refined(name, flow, arguments.folder, arguments.steps, arguments.refine, arguments.seed)
            row |= judged(name, flow, arguments.folder, arguments.draws, arguments.held_out)
        print(json.dumps(row), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
