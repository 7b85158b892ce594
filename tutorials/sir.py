"""A stochastic epidemic: from a prior to a posterior whose calibration has been checked.

    python tutorials/sir.py figures/

A town of 10 000 people. Who infects whom is chance, and only a share of the cases is reported. From 60 days of reported cases: how
infectious is the disease, how long are people infectious, and what share is reported? The likelihood sums over all unseen infections and
cannot be written down; the simulator is a dozen lines.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sbi_flows import NPE, diagnose, plots
from sbi_flows.distributions import BoxUniform
from sbi_flows.inference import simulate

PEOPLE, FIRST_CASES, DAYS = 10_000, 10, 60
TRUTH = {"R0": 2.5, "days infectious": 5.0, "share reported": 0.3}


def epidemic(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reported cases a day ``(n, 60)`` for parameters ``(n, 3)``: reproduction number, days infectious, share reported.

    Time goes in steps of a day.
    """
    reproduction, duration, share = theta.T
    susceptible = np.full(len(theta), PEOPLE - FIRST_CASES)
    infectious = np.full(len(theta), FIRST_CASES)
    reported = np.empty((len(theta), DAYS))
    for day in range(DAYS):
        meets = reproduction / duration * infectious / PEOPLE
        infected = rng.binomial(susceptible, 1 - np.exp(-meets))
        recovered = rng.binomial(infectious, 1 - np.exp(-1 / duration))
        susceptible, infectious = susceptible - infected, infectious + infected - recovered
        reported[:, day] = rng.binomial(infected, share)
    return reported


def summaries(reported: np.ndarray) -> np.ndarray:
    """How many, how many at most, when, and every sixth day: ``(n, 19)`` from curves ``(n, 60)``."""
    so_far = reported.cumsum(axis=1)
    total = so_far[:, -1:]
    shares = np.array([0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9])
    days = (so_far[:, :, None] < shares * total[:, :, None]).sum(axis=1)
    # Counts scatter by their square root; roots of counts by about a half, whatever the count.
    return np.hstack([np.log1p(total), np.log1p(reported.max(axis=1, keepdims=True)), days, np.sqrt(reported[:, ::6])])


def main(folder: Path, n_simulations: int = 5000, n_checks: int = 600) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prior = BoxUniform([1.0, 2.0, 0.05], [5.0, 10.0, 1.0], names=list(TRUTH))
    x_o = epidemic(np.array([list(TRUTH.values())]), np.random.default_rng(4))[0]

    # 1. Simulate. Every row of theta is one epidemic, with random numbers of its own.
    generator = torch.Generator().manual_seed(0)
    theta = prior.sample(n_simulations, generator).numpy()
    x = simulate(epidemic, theta, vectorized=True, random_state=0)
    path = plots.save_figure(curves(x[:40], x_o, "40 epidemics from the prior"), folder / "1_prior.png")
    print(f"1. {path}: does the observation (black) look like something the prior can make? If not, stop here.")

    # 2. Learn. Of the bare curves, with embedding="series", 5000 simulations once gave posteriors that the check below found too wide. What
    # one would measure by eye needs no learning.
    npe = NPE(prior, embedding=None, random_state=0).fit(theta, summaries(x))
    measured_o = summaries(x_o[None])[0]
    posterior = npe.posterior(measured_o)
    print(f"2. {posterior}\n   {n_simulations} simulations, {npe.history_.seconds:.0f} s")

    # 3. Look at the posterior.
    draws = posterior.sample(5000, random_state=0)
    path = plots.save_figure(plots.corner(posterior, truth=TRUTH), folder / "2_posterior.png")
    print(f"3. {path}: what is known, and what trades off against what. Black: the truth, which here we know.")
    for name, column, value in zip(TRUTH, draws.T, TRUTH.values(), strict=True):
        low, middle, high = np.quantile(column, [0.05, 0.5, 0.95])
        print(f"   {name}: {middle:.2f}, 90 % between {low:.2f} and {high:.2f} (truth {value:g})")
    again = simulate(epidemic, draws[:200], vectorized=True, random_state=1)
    path = plots.save_figure(curves(again[:40], x_o, "40 epidemics from the posterior"), folder / "3_posterior_predictive.png")
    print(f"   {path}: epidemics from the posterior should surround the observation closely.")

    # 4. Check. Fresh parameters from the prior and their simulations, not seen in training: the posterior must cover the former.
    fresh = prior.sample(n_checks, generator).numpy()
    fresh_x = summaries(simulate(epidemic, fresh, vectorized=True, random_state=2))
    rng = np.random.default_rng(3)

    def measured(rows: np.ndarray) -> np.ndarray:
        return summaries(epidemic(rows, rng))

    record = diagnose(npe, fresh, fresh_x, measured_o, simulator=measured, names=posterior.names, random_state=0)
    path = plots.save_figure(plots.diagnosis(record), folder / "4_calibration.png")
    print(f"4. {record}")
    print(f"   {path}: ranks and coverage should stay inside their bands, x_o should be no outlier among the simulations.")
    print(f"   {advice(record.reliability.ok, n_simulations)}")


def advice(ok: bool, n_simulations: int) -> str:
    """What to do after the check."""
    if ok:
        return "The check finds nothing wrong: use the posterior."
    return (
        "The check fails: do not use this posterior. Read the reasons above; if ranks or coverage are off, try more simulations: "
        f"--simulations {4 * n_simulations}. If x_o is an outlier, mend the simulator or the prior."
    )


def curves(x: np.ndarray, x_o: np.ndarray, title: str):
    """Simulated curves in colour, the observed one in black."""
    figure = plots.new_figure(6.0, 3.6)
    axis = figure.subplots()
    axis.plot(np.arange(1, x.shape[1] + 1), x.T, color=plots.COLOURS[0], alpha=0.35, linewidth=0.8)
    axis.plot(np.arange(1, len(x_o) + 1), x_o, color="black", linewidth=1.8, label="observed")
    axis.set(xlabel="day", ylabel="reported cases", title=title, ylim=(0, None))
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the figures go")
    parser.add_argument("--simulations", type=int, default=5000)
    parser.add_argument("--checks", type=int, default=600, help="simulations for the calibration report")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.simulations, arguments.checks)
