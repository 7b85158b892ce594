"""``FlowSampler`` on problems with known answers, and on the main job beside emcee.

    python -m benchmarks.flow_sampler mixture gaussian phi4 manywell pta [--seed 0]

Tables go to ``benchmarks/results/flow_sampler/``, one a problem. Every evaluation is counted: checks, starts, warm-up, training, draws.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.sampler_problems import PROBLEMS as PROBLEM_BOXES
from sbi_flows import FlowSampler
from sbi_flows.diagnostics import hellinger, hellinger_floor
from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.samplers import HMC, run_chains
from sbi_flows.targets import from_log_prob, from_numpy

RESULTS = Path(__file__).parent / "results" / "flow_sampler"
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
CORNERS = torch.tensor([[5.0, 5.0], [5.0, -5.0], [-5.0, 5.0], [-5.0, -5.0]], dtype=torch.float64)


def mixture_parts(x: torch.Tensor) -> torch.Tensor:
    """Log of each component's part of the density, ``(n, 4)``: unit covariance, means at +-5 on the first two axes."""
    d = x.shape[1]
    near = torch.cdist(x[:, :2], CORNERS).square() + x[:, 2:].square().sum(-1, keepdim=True)
    return WEIGHTS.log() - 0.5 * near - 0.5 * d * math.log(2 * math.pi)


