"""U(1) gauge theory in two dimensions: samplers of its fields with and without a flow, at equal cost.

Plain HMC beside proposals of a trained gauge flow, both in turn, HMC through a flow, and winding proposals (known physics, no flow), on
8 x 8 and 16 x 16 sites at beta = 1, 4, 7. Every run starts from fields in equilibrium, from many chains in one batch, in float64. Costs
are in force evaluations of the plain theory: other evaluations are converted by their measured CPU time at the same batch
(``prices``), and training is stated apart. Where HMC never forgets its charge, the displacement of the charge bounds its
autocorrelation time from below.

    PYTHONPATH=. python -m benchmarks.lattice [--only prices,train,hmc,...] [--sizes 8,16] [--betas 1,4,7]
    PYTHONPATH=. python -m benchmarks.lattice --summary

Finished cells are kept in ``benchmarks/results/lattice.jsonl`` and flows in ``--flows``; a second run computes what is missing. About ten
minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sbi_flows._files import load_tensors, save_tensors
from sbi_flows.flows import Flow
from sbi_flows.physics.lattice import (
    U1,
    FieldChains,
    FieldHMC,
    FlowAction,
    FlowProposal,
    InTurn,
    WindingProposal,
    exact_log_z,
    exact_plaquette,
    exact_susceptibility,
    gauge_flow,
    resized,
    run_fields,
    susceptibility,
    trivialise,
)
from sbi_flows.physics.lattice.training import judge_flow

RESULTS = Path(__file__).parent / "results" / "lattice.jsonl"
CHAINS = 64
STEP_SIZES = {1.0: 0.3, 4.0: 0.2, 7.0: 0.15}  # of plain HMC on 8 x 8 sites
MILD = 0.5  # beta of the flow that HMC goes through: maps to large beta are too steep for the leapfrog
# Stages of training on 8 x 8 sites: steps, batch, peak rate. Flows of beta = 1 and 4 start from that of 7, and those of 16 x 16 sites are
# those of 8 x 8, with no training of their own.
TRAINING = {
    MILD: ((60, 32, 1e-2),),
    1.0: ((300, 64, 5e-3),),
    4.0: ((300, 64, 5e-3),),
    7.0: ((1500, 64, 1e-2), (600, 64, 3e-3)),
}
DRAWS = {"hmc": 2000, "flow": 500, "flow+hmc": 250, "winding+hmc": 2000, "flow hmc": 150}
LONG = {8: 20_000, 16: 10_000}  # trajectories of plain HMC at beta = 7


def kernel_of(method: str, theory: U1, flow: Flow):
    hmc = plain_hmc(theory)
    return {
        "hmc": lambda: hmc,
        "flow": lambda: FlowProposal(flow),
        "flow+hmc": lambda: InTurn([FlowProposal(flow), hmc]),
        "winding+hmc": lambda: InTurn([WindingProposal(), hmc]),
        "flow hmc": lambda: FieldHMC(0.2 * STEP_SIZES[theory.beta] / STEP_SIZES[1.0], 5),
    }[method]()


def plain_hmc(theory: U1) -> FieldHMC:
    """Trajectories of length near one, with an acceptance of half or more."""
    step = STEP_SIZES[theory.beta] * math.sqrt(8 / theory.size)
    return FieldHMC(step, round(1 / step))


def sample(method: str, size: int, beta: float, folder: Path) -> dict:
    """One run: means, times and the work of a step."""
    theory, flow = U1(size, beta), trained_flow(size, beta, folder)
    kernel, seen = kernel_of(method, theory, flow), theory
    start = equilibrium(theory, flow)
    if method == "flow hmc":
        seen = FlowAction(theory, trained_flow(size, MILD, folder))
        start = seen.latent(start)
    frozen = method == "hmc" and beta == 7
    n_steps, every = (LONG[size], 10) if frozen else (DRAWS[method], 1)
    chains = run_fields(kernel, seen, start, n_steps=n_steps, every=every, n_warmup=50, random_state=1)
    return {**summary_of(chains, theory), "work": dict(kernel.work), "every": every, "draws": n_steps // every}


def summary_of(chains: FieldChains, theory: U1) -> dict:
    charge = chains.observables["charge"]
    plaquette, chi = chains.estimate("plaquette"), susceptibility(charge, theory.volume)
    mean_dh, error_dh = chains.exp_minus_dh
    return {
        "plaquette": [plaquette.value, plaquette.error, exact_plaquette(theory.size, theory.beta), plaquette.tau * chains.every],
        "chi": [chi.value, chi.error, exact_susceptibility(theory.size, theory.beta)],
        "tau": [chi.tau * chains.every, chi.tau_err * chains.every, chi.reliability.ok],
        "tau_bound": least_tau(charge, theory, chains.every),
        "changes": int((np.diff(charge, axis=1) != 0).sum()),
        "acceptance": float(chains.acceptance.mean()),
        "exp_minus_dh": [mean_dh, error_dh],
        "seconds": chains.seconds,
        "verdict": str(chains.reliability),
    }


def least_tau(charge: np.ndarray, theory: U1, every: int) -> float:
    """A lower bound, 95 %, of the charge's integrated time in steps, from chains that started in equilibrium.

    ``rho(t) = 1 - <(Q(t) - Q(0))^2> / (2 <Q^2>)`` with the exact ``<Q^2>``. A reversible chain of positive spectrum has a log-convex rho,
    so ``rho(s) >= rho(t)^(s/t)`` for s >= t and ``rho(s) >= rho(t)`` before: ``tau >= t rho(t) (1 + 1 / -ln rho(t))``. The displacement at
    each t gets its upper limit from the scatter of chains, or three changes where none was seen; the best t is taken.
    """
    n_chains, n = charge.shape
    variance = exact_susceptibility(theory.size, theory.beta) * theory.volume
    best = 0.5
    for lag in np.unique(np.geomspace(1, n - 1, 25).astype(int)):
        # Every starting time counts, but only chains are independent.
        moved = ((charge[:, lag:] - charge[:, :-lag]) ** 2).mean(axis=1)
        upper = max(moved.mean() + 2 * moved.std(ddof=1) / math.sqrt(n_chains), 3 / n_chains * lag / n)
        rho = 1 - upper / (2 * variance)
        if 0 < rho < 1:
            best = max(best, lag * every * rho * (1 - 1 / math.log(rho)))
    return best


def equilibrium(theory: U1, flow: Flow) -> torch.Tensor:
    """Fields of the theory: fifty proposals of the flow, each with a trajectory of HMC."""
    kernel = InTurn([FlowProposal(flow), plain_hmc(theory)])
    start = FlowProposal(flow).draw(theory, CHAINS, torch.Generator().manual_seed(0))
    return run_fields(kernel, theory, start, n_steps=50, every=50, random_state=0).field


def trained_flow(size: int, beta: float, folder: Path) -> Flow:
    path = folder / f"u1_{size}_{beta:g}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run with --only train first.")
    tensors, header = load_tensors(path, kind="gauge_flow", version=1)
    flow = gauge_flow(**header)
    flow.load_state_dict({**flow.state_dict(), **tensors})
    return flow.requires_grad_(False)


def fit(size: int, beta: float, folder: Path) -> dict:
    """Train a flow on 8 x 8 sites, or move that to more, and keep it."""
    began, theory = time.process_time(), U1(size, beta)
    flow, n_fields = gauge_flow(8, generator=torch.Generator().manual_seed(0)), 0
    if size == 8:
        if beta in (1, 4):
            flow = trained_flow(8, 7.0, folder)
        for seed, (steps, batch, rate) in enumerate(TRAINING[beta]):
            report = trivialise(flow, theory, n_steps=steps, batch_size=batch, learning_rate=rate, random_state=seed)
            n_fields += report.n_fields
    else:
        flow = resized(trained_flow(8, beta, folder), size)
        report = judge_flow(flow, theory, random_state=0)
    names = [name for name, _ in flow.named_parameters()]
    save_tensors(
        folder / f"u1_{size}_{beta:g}.safetensors", {k: flow.state_dict()[k] for k in names}, flow.spec, kind="gauge_flow", version=1
    )
    return {
        "ess": report.ess,
        "pareto_k": report.pareto_k,
        "log_z": [report.log_z, report.log_z_err, exact_log_z(size, beta)],
        "n_fields": n_fields,
        "cpu": time.process_time() - began,
        "verdict": str(report.reliability),
    }


@torch.no_grad()
def prices(size: int, beta: float, folder: Path) -> dict:
    """CPU seconds of each kind of evaluation for the batch of the runs, the least of many."""
    theory, flow = U1(size, beta), gauge_flow(size).double().requires_grad_(False)
    seen, field = FlowAction(theory, flow), theory.hot_start(CHAINS, torch.Generator().manual_seed(0))
    jobs = {
        "force": lambda: theory.force(field),
        "action": lambda: theory.action(field),
        "flow": lambda: FlowProposal(flow).flow.sample_and_log_prob(CHAINS),
        "flow force": lambda: seen.force(field),
    }
    return {name: min(cpu_seconds(job) for _ in range(30)) for name, job in jobs.items()}


def cpu_seconds(job) -> float:
    began = time.process_time()
    for _ in range(5):
        job()
    return (time.process_time() - began) / 5


def cost(row: Mapping, price: Mapping, method: str) -> float:
    """Force evaluations that a step is worth."""
    through = method == "flow hmc"
    kinds = {"force": "flow force" if through else "force", "action": "action", "flow": "flow"}
    # The last force of a trajectory through the flow comes with its action.
    return sum(count * price[kinds[kind]] / price["force"] for kind, count in row["work"].items() if not (through and kind == "action"))


def cells(sizes, betas):
    """Kind, size and beta of everything there is to run; large lattices need the flows of 8 x 8."""
    for size in sizes:
        yield "prices", size, 7.0
        for beta in (MILD, *sorted(betas, reverse=True)):
            yield "train", size, beta
        for method in DRAWS:
            if not (method == "flow hmc" and size > 8):
                for beta in betas:
                    yield method, size, beta


def read() -> dict[tuple, dict]:
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {(row["cell"], row["size"], row["beta"]): row for row in rows}


def summary() -> str:
    """The tables of docs/benchmarks.md."""
    rows = read()
    lines = ["| sites | beta | ESS | Pareto k | ln Z - exact | fields | CPU s |", "|---|---|---|---|---|---|---|"]
    for (cell, size, beta), row in rows.items():
        if cell == "train":
            z, error, exact = row["log_z"]
            quality = f"{row['ess']:.2f} | {row['pareto_k']:.2f} | {z - exact:+.3f} +- {error:.3f}"
            lines.append(f"| {size} | {beta:g} | {quality} | {row['n_fields']} | {row['cpu']:.0f} |")
    for (cell, size, _), row in rows.items():
        if cell == "prices":
            each = ", ".join(f"{kind} {row[kind] / row['force']:.2g}" for kind in ("action", "flow", "flow force"))
            lines.append(f"\n{size} x {size}, batch {CHAINS}, in forces of {row['force'] * 1e6:.0f} us: {each}")
    head = "sites | beta | sampler | plaquette (sigma off) | chi (sigma off) | acceptance | <exp(-dH)> | tau(Q), steps | forces a step"
    lines += ["", f"| {head} | tau(Q), forces |", "|---" * 10 + "|"]
    for (cell, size, beta), row in rows.items():
        if cell in DRAWS:
            lines.append(line_of(cell, size, beta, row, rows[("prices", size, 7.0)]))
    return "\n".join(lines)


def line_of(method: str, size: int, beta: float, row: dict, price: dict) -> str:
    p, p_err, p_exact, _ = row["plaquette"]
    chi, chi_err, chi_exact = row["chi"]
    tau, tau_err, known = row["tau"]
    each = cost(row, price, method)
    time_of = f"{tau:.3g} +- {tau_err:.1g}" if known else f"> {row['tau_bound']:.3g}"
    in_forces = f"{tau * each:.3g}" if known else f"> {row['tau_bound'] * each:.3g}"
    off = (p - p_exact) / p_err if p_err else math.nan, (chi - chi_exact) / chi_err if chi_err else math.nan
    return (
        f"| {size} | {beta:g} | {method} | {p:.5f} +- {p_err:.5f} ({off[0]:+.1f}) | {chi:.5f} +- {chi_err:.5f} ({off[1]:+.1f}) | "
        f"{row['acceptance']:.2f} | {row['exp_minus_dh'][0]:.3f} +- {row['exp_minus_dh'][1]:.3f} | {time_of} | {each:.3g} | {in_forces} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="8,16")
    parser.add_argument("--betas", default="1,4,7")
    parser.add_argument("--only", default="", help="kinds of cells: prices, train, hmc, flow, flow+hmc, winding+hmc, flow hmc")
    parser.add_argument("--flows", type=Path, default=Path(".cache/lattice"))
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        print(summary())
        return
    arguments.flows.mkdir(parents=True, exist_ok=True)
    sizes, betas = ([kind(v) for v in text.split(",")] for kind, text in ((int, arguments.sizes), (float, arguments.betas)))
    only = [kind for kind in arguments.only.split(",") if kind]
    for cell, size, beta in cells(sizes, betas):
        if (only and cell not in only) or (cell, size, beta) in read():
            continue
        job = {"prices": prices, "train": fit}.get(cell)
        row = job(size, beta, arguments.flows) if job else sample(cell, size, beta, arguments.flows)
        with RESULTS.open("a") as file:
            file.write(json.dumps({"cell": cell, "size": size, "beta": beta, **row}) + "\n")
        print(cell, size, beta, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
