"""Pulsar timing: speed of the exact likelihood, and evidences and marginals by ways that share nothing but that likelihood.

Run from the repository root, with ``SBI_FLOWS_DATA`` set:

    python -m benchmarks.pulsar_timing speed
    python -m benchmarks.pulsar_timing importance --models smbhb,power_law --draws 30000
    python -m benchmarks.pulsar_timing mcmc --models power_law --seconds 300
    python -m benchmarks.pulsar_timing compare
    python -m benchmarks.pulsar_timing tempered --models smbhb,power_law
    python -m benchmarks.pulsar_timing skies --draws 1000

``importance`` is :func:`sbi_flows.physics.pta.timing_refine.refined` from the prior, without a network. ``mcmc`` is a Markov chain that
shares none of it: random walks of every pulsar's noise and of the source in turn, on the likelihood without correlations, whose ends are
accepted or not by the ratio of the two likelihoods (Liu 2001, "surrogate transitions"). It goes on from where it stopped. ``tempered`` is
sequential Monte Carlo by the same moves: ln Z of the same likelihood without proposals of ours. ``skies`` simulates skies of two
pulsars, half of them of black-hole binaries, and asks one network for the ln B and ranks of all. Draws are kept in ``--folder``;
``compare`` reads those of ``importance``, ``mcmc`` and ``tempered``, and of ``sbi-flows pta timing --output`` where ``--routes`` names
its folder.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kstest

from benchmarks.pulsar_timing_moves import BURN, mcmc, tempered
from sbi_flows.diagnostics import hellinger, hellinger_floor
from sbi_flows.physics.pta import DEFAULT_MODELS, timing_likelihood
from sbi_flows.physics.pta.timing_arrays import TEN, ng15_pulsars
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.physics.pta.timing_npe import Effort, TimingNPE
from sbi_flows.physics.pta.timing_refine import refined
from sbi_flows.physics.pta.timing_run import ROUTES, finished
from sbi_flows.physics.pta.timing_skies import simulate_skies, sky_evidences
from sbi_flows.results import WeightedSamples
from sbi_flows.weights import autocorrelation_time


def speed(batches: tuple[int, ...] = (64, 256, 1024)) -> None:
    """Milliseconds an evaluation: processor time and wall time, least of five."""
    target = timing_likelihood()
    generator = torch.Generator().manual_seed(0)
    theta = target.prior.sample(max(batches), generator).double()
    theta[:, 0], theta[:, 1] = -14.2, 3.2
    print(f"{torch.get_num_threads()} thread(s), 10 pulsars, Hellings-Downs; ms an evaluation: processor, wall")
    for n in batches:
        for name, call in (("value", target.log_likelihood), ("gradient", target.log_prob_and_grad)):
            spent = []
            for _ in range(5):
                cpu, wall = time.process_time(), time.perf_counter()
                call(theta[:n])
                spent.append((time.process_time() - cpu, time.perf_counter() - wall))
            cpu, wall = np.min(spent, axis=0) / n * 1e3
            print(f"  batch {n:5d} {name:9s} {cpu:.3f} {wall:.3f}", flush=True)


def importance(folder: Path, model: str, draws: int, seed: int) -> None:
    """Weighted draws from the prior onwards, kept in ``folder`` beside those of other seeds."""
    target = timing_likelihood(spectrum=model)
    cpu, wall = time.process_time(), time.perf_counter()
    found = refined(Cube(target, target.model.prior.features), n_samples=draws, random_state=seed)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    np.savez(folder / f"importance_{model}_{seed}.npz", samples=found.samples, log_weights=found.log_weights, cpu=cpu)
    print(
        f"{model}: ln Z {found.log_z:.3f} +- {found.log_z_err:.3f}, ESS {found.ess:.0f} of {draws}, k {found.pareto_k:.2f}, "
        f"processor {cpu:.0f} s, wall {wall:.0f} s   {found.reliability}",
        flush=True,
    )


def prior_ratio(folder: Path) -> None:
    """ln Z of black-hole binaries over that of any power law, from chains of the latter alone: the mean ratio of the two priors."""
    path = folder / "mcmc_power_law.npz"
    if not path.is_file():
        return
    narrow, wide = (timing_likelihood(spectrum=model).model.prior for model in ("smbhb", "power_law"))
    with np.load(path) as stored:
        rows = torch.from_numpy(stored["rows"][:, BURN:, : wide.features])
    ratio = torch.exp(narrow.log_prob(rows.flatten(0, 1)) - wide.log_prob(rows.flatten(0, 1))).unflatten(0, rows.shape[:2]).numpy()
    error = ratio.std() / ratio.mean() * math.sqrt(autocorrelation_time(ratio) / ratio.size)
    print(f"ln B of smbhb against power_law from the MCMC of power_law: {math.log(ratio.mean()):.3f} +- {error:.3f}")


def compare(folder: Path, models: list[str], routes: Path | None) -> None:
    """Marginals of each way beside those of the MCMC, and one ln B that no importance weight enters."""
    prior_ratio(folder)
    for model in models:
        path = folder / f"mcmc_{model}.npz"
        if not path.is_file():
            continue
        names = timing_likelihood(spectrum=model).names
        with np.load(path) as stored:
            rows = stored["rows"][:, BURN:]
        ess = np.array([rows[..., 0].size / autocorrelation_time(rows[..., j]) for j in range(rows.shape[-1])])
        halves = hellinger(*(half.reshape(-1, rows.shape[-1]) for half in np.array_split(rows, 2)))
        print(
            f"{model}: MCMC ESS {ess.min():.0f}-{ess.max():.0f} from {rows.shape[0]} x {rows.shape[1]} draws; Hellinger distance of its "
            f"halves mean {halves.mean():.3f}, largest {halves.max():.3f}"
        )
        for way, found, independent in _ways(folder, model, routes):
            distance = hellinger(found.samples, rows.reshape(-1, rows.shape[-1]), weights_x=found.weights)
            print(
                f"  {way}: ESS {independent:.0f}, Hellinger mean {distance.mean():.3f}, largest {distance.max():.3f} "
                f"({names[int(distance.argmax())]}), floor {hellinger_floor(independent, float(ess.min())):.3f}"
            )


def _ways(folder: Path, model: str, routes: Path | None) -> Iterator[tuple[str, WeightedSamples, float]]:
    """What there is of a model besides the MCMC: its name, draws and what they are worth."""
    names = timing_likelihood(spectrum=model).names
    for way, pattern in (("importance", f"importance_{model}_*.npz"), ("tempered", f"tempered_{model}.npz")):
        stored = [np.load(path) for path in sorted(folder.glob(pattern))]
        if stored:  # weights of all seeds are on one scale
            found = WeightedSamples(*(np.concatenate([each[key] for each in stored]) for key in ("samples", "log_weights")), names)
            # What is stored of tempering are weights of its last step alone.
            log_z = f", ln Z {found.log_z:.3f} +- {found.log_z_err:.3f}" if way == "importance" else ""
            yield way + log_z, found, found.ess
    if routes is not None:
        for route in ROUTES:
            run = finished(routes / "models" / model, route)
            if run is not None:
                yield f"pta timing --route {route}", WeightedSamples(run[1].samples, run[1].log_weights, names), run[1].ess


def skies(folder: Path, n: int, draws: int, seed: int) -> None:
    """Are ln B and ranks right over many skies? One network of two pulsars, one call for all skies."""
    array = ng15_pulsars(TEN[:2])
    network = TimingNPE(array, ["smbhb", "power_law"], effort=Effort(n_simulations=60_000, n_classified=0), random_state=seed)
    if not network.restore(folder / "two"):
        network.fit()
        network.save(folder / "two")
    print("network:", {name: round(value) for name, value in network.seconds_.items()}, "s")
    cpu = time.process_time()
    found = sky_evidences(network, array, simulate_skies(network, array, n, seed + 1), n_samples=draws, random_state=seed + 2)
    print(f"{n} skies, {draws} draws each: processor {time.process_time() - cpu:.0f} s")
    calibration, probability = found.calibration(), found.probabilities
    worst, median = np.quantile(found.ess, [0.05, 0.5])
    print(f"reliable {found.reliable.mean():.0%}; ESS, median {median:.1%}, worst twentieth {worst:.1%}")
    print(
        f"the source wins: {found.won():.3f} of the skies, {probability.max(1).mean():.3f} by the evidences; probabilities are right: "
        f"p = {calibration.p_value:.3f}, mean error {calibration.error:.3f}"
    )
    print(calibration.table[calibration.table["model"] == "smbhb"].to_string(index=False, float_format="%.3f"))
    for number, name in enumerate(found.models):
        ours = found.labels == number
        ranks = found.ranks[ours, number]
        p = [kstest(column[np.isfinite(column)], "uniform").pvalue for column in ranks.T]
        print(f"ranks of {int(ours.sum())} skies of {name}: p = {', '.join(f'{value:.2f}' for value in p)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "importance", "mcmc", "tempered", "skies", "compare"])
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS))
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skies", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--routes", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results/pulsar_timing"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    models = given.models.split(",")
    if given.what == "speed":
        speed()
    elif given.what == "compare":
        compare(given.folder, models, given.routes)
    elif given.what == "skies":
        skies(given.folder, given.skies, given.draws, given.seed)
    else:
        for model in models:
            if given.what == "importance":
                importance(given.folder, model, given.draws, given.seed)
            elif given.what == "tempered":
                tempered(given.folder, model, given.particles, given.seed)
            else:
                mcmc(given.folder, model, given.seconds, given.seed)


if __name__ == "__main__":
    main()