def mixture(seed: int) -> list[str]:
    """From the prior N(0, 6^2) in every column (the likelihood is the density over the prior), and from starts in one mode without one."""
    rows = _table("d", "from", "masses (.4 .3 .2 .1)", "largest error", "ln Z (0)", "method", "evaluations", "s", "verdict")
    for d in (16, 64, 128):
        prior = MultivariateNormal(np.zeros(d), 36 * np.eye(d))

        def density(x):
            return torch.logsumexp(mixture_parts(x), dim=-1)

        def likelihood(x, prior=prior):
            return density(x) - prior.log_prob(x)

        start = torch.cat([CORNERS[:1].expand(64, 2), torch.zeros(64, d - 2)], dim=1) + 0.5 * torch.randn(
            64, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        for where in ("prior", "one mode"):
            began = time.perf_counter()
            if where == "prior":
                sampler = FlowSampler(likelihood, prior, random_state=seed).fit()
            else:
                sampler = FlowSampler(target=from_log_prob(density, d), random_state=seed).fit(start)
            log_z = sampler.evidence()
            seconds = time.perf_counter() - began
            draws = torch.from_numpy(sampler.chains_.samples.reshape(-1, d))
            masses = torch.softmax(mixture_parts(draws), -1).mean(0)
            error = float((masses - WEIGHTS).abs().max())
            report = sampler.report_
            shown = " ".join(f"{m:.3f}" for m in masses.tolist())
            rows.append(
                f"| {d} | {where} | {shown} | {error:.3f} | {log_z.log_z:.3f} +- {log_z.log_z_err:.3f} | {report.method} "
                f"| {report.n_evaluations} | {seconds:.0f} | {_verdict(report.reliability)} |"
            )
            print(rows[-1], report, sep="\n", flush=True)
    return rows


def gaussian(seed: int) -> list[str]:
    """A correlated normal in 20 columns, where no flow is needed: seconds and evaluations over those of the plain kernel."""
    d = 20
    root = torch.linalg.cholesky(0.5 * torch.eye(d, dtype=torch.float64) + 0.5)
    target = from_log_prob(lambda x: -0.5 * torch.linalg.solve_triangular(root, x.T, upper=False).square().sum(0), d)
    start = torch.randn(100, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    FlowSampler(target=target, n_effective=100, random_state=seed).fit(start)  # what is imported and compiled once is paid for here
    began = time.process_time()
    sampler = FlowSampler(target=target, random_state=seed).fit(start)
    ours = time.process_time() - began
    report = sampler.report_
    print(report, flush=True)
    began = time.process_time()
    n_steps, thin = report.n_draws * sampler.thin_, sampler.thin_
    plain = run_chains(HMC(), target, start[: report.n_chains], n_steps=n_steps, n_warmup=200, random_state=seed, thin=thin)
    alone = time.process_time() - began
    n_plain = int(plain.info["n_evaluations"])
    size = f"{report.n_draws} x {report.n_chains}"
    return [
        *_table("sampler", "CPU s, warm process", "evaluations", "draws", "verdict"),
        f"| FlowSampler ({report.method}) | {ours:.2f} | {report.n_evaluations} | {size} | {_verdict(report.reliability)} |",
        f"| HMC, 200 steps of warm-up | {alone:.2f} | {n_plain} | {plain.samples.shape[1]} x {plain.samples.shape[0]} | |",
        f"| ratio | {ours / alone:.2f} | {report.n_evaluations / n_plain:.2f} | | |",
    ]


def phi4(seed: int) -> list[str]:
    """The chain of FACTS 7 (a = .1, beta = 20, N = 64) from its free part as prior: two modes of mass one half."""
    n, a, beta = 64, 0.1, 20.0
    links = 2 * torch.eye(n, dtype=torch.float64) - torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    links = links - torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)
    precision = beta * a * n * links
    prior = MultivariateNormal(np.zeros(n), torch.linalg.inv(precision).numpy())

    def likelihood(x):
        return -beta * (1 - x.square()).square().sum(-1) / (4 * a * n)

    began = time.perf_counter()
    sampler = FlowSampler(likelihood, prior, random_state=seed).fit()
    seconds = time.perf_counter() - began
    report = sampler.report_
    print(report, flush=True)
    share = float((sampler.chains_.samples.mean(-1) > 0).mean())
    return [
        *_table("N", "mass of the upper mode (.50)", "method", "flow accepted", "evaluations", "s", "verdict"),
        f"| {n} | {share:.3f} | {report.method} | {report.flow_acceptance:.2f} | {report.n_evaluations} | {seconds:.0f} "
        f"| {_verdict(report.reliability)} |",
    ]


def manywell(seed: int) -> list[str]:
    """ManyWell-32 from a box of +-5: 2^16 modes; every pair's upper well holds .844307. Effective draws enough to see .01."""
    problem = PROBLEM_BOXES["manywell-32"]()
    ends = [problem.half_width] * problem.features
    began = time.process_time()
    prior = BoxUniform([-end for end in ends], ends)
    sampler = FlowSampler(from_numpy(problem.log_likelihood), prior, n_effective=20_000, random_state=seed).fit()
    log_z = sampler.evidence()
    seconds = time.process_time() - began
    report = sampler.report_
    print(report, flush=True)
    draws = sampler.chains_.samples.reshape(-1, problem.features)
    error = np.abs(problem.modes(draws).mean(0) - problem.masses).max()
    return [
        *_table("worst error of a well's mass", "ln Z off by", "method", "ESS", "flow accepted", "evaluations", "CPU s", "verdict"),
        f"| {error:.4f} | {log_z.log_z - problem.log_z:+.3f} +- {log_z.log_z_err:.3f} | {report.method} | {report.ess:.0f} "
        f"| {report.flow_acceptance:.2f} | {report.n_evaluations} | {seconds:.0f} | {_verdict(report.reliability)} |",
    ]


def pta(seed: int, models: str = "") -> list[str]:
    """The main job (`sbi-flows pta compare`): emcee for 20 000 effective draws at least, then FlowSampler for as many as it came to."""
    from sbi_flows.model_evidence import evidence
    from sbi_flows.physics.pta import DEFAULT_MODELS, pta_target
    from sbi_flows.physics.pta.flow_run import run_flow_sampler
    from sbi_flows.physics.pta.reference import run_reference

    rows = _table(
        "model", "ln Z flow", "ln Z emcee", "H mean / max", "floor", "ESS flow", "ESS emcee", "evaluations flow / emcee", "ratio",
        "CPU s flow / emcee", "verdict",
    )
    for model in models.split(",") if models else DEFAULT_MODELS:
        target = pta_target(model)
        began = time.process_time()
        emcee = run_reference(target, n_walkers=500, min_ess=20_000, max_draws=40_000, random_state=seed)
        emcee_evidence = evidence(emcee.chains, target.log_posterior, prior=target.prior, random_state=seed)
        theirs = time.process_time() - began
        began = time.process_time()
        flow, flow_evidence = run_flow_sampler(target, min_ess=emcee.ess, max_draws=40_000, random_state=seed)
        ours = time.process_time() - began
        n_emcee = emcee.n_evaluations + int(emcee_evidence.by_method["n_evaluations"].max())
        a, b = (run.chains.samples.reshape(-1, target.features) for run in (flow, emcee))
        distance = hellinger(b, a)
        rows.append(
            f"| {model} | {_number(flow_evidence)} | {_number(emcee_evidence)} | {distance.mean():.3f} / {distance.max():.3f} "
            f"| {hellinger_floor(flow.ess, emcee.ess):.3f} | {flow.ess:.0f} | {emcee.ess:.0f} "
            f"| {flow.n_evaluations} / {n_emcee} | {flow.n_evaluations / n_emcee:.2f} | {ours:.1f} / {theirs:.1f} "
            f"| {_verdict(flow.reliability)}; {_verdict(flow_evidence.reliability)} |"
        )
        print(rows[-1], flush=True)
    return rows


def _table(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _number(evidence) -> str:
    return f"{evidence.log_z:.3f} +- {evidence.log_z_err:.3f}"


def _verdict(reliability) -> str:
    return "ok" if reliability.ok else "NOT RELIABLE: " + "; ".join(reliability.reasons)


PROBLEMS = {"mixture": mixture, "gaussian": gaussian, "phi4": phi4, "manywell": manywell, "pta": pta}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="+", choices=list(PROBLEMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", default="", help="of pta, separated by commas; all ten by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in arguments.problems:
        rows = pta(arguments.seed, arguments.models) if name == "pta" else PROBLEMS[name](arguments.seed)
        text = "\n".join([f"`python -m benchmarks.flow_sampler {name} --seed {arguments.seed}`: {PROBLEMS[name].__doc__}", "", *rows, ""])
        (RESULTS / f"{name}.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
