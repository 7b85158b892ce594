"""Separated modes: where NUTS alone is wrong and says so, and where flow proposals put it right.

    python tutorials/separated_modes.py figures/

Four bumps with masses .4, .3, .2, .1, ten widths apart, in eight parameters. A chain that follows gradients stays in the bump it came to,
so the masses it reports are those of its starting points. Chains that differ give it away: R-hat. ``FlowSampler``, given a kernel of the
same kind, sees that it does not connect the modes, fits a flow to each, and lets chains jump.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from sbi_flows import FlowSampler, plots, run_chains
from sbi_flows.distributions import BoxUniform
from sbi_flows.samplers import HMC, NUTS
from sbi_flows.targets import posterior

MASSES = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
CENTRES = torch.tensor([[5.0, 5.0], [5.0, -5.0], [-5.0, 5.0], [-5.0, -5.0]], dtype=torch.float64)
FEATURES = 8


def log_likelihood(x: torch.Tensor) -> torch.Tensor:
    """``(n, d)`` to ``(n,)``: four normals of unit width on the first two axes, one normal on the others."""
    bumps = torch.logsumexp(MASSES.log() - 0.5 * torch.cdist(x[:, :2], CENTRES).square(), dim=-1)
    return bumps - 0.5 * x[:, 2:].square().sum(-1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


def masses(samples: np.ndarray) -> np.ndarray:
    """Share of the draws nearest to each centre, ``(4,)``."""
    rows = torch.from_numpy(samples.reshape(-1, samples.shape[-1])[:, :2])
    return np.bincount(torch.cdist(rows, CENTRES).argmin(1).numpy(), minlength=4) / len(rows)


def main(folder: Path, n_effective: int = 4000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prior = BoxUniform([-10.0] * FEATURES, [10.0] * FEATURES)

    # NUTS from draws of the prior: every chain falls into one bump and stays there.
    start = prior.sample(16, torch.Generator().manual_seed(0))
    nuts = run_chains(NUTS(), posterior(log_likelihood, prior), start, n_steps=200, n_warmup=100, random_state=0)
    print(f"NUTS alone: masses {np.round(masses(nuts.samples), 3)}, exactly {MASSES.tolist()}")
    print(f"    and its verdict: {nuts.reliability}")

    # The same likelihood and prior, no start, and a local kernel that follows gradients as NUTS does.
    sampler = FlowSampler(log_likelihood, prior, kernel=HMC(), n_effective=n_effective, random_state=0).fit()
    print(f"FlowSampler: masses {np.round(masses(sampler.chains_.samples), 3)}")
    print(sampler.report_)

    figure = plots.new_figure(8.4, 4.4)
    shown = {"NUTS alone": nuts.samples, "FlowSampler": sampler.chains_.samples}
    for axis, (name, rows) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        axis.scatter(*rows.reshape(-1, FEATURES)[::4, :2].T, s=2, alpha=0.3, linewidths=0)
        shares = ", ".join(f"{mass:.2f}" for mass in masses(rows))
        axis.set(title=f"{name}\nmasses {shares}", xlabel="x0", ylabel="x1", xlim=(-10, 10), ylim=(-10, 10), aspect="equal")
    print(plots.save_figure(figure, folder / "separated_modes.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the figure goes")
    main(parser.parse_args().folder)
